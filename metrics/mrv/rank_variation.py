"""Mean rank variation: how much the rank of one item differs between languages. Numpy and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def mean_rank_variance(ranks: Mapping[str, Sequence[float]] | np.ndarray) -> dict[str, float]:
    r"""MRV in its three readings, for ranks of the same items in several languages.

    With r_jk the rank of item j in language k and r_j their mean over the K languages:
    std = mean over j of sqrt(mean over k of (r_jk - r_j)^2), the authors' script and the scale of the published
    tables; variance = the same without the root, as the metric's name has it; mad = mean |r_jk - r_j|.

    Args:
        ranks: language -> ranks of items 0..N-1, or an array (K, N). The offset of ranks does not matter.

    Returns:
        `mrv` (= std), `std`, `variance` and `mad`; lower is more consistent.

    Raises:
        ValueError: if languages have different numbers of items, there are no items, or a rank is NaN.
    """
    rows = list(ranks.values()) if isinstance(ranks, Mapping) else list(ranks)
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"MRV needs the ranks of the same items in every language, but got {sorted(lengths)} items")
    table = np.asarray(rows, dtype=np.float64)
    if np.isnan(table).any():
        raise ValueError("a rank is NaN")
    deviation = table - table.mean(0)
    variance = (deviation**2).mean(0)
    std = float(np.sqrt(variance).mean())
    return {"mrv": std, "std": std, "variance": float(variance.mean()), "mad": float(np.abs(deviation).mean())}
