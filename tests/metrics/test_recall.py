"""Ranks and recall, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ccrk.metrics.ccr_recall.recall import recall_at, target_ranks

SCORES = np.array([[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [0.1, 0.7, 0.6, 0.8]])


@pytest.mark.parametrize(
    ("ties", "expected"), [("pessimistic", [2, 3, 1]), ("optimistic", [1, 0, 1]), ("mean", [1.5, 1.5, 1])]
)
def test_ties(ties, expected):
    assert target_ranks(SCORES, [[1], [0], [1]], ties).tolist() == expected


def test_right_answers_do_not_count_against_one_another():
    assert target_ranks(SCORES, [[1, 2], [0, 1, 2, 3], [1, 3]]).tolist() == [1, 0, 0]


def test_recall_counts_ranks_below_k():
    assert recall_at(np.array([0, 1, 4, 5, 9, 10])) == {1: 1 / 6, 5: 0.5, 10: 5 / 6}


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        target_ranks(SCORES, [[0], [], [0]])
    with pytest.raises(ValueError, match="NaN"):
        target_ranks(np.array([[np.nan, 1.0]]), [[0]])
    with pytest.raises(ValueError, match="ties is 'lucky'"):
        target_ranks(SCORES, [[0]] * 3, "lucky")
