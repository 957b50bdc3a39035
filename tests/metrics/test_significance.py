"""Intervals and tests: known cases, and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from ccrk.metrics.significance import interval, paired_difference


def test_the_exact_test_of_few_items():
    # 5 differences of one sign: 2 of the 32 ways to exchange are as extreme
    result = paired_difference([0, 0, 0, 0, 0], [1, 2, 3, 4, 5])
    assert result["p"] == pytest.approx(2 / 32)
    assert result["difference"] == 3 and result["low"] < 3 < result["high"] and result["items"] == 5


def test_no_difference_at_all():
    result = paired_difference([1, 0, 1], [1, 0, 1])
    assert result == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "items": 3}


def test_equal_models_are_seldom_told_apart_and_different_ones_are():
    rng = np.random.default_rng(0)
    wrong, missed = 0, 0
    for seed in range(60):
        first = rng.random(200) < 0.5
        second = np.where(rng.random(200) < 0.3, rng.random(200) < 0.5, first)
        wrong += paired_difference(first, second, resamples=499, seed=seed)["p"] < 0.05
        better = np.where(rng.random(200) < 0.3, rng.random(200) < 0.95, first)
        missed += paired_difference(first, better, resamples=499, seed=seed)["p"] >= 0.05
    assert wrong <= 8 and missed <= 6


def test_the_interval_of_a_mean():
    values = np.arange(1000) % 2
    mean, low, high = interval(values)
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.5 - 0.031, 0.5 + 0.031), abs=0.004)  # 1.96 * 0.5 / sqrt(1000)
    assert interval(values, seed=1) == interval(values, seed=1)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="2 items, the other of 1"):
        paired_difference([0, 1], [1])
    with pytest.raises(ValueError, match="no values"):
        interval([])
    with pytest.raises(ValueError, match="not finite"):
        interval([np.inf])
