"""Overlap, correlation, gaps, prevalence: by hand and against scipy on the whole order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from ccrk.metrics.consistency import (
    agreement,
    consistency,
    language_gap,
    language_prevalence,
    rank_correlation,
    score_correlation,
    top_overlap,
)


def test_overlap_by_hand():
    assert top_overlap([[1, 2, 3], [4, 5, 6]], [[3, 2, 9], [4, 5, 6]], 3).tolist() == [2 / 3, 1]
    assert top_overlap([[1, 2, 3]], [[3, 2, 9]], 2).tolist() == [1 / 2]
    with pytest.raises(ValueError, match="first 4 cannot be told from a list of 3"):
        top_overlap([[1, 2, 3]], [[3, 2, 9]], 4)
    with pytest.raises(ValueError, match="1 queries in one language and 2 in the other"):
        top_overlap([[1]], [[1], [2]], 1)


def places(items, candidates):
    """Ranks of all candidates; those that are not named share the middle of what is left."""
    ranks = np.full(candidates, (len(items) + candidates - 1) / 2)
    ranks[items] = np.arange(len(items))
    return ranks


@pytest.mark.parametrize("lengths", [(20, 20), (20, 7), (50, 50), (1, 50)])
def test_correlation_of_lists_is_that_of_the_whole_order(lengths):
    rng = np.random.default_rng(0)
    first, second = ([list(rng.permutation(50)[:length]) for _ in range(30)] for length in lengths)
    expected = [spearmanr(places(a, 50), places(b, 50))[0] for a, b in zip(first, second, strict=True)]
    assert rank_correlation(first, second, 50) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(first, first, 50) == pytest.approx(1)


def test_correlation_of_scores():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 5, (2, 10, 30))
    expected = [spearmanr(a, b)[0] for a, b in zip(first, second, strict=True)]
    assert score_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(score_correlation(np.ones((1, 3)), first[:1, :3])).all()


def test_agreement_leaves_out_what_is_missing():
    lists = {"en": [[1, 2], [3, 4]], "de": [[1, 3], None], "fr": [None, [4, 3]]}
    tags, matrix = agreement(lists, 2)
    assert tags == ["en", "de", "fr"]
    assert np.array_equal(matrix, [[1, 0.5, 1], [0.5, 1, np.nan], [1, np.nan, 1]], equal_nan=True)


def test_the_suite():
    lists = {"de": [[1, 2], [3, 4]], "en": [[1, 3], [3, 4]], "fr": [[2, 1], [3, 0]]}
    result = consistency(lists, 5, k=2)
    assert result["reference"] == "en"
    assert result["overlap"] == {"de": 0.75, "fr": 0.5}
    assert result["agreement"] == pytest.approx((0.75 + 0.75 + 0.5) / 3)
    pairs = zip(lists["en"], lists["fr"], strict=True)
    expected = np.mean([spearmanr(places(a, 5), places(b, 5))[0] for a, b in pairs])
    assert result["correlation"]["fr"] == pytest.approx(expected)
    assert consistency({"de": lists["de"], "fr": lists["fr"]}, 5, k=2)["reference"] == "de"
    with pytest.raises(ValueError, match="there is only en"):
        consistency({"en": [[1]]}, 5)


def test_gaps():
    figures = {"en": 0.5, "de": 0.4, "zh": 0.1}
    result = language_gap(figures)
    assert (result["worst"], result["best"], result["reference"]) == ("zh", "en", "en")
    assert result["gap"] == pytest.approx(0.4) and result["lead"] == pytest.approx(0.25)
    assert "lead" not in language_gap({"de": 0.4, "fr": 0.3})
    with pytest.raises(ValueError, match="the reference is 'ja'"):
        language_gap(figures, "ja")


def test_prevalence_by_hand():
    languages = ["en", "en", "de", "de"]
    result = language_prevalence([[0, 1], [1, 2]], languages, 2)
    assert result["share"] == {"de": 0.25, "en": 0.75}
    assert result["ratio"] == {"de": 0.5, "en": 1.5}
    assert result["bias"] == 0.25
    with pytest.raises(ValueError, match="first 3 cannot be told from a list of 2"):
        language_prevalence([[0, 1]], languages, 3)
