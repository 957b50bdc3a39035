"""MRV in its three readings: by hand, against a plain version, with misses, missing languages, directions."""

from __future__ import annotations

import numpy as np
import pytest

from ccrk.metrics.ccr_recall.recall import target_ranks
from ccrk.metrics.mrv.rank_variation import fill_misses, mean_rank_variance, rank_of, rank_table, rank_variation

FIGURES = ("mrv", "std", "variance", "mad")


def test_by_hand():
    # item 0: ranks 0 and 4, mean 2, deviations 2 and 2; item 1: ranks 3 and 3
    result = mean_rank_variance({"en": [0, 3], "de": [4, 3]})
    assert [result[name] for name in FIGURES] == [1.0, 1.0, 2.0, 1.0]
    assert result["languages"] == ["en", "de"]
    assert (result["items"], result["left_out"], result["missed"]) == (2, 0, 0)


@pytest.mark.parametrize("statistic", ["std", "variance", "mad"])
def test_the_statistic_that_mrv_is(statistic):
    result = mean_rank_variance({"en": [0, 3], "de": [4, 5], "fr": [9, 1]}, statistic=statistic)
    assert result["mrv"] == result[statistic]
    assert result["statistic"] == statistic


def test_three_languages_and_the_offset():
    ranks = np.array([[0, 5], [3, 5], [6, 8]])
    expected_std = (np.sqrt(6) + np.sqrt(2)) / 2
    for offset in (0, 1, 100):
        result = mean_rank_variance(ranks + offset)
        assert result["std"] == pytest.approx(expected_std)
        assert result["variance"] == pytest.approx(4)
        assert result["mad"] == pytest.approx((2 + 4 / 3) / 2)


def test_languages_may_differ_from_item_to_item():
    rows = [{"en": 0, "de": 4}, {"en": 3, "fr": 3.5, "de": 1}, {"fr": 7}]
    result = mean_rank_variance(rows)
    stds = [2.0, np.std([3, 3.5, 1])]
    assert result["std"] == pytest.approx(np.mean(stds))
    assert (result["items"], result["left_out"]) == (2, 1)
    two = mean_rank_variance(rows, languages=["fr", "de"])
    assert two["std"] == pytest.approx(np.std([3.5, 1]))
    assert (two["items"], two["left_out"]) == (1, 2)


def test_misses_by_hand():
    ranks = {"en": [0, 2, None], "de": [None, 1, None], "fr": [1, None, 0]}
    filled = {
        "rank_k": [[0, 3, 1], [2, 1, 3], [3, 3, 0]],
        "mean_of_rest": [[0, 6, 1], [2, 1, 6], [6, 6, 0]],  # places 3 to 9 of 10
        "drop": [[0, 1], [2, 1], [0]],
    }
    for policy, rows in filled.items():
        result = mean_rank_variance(ranks, misses=policy, top_k=3, candidates=10)
        kept = [np.std(row) for row in rows if len(row) > 1]
        assert result["std"] == pytest.approx(np.mean(kept))
        assert (result["items"], result["missed"]) == (len(kept), 4)
    as_array = np.array([[0, 2, np.inf], [np.inf, 1, np.inf], [1, np.inf, 0]])
    for policy in filled:
        options = {"misses": policy, "top_k": 3, "candidates": 10}
        assert mean_rank_variance(as_array, **options)["mad"] == mean_rank_variance(ranks, **options)["mad"]


def test_directions_are_averaged():
    there, back = {"en": [0, 3], "de": [4, 3]}, {"en": [0], "de": [10]}
    both = {"text-to-image": there, "image-to-text": back}
    result = mean_rank_variance(both)
    assert result["mrv"] == (1.0 + 5.0) / 2
    assert result["directions"]["image-to-text"] == mean_rank_variance(back)
    assert mean_rank_variance(both, directions="text-to-image")["mrv"] == 1.0
    with pytest.raises(ValueError, match="no ranks are given for 'image-to-text'"):
        mean_rank_variance({"text-to-image": there}, directions="image-to-text")
    with pytest.raises(ValueError, match="these ranks have no directions"):
        mean_rank_variance(there, directions="text-to-image")


def test_preset_of_the_paper():
    rows = [{"en": 0, "de": None, "ja": 2, "zh": 1, "fr": 100}]
    result = mean_rank_variance(rows, preset="paper", top_k=128, candidates=2000)
    assert result["mrv"] == pytest.approx(np.std([0, (128 + 1999) / 2, 2, 1]))
    assert result["languages"] == ["en", "de", "ja", "zh"]
    assert mean_rank_variance(rows, preset="paper", misses="drop")["mrv"] == pytest.approx(np.std([0, 2, 1]))
    with pytest.raises(ValueError, match="no rank is given for 'ja'"):
        mean_rank_variance([{"en": 0, "de": 1}], preset="paper")


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = np.sqrt(2 / np.pi) * 3 / np.sqrt(2)  # mean |a - b| / 2 of two normal variables of deviation 3
    covered = 0
    for seed in range(200):
        ranks = rng.normal(50, 3, (2, 80))
        result = mean_rank_variance(ranks, bootstrap=300, seed=seed)
        assert result["low"] < result["mrv"] < result["high"]
        covered += result["low"] < truth < result["high"]
    assert 178 <= covered <= 199  # 190 expected; percentile intervals of 80 items are a little short
    assert mean_rank_variance(ranks, bootstrap=300, seed=1) == mean_rank_variance(ranks, bootstrap=300, seed=1)


def test_against_a_plain_version():
    rng = np.random.default_rng(1)
    table = rng.integers(0, 500, (300, 6)).astype(float)
    table[rng.random(table.shape) < 0.3] = np.nan
    expected = {"std": [], "variance": [], "mad": []}
    for row in table:
        row = row[~np.isnan(row)]
        if len(row) < 2:
            continue
        expected["std"].append(np.std(row))
        expected["variance"].append(np.var(row))
        expected["mad"].append(np.mean([abs(x - sum(row) / len(row)) for x in row]))
    found = rank_variation(table)
    for name, values in expected.items():
        assert np.abs(found[name][~np.isnan(found[name])] - values).max() < 1e-12 * max(values)


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "mean"])
def test_the_rank_of_one_row_is_that_of_the_recall_metric(ties):
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 4, (50, 9))
    right = [rng.choice(9, rng.integers(1, 4), replace=False) for _ in scores]
    assert [rank_of(row, one, ties) for row, one in zip(scores, right, strict=True)] == target_ranks(
        scores, right, ties
    ).tolist()


def test_what_has_no_mrv_is_refused():
    for ranks, message in (
        ({"en": [1], "de": [1, 2]}, r"\[1, 2\] items"),
        ({"en": [], "de": []}, r"\[0\] items"),
        ({"en": [1.0], "de": [float("nan")]}, "a rank in 'de' is nan"),
        ([{"en": 1, "de": -1}], "the rank of item 0 in 'de' is -1"),
        ({"en": [1, 2]}, "there is only 'en'"),
        ([{"en": 1}, {"de": 2}], "no item has ranks in two languages"),
        ({"en": [1], "de": [None]}, "1 ranks are misses; say what they count as"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_rank_variance(ranks)
    ranks = {"en": [1], "de": [None]}
    for options, message in (
        ({"misses": "worst"}, "misses is 'worst'"),
        ({"misses": "rank_k"}, "needs top_k"),
        ({"misses": "mean_of_rest", "top_k": 5}, "needs top_k and candidates"),
        ({"misses": "rank_k", "top_k": 1}, "a rank is 1, but only the first 1 places"),
        ({"misses": "mean_of_rest", "top_k": 5, "candidates": 5}, "nothing is left below the first 5 of 5"),
        ({"statistic": "range"}, "statistic is 'range'"),
        ({"preset": "thesis"}, "preset is 'thesis'"),
        ({"languages": ["en", "fr"]}, "no rank is given for 'fr'"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_rank_variance(ranks, **options)
    assert not np.isinf(fill_misses(rank_table(ranks)[0], "drop")).any()
