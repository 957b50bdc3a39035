"""The numbers of a report: computed once from what an evaluation returns, then shown by the page and the Markdown.

Ranks count from 0, recalls are shares, and whatever is computed by item is of the first caption of each photo and
language. A rank of None is left out. Numpy, and scipy for intervals and tests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from ccrk.metrics.consistency import language_gap
from ccrk.metrics.mrv.rank_variation import rank_variation
from ccrk.metrics.published import published_table
from ccrk.metrics.significance import interval, paired_difference

RESAMPLES = 1999
"""Resamples of every interval and test of a report; p cannot be less than 1 / 1000."""

EXCHANGES = 199
"""How often ranks are exchanged between languages in the test of growth."""

SETS = 70
"""Sets of languages of one size that are averaged at most: all of them up to eight languages, else so many drawn."""

_LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil",
    "te": "Telugu", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def language_name(tag: str) -> str:
    """English name of a language, or its tag where the name is not known here; regions stay in parentheses."""
    language, _, rest = tag.partition("-")
    name = _LANGUAGES.get(language)
    return tag if name is None else f"{name} ({rest})" if rest else name


# --- what is given ------------------------------------------------------------------------------------------------


def check_results(results: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[dict]:
    """Results as a list of dicts of plain values with distinct names, checked for what a report reads.

    Args:
        results: one result of an evaluation, or several.

    Returns:
        Copies in which numbers that are not finite are None and a name that occurs again has its number behind it.

    Raises:
        ValueError: if there are none, or one lacks what a report needs or contradicts itself; the message says where.
    """
    given = [results] if isinstance(results, Mapping) else list(results)
    if not given:
        raise ValueError("there is no result to report (expected what an evaluation returns, or a list of that)")
    checked: list[Any] = []
    names: Counter[str] = Counter()
    for number, result in enumerate(given, 1):
        if not isinstance(result, Mapping):
            raise ValueError(f"result {number} is a {type(result).__name__} (expected the dict of an evaluation)")
        result = plain(result)
        name = str(result.get("name") or "model")
        names[name] += 1
        result["name"] = name if names[name] == 1 else f"{name} ({names[name]})"
        _check(result, f"result {number} ('{name}')")
        checked.append(result)
    return checked


def plain(value: Any) -> Any:
    """The value as JSON can hold it: no numpy, keys are strings, and what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value).encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written


def _check(result: dict, where: str) -> None:
    languages = result.get("languages")
    if not isinstance(languages, dict) or not languages:
        raise ValueError(f"{where} has no 'languages' (expected a dict: language -> its recalls)")
    for tag, figures in languages.items():
        if not isinstance(figures, dict) or not isinstance(figures.get("ir@1"), (int, float)):
            raise ValueError(f"{where} has no 'ir@1' of '{tag}' (expected text-to-image recall at 1 as a share)")
    items = result.get("items")
    if items is None:
        return
    if not isinstance(items, dict) or not isinstance(items.get("ranks"), dict) or "image_ids" not in items:
        raise ValueError(f"{where} has 'items' without 'image_ids' or 'ranks' (expected both, or no items)")
    count = len(items["image_ids"])
    for kind in ("ranks", "texts", "found"):
        for tag, column in (items.get(kind) or {}).items():
            if len(column) != count:
                raise ValueError(f"{where} has {len(column)} entries in {kind} of '{tag}', but {count} image ids")
    if len(items.get("images") or items["image_ids"]) != count:
        raise ValueError(f"{where} has {len(items['images'])} images, but {count} image ids")
    for tag, column in items["ranks"].items():
        if any(rank is not None and rank < 0 for rank in column):
            raise ValueError(f"{where} has a negative rank in '{tag}'; ranks count from 0, and a miss is null")
    for tag, column in (items.get("found") or {}).items():
        if any(not 0 <= row < count for rows in column if rows for row in rows):
            raise ValueError(f"{where}: what was found in '{tag}' names a row that is none of the {count} images")


def final_languages(result: Mapping) -> dict[str, dict]:
    """Recalls of each language by the final ranking: re-ranked where that was done, else by embeddings."""
    reranked = (result.get("reranked") or {}).get("languages") or {}
    return {tag: {**figures, **reranked.get(tag, {})} for tag, figures in result["languages"].items()}


def final_mrv(result: Mapping) -> dict | None:
    """MRV of the final ranking."""
    reranked = result.get("reranked")
    return (reranked.get("mrv") if reranked else None) or result.get("mrv")


def rank_columns(result: Mapping, languages: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Text-to-image ranks by item.

    Args:
        result: of an evaluation.
        languages: those to take, where there are ranks in them; all by default.

    Returns:
        (N, K), NaN where there is none, and the languages; (0, 0) and none if the result has no items.
    """
    ranks = (result.get("items") or {}).get("ranks") or {}
    tags = [tag for tag in (ranks if languages is None else languages) if tag in ranks]
    if not tags:
        return np.zeros((0, 0)), []
    columns = [[np.nan if rank is None else float(rank) for rank in ranks[tag]] for tag in tags]
    return np.array(columns, dtype=np.float64).T, tags


# --- one result ---------------------------------------------------------------------------------------------------


def summarise(result: Mapping, worst: int = 12) -> dict:
    """The figures of one result, as JSON can hold them.

    Args:
        result: one of `check_results`.
        worst: how many of the photos whose rank varies most are listed.

    Returns:
        `name`, `benchmark`, `protocol`, `images`, `texts`; `ranking`, in words; `recall` (see `recall_summary`);
        `mrv`; `spread` and `worst` (see `spread_summary`); `agreement`, of the first page; `prevalence`, of a gallery
        of captions in all languages; `rerank`, a list by top; `growth` (see `growth_over_languages`); `published`.
        What cannot be told is None.
    """
    spread, rows = spread_summary(result, worst)
    table, tags = rank_columns(result, (final_mrv(result) or {}).get("languages"))
    return {
        **{key: result.get(key) for key in ("name", "benchmark", "protocol", "images", "texts")},
        "ranking": ranking_in_words(result),
        "recall": recall_summary(result),
        "mrv": _mrv_summary(result, table),
        "spread": spread,
        "worst": rows,
        "agreement": _agreement_summary(result),
        "prevalence": _prevalence_summary(result),
        "rerank": _rerank_summary(result),
        "growth": growth_over_languages(table, tags),
        "published": published_table(result),
    }


def ranking_in_words(result: Mapping) -> str:
    """By what photos were ordered at last."""
    reranked = result.get("reranked")
    if not reranked:
        return "by embeddings"
    score = f" by {reranked['score']}" if reranked.get("score") else ""
    words = f"first {reranked.get('top', '?')} re-ranked{score}, the rest by embeddings"
    directions = {key[:2] for figures in (reranked.get("languages") or {}).values() for key in figures if "@" in key}
    both = {key[:2] for figures in result["languages"].values() for key in figures if "@" in key}
    if directions == {"ir"} and "tr" in both:  # as after a training, where one direction is measured so
        words += " (text to image; image to text by embeddings alone)"
    return words


def recall_summary(result: Mapping) -> dict:
    """Text-to-image recall at 1 by language.

    The interval of a language has the width that its first captions give; where photos have several captions it is
    moved to the recall of all of them, and is rather too wide.

    Returns:
        `mean`, `worst`, `best`, `gap`, `spread`, maybe `reference` and `lead` (see `language_gap`) and `languages`:
        tag -> its recalls, with `low` and `high` of `ir@1`, and `plain`, its `ir@1` by embeddings if re-ranked.
    """
    languages = final_languages(result)
    at_1 = {tag: float(figures["ir@1"]) for tag, figures in languages.items()}
    table, tags = rank_columns(result)
    rows = {}
    for tag, figures in languages.items():
        low = high = None
        column = table[:, tags.index(tag)] if tag in tags else np.zeros(0)
        hits = column[~np.isnan(column)] < 1
        if len(hits):
            mean, low, high = interval(hits, resamples=RESAMPLES)
            low, high = (float(np.clip(end - mean + at_1[tag], 0, 1)) for end in (low, high))
        rows[tag] = {**figures, "low": low, "high": high}
        if result.get("reranked"):
            rows[tag]["plain"] = result["languages"][tag]["ir@1"]
    return {"mean": float(np.mean(list(at_1.values()))), **language_gap(at_1), "languages": rows}


def _mrv_summary(result: Mapping, table: np.ndarray) -> dict | None:
    mrv = final_mrv(result)
    if not mrv:
        return None
    if mrv.get("low") is None and len(table) and mrv.get("statistic", "std") in ("std", "variance", "mad"):
        values = rank_variation(table)[mrv.get("statistic", "std")]
        values = values[~np.isnan(values)]
        # Where misses were counted the items do not give the figure, so they do not give its interval either.
        if len(values) and np.isclose(values.mean(), mrv["mrv"], rtol=1e-4, atol=1e-6):
            _, low, high = interval(values, resamples=RESAMPLES)
            mrv = {**mrv, "low": low, "high": high}
    return dict(mrv)


def spread_summary(result: Mapping, worst: int) -> tuple[dict | None, list[dict]]:
    """How the variation of the rank (standard deviation over languages) is spread over the photos.

    Returns:
        `items`, `left_out` (fewer than two ranks), `languages`, `mean`, `median`, `p90`, `largest`, `still` (share of
        photos that do not move), `half` (share of photos that make up half of the sum), and `shares` of photos that
        do not move, move by less than 1, by 1 to 2, by 2 to 4 and so on in powers of two, each with its upper end
        excluded; and the worst photos: `row`, `image_id`, `std`, `ranks`. None and an empty list where no photo has
        ranks in two languages.
    """
    table, tags = rank_columns(result, (final_mrv(result) or {}).get("languages"))
    values = rank_variation(table)["std"] if len(tags) > 1 else np.zeros(0)
    known = values[~np.isnan(values)]
    if not len(known):
        return None, []
    known = np.where(known < 1e-9, 0, known)
    falling = np.sort(known)[::-1]
    half = (np.searchsorted(falling.cumsum(), falling.sum() / 2) + 1) / len(known) if falling[0] > 0 else None
    # frexp gives 1 for [1, 2), 2 for [2, 4), ... and 0 or less below 1
    bins = np.where(known == 0, 0, np.maximum(np.frexp(np.maximum(known, 1e-9))[1], 0) + 1)
    summary = {
        "items": len(known),
        "left_out": len(values) - len(known),
        "languages": tags,
        "mean": float(known.mean()),
        "median": float(np.median(known)),
        "p90": float(np.quantile(known, 0.9)),
        "largest": float(known.max()),
        "still": float((known == 0).mean()),
        "half": None if half is None else float(half),
        "shares": (np.bincount(bins) / len(known)).tolist(),
    }
    items = result["items"]
    order = [row for row in np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")[:worst] if values[row] > 1e-9]
    rows = [
        {
            "row": int(row),
            "image_id": str(items["image_ids"][row]),
            "std": float(values[row]),
            "ranks": {tag: column[row] for tag, column in items["ranks"].items()},
        }
        for row in order
    ]
    return summary, rows


def _agreement_summary(result: Mapping) -> dict | None:
    given = result.get("consistency")
    if not given or not given.get("matrix"):
        return None
    tags, matrix = given["languages"], given["matrix"]
    pairs = {(a, b): matrix[i][j] for i, a in enumerate(tags) for j, b in enumerate(tags) if i < j}
    pairs = {pair: value for pair, value in pairs.items() if value is not None}
    if not pairs:
        return None
    closest, furthest = max(pairs, key=pairs.__getitem__), min(pairs, key=pairs.__getitem__)
    ends = {"closest": [*closest, pairs[closest]], "furthest": [*furthest, pairs[furthest]]}
    beside = {key: given.get(key) for key in ("reference", "overlap", "correlation")}
    return {"k": given.get("k", 10), "mean": given["agreement"], **ends, "languages": tags, "matrix": matrix, **beside}


def _prevalence_summary(result: Mapping) -> dict | None:
    given = result.get("prevalence")
    if not given or any(not math.isfinite(value) for value in given.get("ratio", {"": math.nan}).values()):
        return None
    ratio = given["ratio"]
    return {**given, "most": max(ratio, key=ratio.get), "least": min(ratio, key=ratio.get)}


def _rerank_summary(result: Mapping) -> list[dict] | None:
    rows = []
    for point in result.get("curve") or ():
        recalls = [figures["ir@1"] for figures in point["languages"].values()]
        row = {"top": point["top"], "ir@1": float(np.mean(recalls)), "worst": float(min(recalls))}
        rows.append({**row, "mrv": (point.get("mrv") or {}).get("mrv")})
    return sorted(rows, key=lambda row: row["top"]) if len(rows) > 1 else None


# --- MRV over growing sets of languages ---------------------------------------------------------------------------


def growth_over_languages(table: np.ndarray, tags: Sequence[str], seed: int = 0) -> dict | None:
    """MRV (standard deviation) over more and more languages, and what interchangeable languages would have.

    A standard deviation grows with the number of languages even if no language differs from another, so growth as such
    says nothing. What interchangeable languages would have over m of them is known whatever the distribution of ranks:
    the mean over all sets of m languages, `any`. (For the variance that mean is (m - 1) / m of the unbiased variance
    over all languages, or (m - 1) / m of half the mean squared difference of two of them: an identity. So no mean over
    sets of equal size can by itself show growth beyond it.) Against it stands `closest`: languages join one by one,
    the two that are closest first and then the one that raises MRV least, so the order of the languages in the result
    does not matter. If a few languages bring the disagreement, `closest` lies far below `any` until they join.

    A set that is chosen as the closest one lies below others by chance, too. For `half`, half of the languages, the
    same choice is therefore made again and again with the ranks of each item exchanged at random between its
    languages, which is what being interchangeable means: `interchangeable` is the mean, `p` how often it is as low.

    Args:
        table: (N, K) ranks; items with NaN are left out.
        tags: the K languages.
        seed: of the exchanges.

    Returns:
        `order` of the languages, `closest` and `any` (MRV over 2..K languages), `items`, and `half`: its `size`,
        `closest`, `interchangeable` and `p`. None with fewer than three languages or no item that has all.
    """
    table = table[~np.isnan(table).any(1)]
    if len(tags) < 3 or not len(table):
        return None
    order, closest = closest_first(table)
    size = max(2, len(tags) // 2)
    generator = np.random.default_rng(seed)
    exchanged = np.array([closest_first(generator.permuted(table, axis=1), size)[1][-1] for _ in range(EXCHANGES)])
    half = closest[size - 2]
    return {
        "items": len(table),
        "order": [tags[column] for column in order],
        "closest": closest,
        "any": [mrv_of_any(table, size) for size in range(2, len(tags) + 1)],
        "half": {
            "size": size,
            "closest": half,
            "interchangeable": float(exchanged.mean()),
            "p": float((1 + (exchanged <= half * (1 + 1e-9)).sum()) / (1 + EXCHANGES)),
        },
    }


def closest_first(table: np.ndarray, count: int | None = None) -> tuple[list[int], list[float]]:
    """Columns in the order in which each raises the mean standard deviation of the rows least.

    Args:
        table: (N, K).
        count: how many columns to order; all by default.

    Returns:
        The columns, and the mean standard deviation over the first 2, 3, ... of them.
    """
    table = table - table.mean(1, keepdims=True)  # keeps the squares below small
    apart = np.array([np.abs(table - table[:, [column]]).mean(0) for column in range(table.shape[1])])
    np.fill_diagonal(apart, np.inf)
    order = [int(column) for column in np.unravel_index(np.argmin(apart), apart.shape)]
    values = [float(apart[order[0], order[1]]) / 2]
    total, squares = table[:, order].sum(1, keepdims=True), (table[:, order] ** 2).sum(1, keepdims=True)
    while len(order) < (count or table.shape[1]):
        size = len(order) + 1
        variance = (squares + table**2) / size - ((total + table) / size) ** 2
        means = np.sqrt(np.maximum(variance, 0)).mean(0)
        means[order] = np.inf
        order.append(int(np.argmin(means)))
        values.append(float(means[order[-1]]))
        total, squares = total + table[:, order[-1:]], squares + table[:, order[-1:]] ** 2
    return order, values


def mrv_of_any(table: np.ndarray, size: int, seed: int = 0) -> float:
    """Mean standard deviation of the rows over sets of so many columns: all sets, or `SETS` drawn."""
    count = table.shape[1]
    if comb(count, size) <= SETS:
        sets = list(combinations(range(count), size))
    else:
        generator, drawn = np.random.default_rng(seed), set[tuple[int, ...]]()
        while len(drawn) < SETS:
            drawn.add(tuple(sorted(generator.choice(count, size, replace=False).tolist())))
        sets = sorted(drawn)
    return float(np.mean([table[:, columns].std(1).mean() for columns in sets]))


# --- two results --------------------------------------------------------------------------------------------------


def compare(first: Mapping, second: Mapping) -> dict:
    """Paired tests of two models over the photos that both were asked for.

    Photos are the same by image id; of those with equal ids the first belongs to the first and so on.

    Args:
        first: the one that the other is compared with.
        second: the other.

    Returns:
        `names` of both, `items` that both have, `only` (numbers that only the one and only the other has), and the
        differences (second less first, see `paired_difference`): `languages`, tag -> that of hits at 1; `hits`, of the
        share of languages that hit; `variation`, of the standard deviation of the rank over the languages that both
        have. A test without items is None.
    """
    places = [_places(result) for result in (first, second)]
    shared = [key for key in places[0] if key in places[1]]
    (one, tags), (other, others) = rank_columns(first), rank_columns(second)
    common = [tag for tag in tags if tag in others]
    one, other = (
        table[[place[key] for key in shared]][:, [names.index(tag) for tag in common]]
        for table, names, place in ((one, tags, places[0]), (other, others, places[1]))
    )
    both = ~np.isnan(one) & ~np.isnan(other)
    one, other = (np.where(both, table, np.nan) for table in (one, other))
    hits = [np.where(both, table < 1, 0).astype(float) for table in (one, other)]
    count = both.sum(1)
    asked = count > 0
    variation = [rank_variation(table)["std"] for table in (one, other)]
    varied = count > 1
    return {
        "names": [first["name"], second["name"]],
        "items": len(shared),
        "only": [len(place) - len(shared) for place in places],
        "languages": {
            tag: _paired(*(table[both[:, column], column] for table in hits)) for column, tag in enumerate(common)
        },
        "hits": _paired(*(table[asked].sum(1) / count[asked] for table in hits)),
        "variation": _paired(*(values[varied] for values in variation)),
    }


def _places(result: Mapping) -> dict[tuple[str, int], int]:
    """(image id, how often it occurred before) -> row."""
    seen: Counter = Counter()
    places = {}
    for row, name in enumerate((result.get("items") or {}).get("image_ids", ())):
        places[str(name), seen[str(name)]] = row
        seen[str(name)] += 1
    return places


def _paired(one: np.ndarray, other: np.ndarray) -> dict | None:
    if not len(one):
        return None
    means = {"first": float(one.mean()), "second": float(other.mean())}
    return {**means, **paired_difference(one, other, resamples=RESAMPLES)}
