"""Mean rank variation: how much the rank of one item differs between languages. Numpy and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STATISTICS = ("std", "variance", "mad")
MISSES = ("rank_k", "mean_of_rest", "drop")
DIRECTIONS = ("text-to-image", "image-to-text")
PRESETS = {
    # std, and these four languages, are in the authors' script. It gives a miss some place below k that depends on an
    # unstable sort; the mean of those places stands for it here.
    "paper": {"statistic": "std", "languages": ("en", "de", "ja", "zh"), "misses": "mean_of_rest"},
}


# --- what is given ------------------------------------------------------------------------------------------------


def _rank(value: Any, what: str) -> float:
    """A rank as a number; None, for a miss, is infinite."""
    if value is None:
        return np.inf
    rank = float(value)
    if not rank >= 0:  # NaN too
        raise ValueError(f"{what} is {value}; ranks count from 0, and a miss is null")
    return rank


def rank_table(ranks: Any, languages: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Ranks as a table of items and languages.

    Args:
        ranks: language -> ranks of items 0..N-1; or for each item a mapping of language -> rank, where languages may
            be missing; or an array (K, N). A rank is a 0-based number, halves allowed, or None (in arrays: infinite)
            for an item that was not found.
        languages: those to take; all by default.

    Returns:
        (N, K) float64, infinite for a miss and NaN where an item has no caption in a language; and the languages.

    Raises:
        ValueError: if there are no items, languages have different numbers of items, a language does not occur, or a
            rank is NaN or negative.
    """
    if isinstance(ranks, Mapping):
        columns = {str(tag): list(column) for tag, column in ranks.items()}
    elif len(ranks) and isinstance(ranks[0], Mapping):
        tags = dict.fromkeys(tag for row in ranks for tag in row)
        table = np.full((len(ranks), len(tags)), np.nan)
        for item, row in enumerate(ranks):
            for column, tag in enumerate(tags):
                if tag in row:
                    table[item, column] = _rank(row[tag], f"the rank of item {item} in '{tag}'")
        return _chosen(table, list(tags), languages)
    else:
        columns = {str(number): list(column) for number, column in enumerate(ranks)}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"MRV needs the ranks of the same items in every language, but got {sorted(lengths)} items")
    rows = [[_rank(value, f"a rank in '{tag}'") for value in column] for tag, column in columns.items()]
    return _chosen(np.array(rows).T, list(columns), languages)


def _chosen(table: np.ndarray, tags: list[str], languages: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    if languages is None:
        return table, tags
    unknown = [tag for tag in languages if tag not in tags]
    if unknown:
        raise ValueError(f"no rank is given for '{unknown[0]}'; there are {', '.join(tags)}")
    return table[:, [tags.index(tag) for tag in languages]], list(languages)


def fill_misses(
    table: np.ndarray, misses: str | None, top_k: int | None = None, candidates: int | None = None
) -> np.ndarray:
    """Ranks of a table with a number in the place of every miss.

    Args:
        table: (N, K), infinite for a miss.
        misses: `rank_k` puts them on the first place below the `top_k` (the least that the rank can be),
            `mean_of_rest` in the middle of the places from `top_k` to the last of all `candidates` (what an arbitrary
            order of them gives on average), `drop` leaves that language of that item out.
        top_k: how many places were looked at.
        candidates: how many items were searched.

    Returns:
        (N, K), NaN for what is left out.

    Raises:
        ValueError: if there are misses and the policy, or what it needs, is not given.
    """
    missed = np.isinf(table)
    if not missed.any():
        return table
    if misses is None:
        raise ValueError(
            f"{int(missed.sum())} ranks are misses; say what they count as: misses= one of {', '.join(MISSES)}"
        )
    if misses not in MISSES:
        raise ValueError(f"misses is '{misses}'; it is one of {', '.join(MISSES)}")
    if misses == "drop":
        return np.where(missed, np.nan, table)
    if top_k is None or (misses == "mean_of_rest" and candidates is None):
        needed = "top_k" if misses == "rank_k" else "top_k and candidates"
        raise ValueError(f"misses='{misses}' needs {needed}")
    place = float(top_k)
    found = table[np.isfinite(table)]
    if len(found) and found.max() >= top_k:
        raise ValueError(f"a rank is {found.max():g}, but only the first {top_k} places were looked at")
    if misses == "mean_of_rest" and candidates is not None:
        if candidates <= top_k:
            raise ValueError(
                f"nothing is left below the first {top_k} of {candidates} candidates, yet there are misses"
            )
        place = (top_k + candidates - 1) / 2
    return np.where(missed, place, table)


# --- variation ----------------------------------------------------------------------------------------------------


def rank_variation(table: np.ndarray) -> dict[str, np.ndarray]:
    """Variation of the rank of each item over its languages.

    Args:
        table: (N, K) ranks, NaN where there is none.

    Returns:
        `std`, `variance` and `mad`, each (N,); NaN for items with fewer than two ranks.
    """
    there = ~np.isnan(table)
    count = there.sum(1)
    enough = np.where(count > 1, count, np.nan)
    ranks = np.where(there, table, 0)
    deviation = np.where(there, ranks - (ranks.sum(1) / enough)[:, None], 0)
    variance = (deviation**2).sum(1) / enough
    return {"std": np.sqrt(variance), "variance": variance, "mad": np.abs(deviation).sum(1) / enough}


def bootstrap_interval(values: np.ndarray, draws: int, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean, over items drawn anew with replacement.

    Args:
        values: (N,) one number for each item.
        draws: how often items are drawn.
        confidence: share of the means that lies within.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    means = np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_rank_variance(
    ranks: Any,
    *,
    statistic: str | None = None,
    directions: str | Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    misses: str | None = None,
    top_k: int | None = None,
    candidates: int | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    preset: str | None = None,
) -> dict:
    r"""MRV in its three readings, for ranks of the same items in several languages.

    With r_jk the rank of item j in language k and r_j their mean over the K languages that j has:
    std = mean over j of sqrt(mean over k of (r_jk - r_j)^2), the authors' script and the scale of the published
    tables; variance = the same without the root, as the metric's name has it; mad = mean over j of mean over k of
    abs(r_jk - r_j), as the paper's text has it. Items with fewer than two ranks have none and are left out.

    Args:
        ranks: see `rank_table`; or a mapping of direction (`text-to-image`, `image-to-text`) -> such ranks.
        statistic: which of the three `mrv` is: `std` (the default, since published tables are on its scale),
            `variance` or `mad`.
        directions: those to take of ranks that have directions; all by default. The figure is then their mean.
        languages: those to take; all by default.
        misses: see `fill_misses`.
        top_k: see `fill_misses`.
        candidates: see `fill_misses`.
        bootstrap: how often items are drawn anew for an interval of `mrv`; 0 is none. 1,000 is usual.
        confidence: of the interval.
        seed: of the draws.
        preset: `paper` stands for std, the languages en de ja zh and `mean_of_rest`; what is given besides overrides.

    Returns:
        `mrv`, `std`, `variance` and `mad` (lower is more consistent); `statistic`; `languages`; `items` that have an
        MRV; `left_out`, items that have none; `missed`, ranks that were misses; with `bootstrap`, `low` and `high`;
        with directions, `directions` has all this for each and the figures beside it are their means.

    Raises:
        ValueError: see `rank_table` and `fill_misses`; if no item has two ranks or an option is not known.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset is '{preset}'; it is one of {', '.join(PRESETS)}")
    chosen = {} if preset is None else PRESETS[preset]
    options: dict[str, Any] = {
        "statistic": statistic or chosen.get("statistic", "std"),
        "languages": languages or chosen.get("languages"),
        "misses": misses or chosen.get("misses"),
        "top_k": top_k,
        "candidates": candidates,
        "bootstrap": bootstrap,
        "confidence": confidence,
        "seed": seed,
    }
    if options["statistic"] not in STATISTICS:
        raise ValueError(f"statistic is '{statistic}'; it is one of {', '.join(STATISTICS)}")
    if not (isinstance(ranks, Mapping) and set(ranks) <= set(DIRECTIONS) and ranks):
        if directions is not None:
            raise ValueError(f"these ranks have no directions; give a mapping of {' or '.join(DIRECTIONS)} to ranks")
        return _of_one_direction(ranks, **options)
    asked = [directions] if isinstance(directions, str) else list(directions or ranks)
    absent = [name for name in asked if name not in ranks]
    if absent:
        raise ValueError(f"no ranks are given for '{absent[0]}'; there are {', '.join(ranks)}")
    parts = {name: _of_one_direction(ranks[name], **options) for name in asked}
    first = parts[asked[0]]
    means = {name: float(np.mean([part[name] for part in parts.values()])) for name in ("mrv", *STATISTICS)}
    return {**means, "statistic": first["statistic"], "languages": first["languages"], "directions": parts}


def _of_one_direction(
    ranks: Any,
    *,
    statistic: str,
    languages: Sequence[str] | None,
    misses: str | None,
    top_k: int | None,
    candidates: int | None,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> dict:
    table, tags = rank_table(ranks, languages)
    if len(tags) < 2:
        raise ValueError(f"MRV compares languages, but there is only '{tags[0]}'")
    values = rank_variation(fill_misses(table, misses, top_k, candidates))
    kept = ~np.isnan(values["std"])
    if not kept.any():
        raise ValueError("no item has ranks in two languages, so there is no MRV")
    means = {name: float(values[name][kept].mean()) for name in STATISTICS}
    result = {
        "mrv": means[statistic],
        **means,
        "statistic": statistic,
        "languages": tags,
        "items": int(kept.sum()),
        "left_out": int((~kept).sum()),
        "missed": int(np.isinf(table).sum()),
    }
    if bootstrap:
        result["low"], result["high"] = bootstrap_interval(values[statistic][kept], bootstrap, confidence, seed)
    return result


def rank_of(scores: Sequence[float], right: Sequence[int], ties: str = "pessimistic") -> float:
    """0-based rank of the best-placed of the right items among all that are scored.

    Args:
        scores: (N,) higher is better.
        right: the right items; they do not count against one another.
        ties: where it stands among wrong items of equal score: behind them (`pessimistic`), before them
            (`optimistic`) or in their middle (`mean`).

    Raises:
        ValueError: if no item is right, a score is NaN, or `ties` is not known.
    """
    scores, right = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.int64)
    if not len(right) or right.min() < 0 or right.max() >= len(scores):
        raise ValueError(f"right items are {right.tolist()} of {len(scores)} that are scored")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, so nothing can be ranked by them")
    best, wrong = scores[right].max(), np.delete(scores, right)
    level = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}
    if ties not in level:
        raise ValueError(f"ties is '{ties}'; it is one of {', '.join(level)}")
    return float((wrong > best).sum() + level[ties] * (wrong == best).sum())
