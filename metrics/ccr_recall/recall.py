"""Ranks and recall from scores, from embeddings or from lists of the best. Numpy and nothing else.

Arrays of numpy and tensors of torch both pass: nothing here goes beyond operators, slices and indices that they share,
and tensors stay on their device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TIES = ("pessimistic", "optimistic", "mean")
TILE = (1024, 4096)
"""Queries and items of a tile: its scores are 16 MiB in single precision."""


# --- right answers ------------------------------------------------------------------------------------------------


@dataclass
class Targets:
    """The right answers of queries, as pairs in the order of the queries.

    Attributes:
        queries: (P,) row of the query, ascending.
        items: (P,) row of an item that is right for it.
        count: number of queries.
    """

    queries: np.ndarray
    items: np.ndarray
    count: int

    @classmethod
    def of(cls, targets: Targets | np.ndarray | Sequence) -> Targets:
        """From the right item of each query, or from the right items of each in turn."""
        if isinstance(targets, Targets):
            return targets
        if isinstance(targets, np.ndarray) and targets.ndim == 1 and targets.dtype.kind in "iu":
            return cls(np.arange(len(targets)), targets.astype(np.int64), len(targets))
        rows = [np.atleast_1d(np.asarray(right, dtype=np.int64)) for right in targets]
        counts = np.array([len(right) for right in rows], dtype=np.int64)
        items = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        return cls(np.repeat(np.arange(len(rows)), counts), items, len(rows))

    @classmethod
    def of_groups(cls, queries: np.ndarray, items: np.ndarray) -> Targets:
        """Every item that has the group of the query, for group numbers `queries (Q,)` and `items (N,)`."""
        queries, items = np.asarray(queries), np.asarray(items)
        order = np.argsort(items, kind="stable")
        first, last = (np.searchsorted(items[order], queries, side) for side in ("left", "right"))
        counts = last - first
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found = order[np.repeat(first, counts) + offsets]
        return cls(np.repeat(np.arange(len(queries)), counts), found, len(queries))

    def within(self, start: int, stop: int) -> Targets:
        """Those of the queries from `start` up to `stop`, which count from 0 again."""
        first, last = np.searchsorted(self.queries, [start, stop])
        return Targets(self.queries[first:last] - start, self.items[first:last], stop - start)

    def slots(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Queries and items of the first right answer of each query, then of the second, and so on."""
        begins = np.searchsorted(self.queries, np.arange(self.count))
        place = np.arange(len(self.queries)) - begins[self.queries]
        for slot in range(int(place.max(initial=-1)) + 1):
            chosen = place == slot
            yield self.queries[chosen], self.items[chosen]

    def check(self, queries: int, items: int) -> None:
        """Raises ValueError unless every query has a right answer and all of them exist."""
        if self.count != queries:
            raise ValueError(f"there are {queries} queries, but right answers of {self.count}")
        missing = np.flatnonzero(np.bincount(self.queries, minlength=queries) == 0)
        if len(missing):
            raise ValueError(f"query {missing[0]} has no right answer to rank")
        wrong = np.flatnonzero((self.items < 0) | (self.items >= items))
        if len(wrong):
            query, item = self.queries[wrong[0]], self.items[wrong[0]]
            raise ValueError(f"the right answer of query {query} is item {item}, but there are {items} items")


# --- ranks --------------------------------------------------------------------------------------------------------


def windows(total: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end and number of columns already seen of each window over `total` columns.

    All windows have the same width, so the last one reaches back over its neighbour. A product of matrices may add up
    in another order for another shape, and equal items in different windows would then not score alike.
    """
    for start in range(0, total, size):
        begin = max(0, min(start, total - size))
        yield begin, min(begin + size, total), start - begin


def _numbers(flags: Any) -> np.ndarray:
    """Flags, of numpy or of torch on any device, as whole numbers."""
    return np.asarray(flags.cpu() if hasattr(flags, "cpu") else flags, dtype=np.int64)


def _count(flags: Any) -> np.ndarray:
    """How many flags of each row are set. Row by row numpy counts twice as fast as over an axis."""
    if hasattr(flags, "cpu"):
        return _numbers(flags.sum(1))
    return np.fromiter(map(np.count_nonzero, flags), np.int64, len(flags))


def _ranks_of_part(tile: Callable, parts: list, right: Targets, ties: str) -> np.ndarray:
    """Ranks of some queries; `tile(begin, end)` gives their scores with these items."""
    slots = list(right.slots())
    scores = tile(*parts[0][:2])
    best = scores[:, 0] + 0  # a copy of the kind, type and device of the scores; its numbers are replaced
    known = np.zeros(right.count, dtype=bool)
    for begin, end, seen in parts:
        here = [(rows[i], items[i] - begin) for rows, items in slots if (i := _within(items, begin + seen, end)).any()]
        if here and (begin, end) != parts[0][:2]:
            scores = tile(begin, end)
        for rows, columns in here:
            found, before = scores[rows, columns], known[rows]
            best[rows[before]] = _larger(best[rows[before]], found[before])
            best[rows[~before]] = found[~before]
            known[rows] = True
    above, reached = np.zeros((2, right.count), dtype=np.int64)  # items that score more, or at least as much
    for begin, end, seen in parts:
        if len(parts) > 1:
            scores = tile(begin, end)
        if ties != "pessimistic":
            above += _count(scores[:, seen:] > best[:, None])
        if ties == "optimistic":
            continue
        reached += _count(scores[:, seen:] >= best[:, None])
        for rows, items in slots:  # right answers do not count against one another
            i = _within(items, begin + seen, end)
            reached[rows[i]] -= _numbers(scores[rows[i], items[i] - begin] >= best[rows[i]])
    return {"pessimistic": reached, "optimistic": above, "mean": (above + reached) / 2}[ties]


def _within(items: np.ndarray, first: int, end: int) -> np.ndarray:
    return (items >= first) & (items < end)


def _larger(a: Any, b: Any) -> Any:
    return np.maximum(a, b) if isinstance(a, np.ndarray) else a.maximum(b)


def _check_ties(ties: str) -> None:
    if ties not in TIES:
        raise ValueError(f"ties is '{ties}'; it is one of {', '.join(TIES)}")


def target_ranks(
    scores: np.ndarray, targets: Targets | Sequence, ties: str = "pessimistic", tile: tuple[int, int] = TILE
) -> np.ndarray:
    """Rank of the best-placed right answer of each query.

    Args:
        scores: (Q, N), higher is better.
        targets: the right column of each query, or for each query a list of them; at least one.
        ties: where an item stands among others of equal score: behind them (`pessimistic`), before them
            (`optimistic`) or in their middle (`mean`, which may be a half). Right answers never count against
            one another.
        tile: queries and items that are looked at together; what is held beyond the scores is a byte for each.

    Returns:
        (Q,) float64, 0-based.

    Raises:
        ValueError: if a query has no target, a score is NaN, or `ties` is not known.
    """
    _check_ties(ties)
    scores = scores if hasattr(scores, "cpu") else np.asarray(scores)
    targets = Targets.of(targets)
    targets.check(*scores.shape)
    ranks = np.empty(len(scores))
    for start in range(0, len(scores), tile[0]):
        part = scores[start : start + tile[0]]
        if np.isnan(float(part.max())):  # the largest of scores with a NaN is NaN
            raise ValueError("scores hold NaN, so nothing can be ranked by them")
        parts = list(windows(part.shape[1], tile[1]))
        right = targets.within(start, start + len(part))
        ranks[start : start + len(part)] = _ranks_of_part(lambda a, b, part=part: part[:, a:b], parts, right, ties)
    return ranks


def embedding_ranks(
    queries: np.ndarray,
    items: np.ndarray,
    targets: Targets | Sequence,
    ties: str = "pessimistic",
    tile: tuple[int, int] = TILE,
) -> np.ndarray:
    """As `target_ranks`, of scalar products of embeddings, of which no more than a tile ever exists.

    Equal items score alike wherever they stand, as long as they are computed alike: all tiles have one shape.

    Args:
        queries: (Q, D).
        items: (N, D).
        targets: see `target_ranks`.
        ties: see `target_ranks`.
        tile: queries and items of a tile. Memory beyond the input is a few times their product, whatever Q and N.

    Returns:
        (Q,) float64, 0-based.

    Raises:
        ValueError: if a query has no target, an embedding is not finite, or `ties` is not known.
    """
    _check_ties(ties)
    for embeds in (queries, items):
        for start in range(0, len(embeds), tile[1]):
            part = embeds[start : start + tile[1]]
            if not (abs(part) < np.inf).all():
                raise ValueError("embeddings are not finite (NaN or infinite), so nothing can be ranked by them")
    targets = Targets.of(targets)
    targets.check(len(queries), len(items))
    ranks = np.empty(len(queries))
    for start in range(0, len(queries), tile[0]):
        part = queries[start : start + tile[0]]
        parts = list(windows(len(items), tile[1]))
        right = targets.within(start, start + len(part))
        scores = lambda a, b, part=part: part @ items[a:b].T  # noqa: E731
        ranks[start : start + len(part)] = _ranks_of_part(scores, parts, right, ties)
    return ranks


def top_ranks(best: Sequence[Sequence], targets: Sequence) -> np.ndarray:
    """Rank of the best-placed right answer in lists of the best items.

    Args:
        best: for each query its best items, best first; lists may differ in length.
        targets: for each query its right item, or a list of them.

    Returns:
        (Q,) float64, 0-based; infinite where no right item is in the list: a miss, whose rank nobody knows.

    Raises:
        ValueError: if the numbers of queries differ or a list names an item twice.
    """
    if len(best) != len(targets):
        raise ValueError(f"there are {len(best)} lists of the best, but right answers of {len(targets)}")
    ranks = np.full(len(best), np.inf)
    for query, (items, right) in enumerate(zip(best, targets, strict=True)):
        places = {item: place for place, item in enumerate(items)}
        if len(places) != len(items):
            raise ValueError(f"the list of query {query} names an item twice")
        wanted = right if isinstance(right, (list, tuple, set, np.ndarray)) else [right]
        ranks[query] = min((places[item] for item in wanted if item in places), default=np.inf)
    return ranks


# --- recall -------------------------------------------------------------------------------------------------------


def recall_at(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries whose 0-based rank is below k, for each k; a miss (an infinite rank) is never below."""
    ranks = np.asarray(ranks, dtype=np.float64)
    if not len(ranks):
        raise ValueError("there is no query, so there is no recall")
    return {k: float((ranks < k).mean()) for k in ks}


def recall_figures(
    ranks: Mapping[str, np.ndarray],
    languages: Mapping[str, Sequence[str]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict:
    """Recall in each direction and language, and their means.

    Args:
        ranks: `ir` (text to image) and, or, `tr` (image to text) -> 0-based ranks of its queries.
        languages: for each direction the language of every query.
        ks: the k of recall at k.

    Returns:
        `{"ir@1": ..., "tr@1": ..., "mean_recall": ...}`, shares between 0 and 1; with languages each figure is the
        mean over languages, and `languages` has those of each one. `mean_recall` is the mean of all figures in both
        directions (r_mean of the literature, in percent there).
    """
    if not languages:
        figures = {f"{way}@{k}": value for way, of_way in ranks.items() for k, value in recall_at(of_way, ks).items()}
        return {**figures, "mean_recall": float(np.mean(list(figures.values())))}
    table: dict[str, dict] = {}
    for way, of_way in ranks.items():
        tags = np.asarray(languages[way])
        if len(tags) != len(of_way):
            raise ValueError(f"{way}: there are {len(of_way)} queries, but languages of {len(tags)}")
        for tag in np.unique(tags):
            figures = recall_at(np.asarray(of_way)[tags == tag], ks)
            table.setdefault(str(tag), {}).update({f"{way}@{k}": value for k, value in figures.items()})
    for own in table.values():
        own["mean_recall"] = float(np.mean(list(own.values())))
    names = dict.fromkeys(name for figures in table.values() for name in figures)
    means = {name: float(np.mean([one[name] for one in table.values() if name in one])) for name in names}
    return {**means, "languages": table}


def embedding_recall(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    text_images: Sequence[int],
    languages: Sequence[str] | None = None,
    *,
    image_groups: Sequence[int] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    ties: str = "pessimistic",
    tile: tuple[int, int] = TILE,
) -> dict:
    """Recall in both directions from embeddings, with any number of captions for an image and of images for a caption.

    In each language the gallery of image-to-text search is that language's captions, and its queries are the images
    that have one.

    Args:
        image_embeds: (N, D).
        text_embeds: (T, D).
        text_images: (T,) row of the image that each text describes.
        languages: (T,) language of each text; without it all texts are one language.
        image_groups: (N,) number of the group of each image; images of a group are all right for its captions. By
            default each image stands alone.
        ks: the k of recall at k.
        ties: see `target_ranks`.
        tile: see `embedding_ranks`.

    Returns:
        See `recall_figures`.
    """
    text_images = np.asarray(text_images, dtype=np.int64)
    groups = np.arange(len(image_embeds)) if image_groups is None else np.asarray(image_groups)
    tags = np.asarray(["all"] * len(text_images) if languages is None else languages)
    of_texts = groups[text_images]
    ir = embedding_ranks(text_embeds, image_embeds, Targets.of_groups(of_texts, groups), ties, tile)
    tr, tr_tags = [], []
    for tag in np.unique(tags):
        texts = np.flatnonzero(tags == tag)
        images = np.flatnonzero(np.isin(groups, of_texts[texts]))
        targets = Targets.of_groups(groups[images], of_texts[texts])
        tr.append(embedding_ranks(image_embeds[images], text_embeds[texts], targets, ties, tile))
        tr_tags += [tag] * len(images)
    ranks = {"ir": ir, "tr": np.concatenate(tr)}
    return recall_figures(ranks, None if languages is None else {"ir": tags.tolist(), "tr": tr_tags}, ks)
