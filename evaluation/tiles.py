"""Best matches of embeddings, tile by tile: the matrix of all similarities never exists."""

from __future__ import annotations

import torch

from ccrk.metrics.ccr_recall.recall import TILE, windows


def _check(queries: torch.Tensor, gallery: torch.Tensor) -> None:
    if not (queries.isfinite().all() and gallery.isfinite().all()):
        raise ValueError("embeddings are not finite (NaN or infinite), so nothing can be ranked by them")


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
        tile: queries and items of a tile; the keys of its best matches are twice as large as its similarities.

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
        for begin, end, seen in windows(len(gallery), tile[1]):
            columns = torch.arange(begin + seen, end, device=device)
            keys = _to_keys((part @ gallery[begin:end].to(device).t())[:, seen:], columns)
            kept = torch.cat([kept, keys.topk(min(count, keys.shape[1]), dim=1).values], 1)
            kept = kept.topk(min(count, kept.shape[1]), dim=1).values
        found = _from_keys(kept)
        scores[start : start + len(part)], items[start : start + len(part)] = found[0].cpu(), found[1].cpu()
    return scores, items
