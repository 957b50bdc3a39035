"""Ranks and best matches of embeddings, tile by tile: the matrix of all similarities never exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

TILE = (1024, 4096)
"""Queries and items of a tile; its similarities are 16 MiB, and the keys of its best matches twice that."""


@dataclass
class Targets:
    """The right answers of queries as pairs, sorted by query.

    Attributes:
        queries: (P,) row of the query.
        items: (P,) row of an item that is right for it.
    """

    queries: torch.Tensor
    items: torch.Tensor

    @classmethod
    def of_lists(cls, targets: Sequence[Sequence[int]]) -> Targets:
        """From the right items of each query in turn."""
        counts = torch.tensor([len(right) for right in targets], dtype=torch.long)
        items = torch.tensor([int(item) for right in targets for item in right], dtype=torch.long)
        return cls(torch.arange(len(counts)).repeat_interleave(counts), items)

    @classmethod
    def of_groups(cls, queries: np.ndarray, items: np.ndarray) -> Targets:
        """Every item that has the group of the query, for group numbers `queries (Q,)` and `items (N,)`."""
        order = np.argsort(items, kind="stable")
        first, last = (np.searchsorted(items[order], queries, side) for side in ("left", "right"))
        counts = last - first
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found = order[np.repeat(first, counts) + offsets]
        return cls(torch.from_numpy(np.repeat(np.arange(len(queries)), counts)), torch.from_numpy(found))

    def within(self, start: int, stop: int) -> Targets:
        """Those of the queries from `start` up to `stop`, which count from 0 again."""
        first, last = torch.searchsorted(self.queries, torch.tensor([start, stop])).tolist()
        return Targets(self.queries[first:last] - start, self.items[first:last])


def _windows(total: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end and number of columns already seen of each window over `total` columns.

    All windows have the same width, so the last one reaches back over its neighbour. A product of matrices may add up
    in another order for another shape, and equal items in different windows would then not score alike.
    """
    for start in range(0, total, size):
        begin = max(0, min(start, total - size))
        yield begin, min(begin + size, total), start - begin


def _check(queries: torch.Tensor, gallery: torch.Tensor) -> None:
    if not (queries.isfinite().all() and gallery.isfinite().all()):
        raise ValueError("embeddings are not finite (NaN or infinite), so nothing can be ranked by them")


@torch.inference_mode()
def tiled_ranks(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    targets: Targets | Sequence[Sequence[int]],
    *,
    device: torch.device | str = "cpu",
    tile: tuple[int, int] = TILE,
) -> np.ndarray:
    """Rank of the best-placed right item of each query, as `target_ranks` of the recall metric has it.

    The rank is the number of items that score at least as high as the best right one, other right ones left out:
    ties count against the query. Memory beyond the input is a few times the product of the tile's two sides,
    whatever the numbers of queries and items.

    Args:
        queries: (Q, D).
        gallery: (N, D); the score is the scalar product.
        targets: the right items of each query, at least one.
        device: where tiles are computed.
        tile: queries and items of a tile.

    Returns:
        (Q,) float64, 0-based.

    Raises:
        ValueError: if a query has no target or an embedding is not finite.
    """
    _check(queries, gallery)
    if not isinstance(targets, Targets):
        targets = Targets.of_lists(targets)
    missing = torch.bincount(targets.queries, minlength=len(queries)).eq(0).nonzero()
    if len(missing):
        raise ValueError(f"query {int(missing[0])} has no right answer to rank")
    ranks = np.empty(len(queries))
    for start in range(0, len(queries), tile[0]):
        part = queries[start : start + tile[0]].to(device)
        right = targets.within(start, start + len(part))
        rows, items = right.queries.to(device), right.items.to(device)
        best = torch.full((len(part),), -torch.inf, dtype=part.dtype, device=device)
        # first the score to beat, from the tiles that hold a right item; then all tiles are counted
        for begin, end, seen in _windows(len(gallery), tile[1]):
            here = (items >= begin + seen) & (items < end)
            if here.any():
                scores = part @ gallery[begin:end].to(device).t()
                best = best.scatter_reduce(0, rows[here], scores[rows[here], items[here] - begin], "amax")
        above = torch.zeros(len(part), dtype=torch.long, device=device)
        for begin, end, seen in _windows(len(gallery), tile[1]):
            scores = part @ gallery[begin:end].to(device).t()
            here = (items >= begin + seen) & (items < end)
            scores[rows[here], items[here] - begin] = -torch.inf
            above += (scores[:, seen:] >= best[:, None]).sum(1)
        ranks[start : start + len(part)] = above.cpu().numpy()
    return ranks


def _to_keys(scores: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Whole numbers whose order is that of the scores, and that of equal scores the reverse of their items'."""
    bits = (scores.float() + 0.0).view(torch.int32)  # adding zero turns -0 into 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - items)


def _from_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ordered = (keys >> 32).int()
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return scores, 0xFFFFFFFF - (keys & 0xFFFFFFFF)


@torch.inference_mode()
def best_matches(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    count: int,
    *,
    device: torch.device | str = "cpu",
    tile: tuple[int, int] = TILE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best items of each query, merged over tiles; of equal scores the earlier item comes first.

    Args:
        queries: (Q, D) float32.
        gallery: (N, D) float32.
        count: how many, at most N are given.
        device: where tiles are computed.
        tile: queries and items of a tile.

    Returns:
        Scores (Q, count), descending, and rows of the gallery (Q, count).

    Raises:
        ValueError: if an embedding is not finite.
    """
    _check(queries, gallery)
    count = min(count, len(gallery))
    scores, items = torch.empty(len(queries), count), torch.empty(len(queries), count, dtype=torch.long)
    for start in range(0, len(queries), tile[0]):
        part = queries[start : start + tile[0]].to(device)
        kept = torch.empty((len(part), 0), dtype=torch.long, device=device)
        for begin, end, seen in _windows(len(gallery), tile[1]):
            columns = torch.arange(begin + seen, end, device=device)
            keys = _to_keys((part @ gallery[begin:end].to(device).t())[:, seen:], columns)
            kept = torch.cat([kept, keys.topk(min(count, keys.shape[1]), dim=1).values], 1)
            kept = kept.topk(min(count, kept.shape[1]), dim=1).values
        found = _from_keys(kept)
        scores[start : start + len(part)], items[start : start + len(part)] = found[0].cpu(), found[1].cpu()
    return scores, items
