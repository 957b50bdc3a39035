"""Ranks and recall from scores. Arithmetic only: numpy and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TIES = ("pessimistic", "optimistic", "mean")


def target_ranks(scores: np.ndarray, targets: Sequence[Sequence[int]], ties: str = "pessimistic") -> np.ndarray:
    """Rank of the best-placed right answer of each query.

    Args:
        scores: (Q, N), higher is better.
        targets: for each query the columns that are right; at least one.
        ties: where an item stands among others of equal score: behind them (`pessimistic`), before them
            (`optimistic`) or in their middle (`mean`, which may be a half). Right answers never count against
            one another.

    Returns:
        (Q,) float64, 0-based.

    Raises:
        ValueError: if a query has no target, a score is NaN, or `ties` is not known.
    """
    if ties not in TIES:
        raise ValueError(f"ties is '{ties}'; it is one of {', '.join(TIES)}")
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, so nothing can be ranked by them")
    ranks = np.empty(len(scores))
    for query, row in enumerate(scores):
        right = list(targets[query])
        if not right:
            raise ValueError(f"query {query} has no right answer to rank")
        others = np.delete(row, right)
        best = row[right].max()
        above, level = (others > best).sum(), (others == best).sum()
        ranks[query] = above + {"pessimistic": level, "optimistic": 0, "mean": level / 2}[ties]
    return ranks


def recall_at(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries whose 0-based rank is below k, for each k."""
    ranks = np.asarray(ranks)
    return {k: float((ranks < k).mean()) for k in ks}
