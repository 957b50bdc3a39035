"""Whether a model gives the same answers in every language: what recall and MRV do not show. Numpy and scipy.

A result list holds the best items of a query, best first. Lists of several languages belong together by the place of
the query: the n-th list of each language asks for the same item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def top_overlap(first: Sequence[Sequence], second: Sequence[Sequence], k: int) -> np.ndarray:
    """Share of the first k items that two languages have in common, for each query.

    Args:
        first: (Q, >= k) result lists in one language.
        second: those in another.
        k: how many count; 10 is a page of results.

    Returns:
        (Q,) between 0 and 1.

    Raises:
        ValueError: if the numbers of queries differ or a list is shorter than k.
    """
    _check_lists(first, second)
    shortest = min((len(row) for row in (*first, *second)), default=k)
    if shortest < k:
        raise ValueError(f"the overlap of the first {k} cannot be told from a list of {shortest}")
    return np.array([len({*a[:k]} & {*b[:k]}) / k for a, b in zip(first, second, strict=True)])


def rank_correlation(first: Sequence[Sequence], second: Sequence[Sequence], candidates: int) -> np.ndarray:
    r"""Spearman's correlation of the order in two languages, for each query.

    Over all candidates, where those that a list does not name share the middle of the places below it, as Spearman's
    coefficient treats ties: the correlation of ranks r_a and r_b, sum of (r_a - m)(r_b - m) / sqrt(sum of (r_a - m)^2
    sum of (r_b - m)^2), m = (candidates - 1) / 2. With complete lists it is the usual one.

    Args:
        first: result lists in one language, of any length.
        second: those in another.
        candidates: how many items were searched.

    Returns:
        (Q,) between -1 and 1; NaN where a list is empty.

    Raises:
        ValueError: if the numbers of queries differ or a list is longer than the number of candidates.
    """
    _check_lists(first, second)
    longest = max((len(row) for row in (*first, *second)), default=0)
    if longest > candidates:
        raise ValueError(f"a list names {longest} items, but there are {candidates} candidates")
    middle = (candidates - 1) / 2
    result = np.empty(len(first))
    for query, (a, b) in enumerate(zip(first, second, strict=True)):
        tail_a, tail_b = ((len(row) - 1 - middle + candidates) / 2 - middle / 2 for row in (a, b))
        places_a, places_b = ({item: place - middle for place, item in enumerate(row)} for row in (a, b))
        union = places_a.keys() | places_b.keys()
        product = sum(places_a.get(item, tail_a) * places_b.get(item, tail_b) for item in union)
        product += (candidates - len(union)) * tail_a * tail_b
        squares = [
            sum(place**2 for place in places.values()) + (candidates - len(places)) * tail**2
            for places, tail in ((places_a, tail_a), (places_b, tail_b))
        ]
        result[query] = product / np.sqrt(squares[0] * squares[1]) if squares[0] * squares[1] > 0 else np.nan
    return result


def _check_lists(first: Sequence, second: Sequence) -> None:
    if len(first) != len(second):
        raise ValueError(f"there are {len(first)} queries in one language and {len(second)} in the other")


def score_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the scores in two languages, for each query.

    Args:
        first: (Q, N) scores of all candidates in one language.
        second: (Q, N) in another.

    Returns:
        (Q,) between -1 and 1; NaN where all scores of a query are equal.
    """
    from scipy.stats import rankdata

    first, second = (rankdata(scores, axis=1) for scores in (first, second))
    first, second = (ranks - ranks.mean(1, keepdims=True) for ranks in (first, second))
    with np.errstate(invalid="ignore"):
        return (first * second).sum(1) / np.sqrt((first**2).sum(1) * (second**2).sum(1))


def agreement(lists: Mapping[str, Sequence[Sequence]], k: int) -> tuple[list[str], np.ndarray]:
    """Mean overlap of the first k between every two languages.

    Args:
        lists: language -> result lists; None in the place of a list where an item has no caption in that language.
        k: how many count.

    Returns:
        Languages, and their matrix: 1 on the diagonal, NaN where two have no query in common.
    """
    tags = list(lists)
    matrix = np.eye(len(tags))
    for row, one in enumerate(tags):
        for column, other in enumerate(tags[:row]):
            both = [(a, b) for a, b in zip(lists[one], lists[other], strict=True) if a is not None and b is not None]
            value = float(top_overlap([a for a, _ in both], [b for _, b in both], k).mean()) if both else np.nan
            matrix[row, column] = matrix[column, row] = value
    return tags, matrix


def language_gap(figures: Mapping[str, float], reference: str | None = None) -> dict:
    """How far languages are apart in a figure of which more is better.

    Args:
        figures: language -> figure, such as its recall at 1.
        reference: language whose lead over the mean of the others is wanted; English if it is there.

    Returns:
        `worst` and `best` (languages), `gap` (between them), `spread` (population standard deviation); with a
        reference, `reference` and `lead`.

    Raises:
        ValueError: if there are no figures or the reference is not among them.
    """
    if not figures:
        raise ValueError("there are no figures to compare")
    if reference is None and "en" in figures:
        reference = "en"
    worst, best = min(figures, key=figures.__getitem__), max(figures, key=figures.__getitem__)
    values = list(figures.values())
    result = {"worst": worst, "best": best, "gap": figures[best] - figures[worst], "spread": float(np.std(values))}
    if reference is not None:
        if reference not in figures:
            raise ValueError(f"the reference is '{reference}'; there are {', '.join(figures)}")
        others = [value for tag, value in figures.items() if tag != reference]
        if others:
            result |= {"reference": reference, "lead": figures[reference] - float(np.mean(others))}
    return result


def language_prevalence(lists: Sequence[Sequence[int]], languages: Sequence[str], k: int) -> dict:
    """Which languages come first in a gallery of captions in several languages.

    A model that prefers a language shows it here: it takes more of the first k places than its share of the gallery.

    Args:
        lists: (Q, >= k) result lists: rows of the gallery.
        languages: language of each row of the gallery.
        k: how many places count.

    Returns:
        `k`; `share` and `expected` (language -> its share of the first k, and of the gallery), `ratio` of the two, and
        `bias`: the total variation distance between them, 0 (none) to 1.

    Raises:
        ValueError: if a list is shorter than k.
    """
    shortest = min((len(row) for row in lists), default=0)
    if shortest < k:
        raise ValueError(f"the first {k} cannot be told from a list of {shortest}")
    names, numbers = np.unique(np.asarray(languages), return_inverse=True)
    expected = np.bincount(numbers, minlength=len(names)) / len(numbers)
    found = numbers[np.array([row[:k] for row in lists], dtype=np.int64)].ravel()
    share = np.bincount(found, minlength=len(names)) / len(found)
    tables = {"share": share, "expected": expected, "ratio": share / expected}
    result = {name: dict(zip(names.tolist(), map(float, row), strict=True)) for name, row in tables.items()}
    return {"k": k, **result, "bias": float(np.abs(share - expected).sum() / 2)}


def consistency(
    lists: Mapping[str, Sequence[Sequence]], candidates: int, *, reference: str = "en", k: int = 10
) -> dict:
    """The suite for text-to-image search in several languages.

    Args:
        lists: language -> result lists, the n-th list of each language for the same item.
        candidates: how many items were searched.
        reference: language that the others are compared with; the first one if it is not there.
        k: places of the overlap.

    Returns:
        `reference`, `overlap` and `correlation` (language -> mean over items, with the reference), `agreement` (mean
        overlap of all pairs of languages), `matrix` (see `agreement`) with its `languages`.

    Raises:
        ValueError: with fewer than two languages; see `top_overlap` and `rank_correlation`.
    """
    if len(lists) < 2:
        raise ValueError(f"consistency compares languages, but there is only {', '.join(lists) or 'none'}")
    reference = reference if reference in lists else next(iter(lists))
    tags, matrix = agreement(lists, k)
    others = [tag for tag in tags if tag != reference]
    correlations = {tag: rank_correlation(lists[reference], lists[tag], candidates) for tag in others}
    return {
        "reference": reference,
        "k": k,
        "overlap": {tag: float(matrix[tags.index(reference), tags.index(tag)]) for tag in others},
        "correlation": {tag: float(np.nanmean(values)) for tag, values in correlations.items()},
        "agreement": float(np.nanmean(matrix[np.triu_indices(len(tags), 1)])),
        "languages": tags,
        "matrix": matrix.tolist(),
    }
