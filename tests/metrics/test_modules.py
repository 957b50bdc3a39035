"""The two modules of `evaluate`, loaded by path as a user would, offline."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

evaluate = pytest.importorskip("evaluate")


@pytest.fixture(scope="module")
def load(checkout):
    return lambda name, *config: evaluate.load(str(checkout / "metrics" / name), *config)


def test_mrv_of_ranks(load):
    mrv = load("mrv")
    rows = [{"en": 0, "de": 4}, {"en": 3, "de": 3.5, "fr": 3}, {"fr": 1}]
    result = mrv.compute(predictions=rows)
    assert result["mrv"] == pytest.approx((2 + np.std([3, 3.5, 3])) / 2)
    assert result["left_out"] == 1
    mrv.add(prediction=rows[0])
    mrv.add_batch(predictions=rows[1:])
    assert mrv.compute() == result
    missed = mrv.compute(predictions=[{"en": 0, "de": None}], misses="rank_k", top_k=20, bootstrap=10)
    assert missed["mrv"] == 10 and missed["low"] == 10
    with pytest.raises(ValueError, match="1 ranks are misses"):
        mrv.compute(predictions=[{"en": 0, "de": None}])


def test_mrv_of_scores(load):
    mrv = load("mrv", "scores")
    queries = [
        {"item": "a", "language": "en", "scores": [0.1, 0.9, 0.9]},
        {"item": "a", "language": "de", "scores": [0.9, 0.8, 0.7]},
        {"item": "b", "language": "en", "scores": [0.9, 0.8]},
        {"item": "b", "language": "de", "scores": [0.9, 0.8]},
    ]
    right = [[1], [2, 1], [0], [1]]
    for ties, rank in (("pessimistic", 1), ("optimistic", 0), ("mean", 0.5)):
        result = mrv.compute(predictions=queries, references=right, ties=ties)
        assert result["mrv"] == pytest.approx((abs(1 - rank) / 2 + 0.5) / 2)
    with pytest.raises(ValueError, match="item 'a' is asked for twice in 'en'"):
        mrv.compute(predictions=[queries[0], queries[0]], references=[[1], [1]])


def test_recall_of_scores_and_of_lists(load):
    scores = [[0.9, 0.1, 0.0], [0.8, 0.2, 0.3], [0.5, 0.5, 0.5]]
    right = [[0], [1, 2], [0]]
    recall = load("ccr_recall")
    assert recall.compute(predictions=scores, references=right, ks=[1, 2]) == {
        "ir@1": pytest.approx(1 / 3),
        "ir@2": pytest.approx(2 / 3),
        "mean_recall": 0.5,
    }
    assert recall.compute(predictions=scores, references=right, ks=[1], ties="optimistic")["ir@1"] == 2 / 3
    split = recall.compute(predictions=scores, references=right, ks=[1], languages=["en", "de", "de"], direction="tr")
    assert split["languages"]["en"]["tr@1"] == 1 and split["tr@1"] == 0.5
    lists = load("ccr_recall", "top")
    assert lists.compute(predictions=[[0, 2], [0, 2], [1, 2]], references=right, ks=[1, 2])["ir@2"] == 2 / 3
    with pytest.raises(ValueError, match="recall at 3 cannot be told from a list of 2"):
        lists.compute(predictions=[[0, 2]], references=[[0]], ks=[3])


def test_combined(load):
    both = evaluate.combine([load("mrv"), load("mrv")])
    assert both.compute(predictions=[{"en": 0, "de": 4}])["mrv_0_mrv"] == 2


def test_unknown_configurations_are_refused(load):
    with pytest.raises(ValueError, match="the configuration is 'lists'"):
        load("mrv", "lists")
    with pytest.raises(ValueError, match="the configuration is 'lists'"):
        load("ccr_recall", "lists")


def test_a_module_folder_works_where_ccrk_is_not(checkout, tmp_path):
    """As from the Hub: the folder alone, in a process that cannot import the package."""
    import shutil

    shutil.copytree(checkout / "metrics" / "mrv", tmp_path / "mrv")
    code = (
        "import sys; sys.modules['ccrk'] = None\n"
        "import evaluate\n"
        "print(evaluate.load(sys.argv[1]).compute(predictions=[{'en': 0, 'de': 4}])['mrv'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "mrv")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "2.0", done.stderr[-2000:]
