"""MRV in its three readings, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ccrk.metrics.mrv.rank_variation import mean_rank_variance


def test_by_hand():
    # item 0: ranks 0 and 4, mean 2, deviations 2 and 2; item 1: ranks 3 and 3
    result = mean_rank_variance({"en": [0, 3], "de": [4, 3]})
    assert result == {"mrv": 1.0, "std": 1.0, "variance": 2.0, "mad": 1.0}


def test_three_languages_and_the_offset():
    ranks = np.array([[0, 5], [3, 5], [6, 8]])
    expected_std = (np.sqrt(6) + np.sqrt(2)) / 2
    for offset in (0, 1, 100):
        result = mean_rank_variance(ranks + offset)
        assert result["std"] == pytest.approx(expected_std)
        assert result["variance"] == pytest.approx(4)
        assert result["mad"] == pytest.approx((2 + 4 / 3) / 2)


def test_what_has_no_mrv_is_refused():
    with pytest.raises(ValueError, match=r"\[1, 2\] items"):
        mean_rank_variance({"en": [1], "de": [1, 2]})
    with pytest.raises(ValueError, match="NaN"):
        mean_rank_variance({"en": [1.0], "de": [float("nan")]})
