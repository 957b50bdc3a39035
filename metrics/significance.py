"""Intervals, and whether two models differ: resampling by scipy, over items.

Values are one number for each item, such as 1 or 0 for a photo found or not, or the variation of its rank. Two models
are compared on the same items, so their values are paired.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BATCH = 256
"""Resamples that scipy draws at once; with all of them at once 10,000 of 100,000 items would be 8 GB."""


def interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of the values and its percentile bootstrap interval.

    Args:
        values: (N,) one for each item.
        confidence: of the interval.
        resamples: how often items are drawn anew.
        seed: of the draws.

    Returns:
        Mean, lower and upper end.

    Raises:
        ValueError: if there are no values or one is not finite.
    """
    from scipy.stats import bootstrap

    values = _checked(values)
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return mean, mean, mean
    found = bootstrap(
        (values,),
        np.mean,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        batch=BATCH,
        rng=np.random.default_rng(seed),
    )
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> dict[str, float]:
    """How far two models differ on the same items, and how likely such a difference is if they do not.

    Args:
        first: (N,) values of the one model.
        second: (N,) values of the other, of the same items.
        confidence: of the interval.
        resamples: of the bootstrap (pairs drawn anew) and of the permutation test (models exchanged at random within
            each pair; all exchanges where there are no more).
        seed: of the draws.

    Returns:
        `difference` (second less first, of the means), `low` and `high` of its interval, `p` (two-sided), `items`.

    Raises:
        ValueError: if the numbers of items differ, or there are none, or a value is not finite.
    """
    from scipy.stats import permutation_test

    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise ValueError(f"one model has values of {len(first)} items, the other of {len(second)}")
    apart = second - first
    difference, low, high = interval(apart, confidence=confidence, resamples=resamples, seed=seed)
    p = 1.0
    if apart.any():
        test = permutation_test(
            (apart,),
            lambda values, axis: values.mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=BATCH,
            rng=np.random.default_rng(seed),
        )
        p = float(test.pvalue)
    return {"difference": difference, "low": low, "high": high, "p": p, "items": len(apart)}


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("there are no values to compare")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite (NaN or infinite); give misses a number first")
    return values
