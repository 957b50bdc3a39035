"""What is said about a model: where ranks were made to show it, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from ccrk.metrics.diagnosis import diagnose
from ccrk.metrics.report_figures import closest_first, growth_over_languages, mrv_of_any

LANGUAGES = ("en", "de", "fr", "ja", "ru", "tr", "zh", "id")


def result(ranks: dict[str, np.ndarray], images: int = 2000) -> dict:
    """Of photos with these ranks, and distractors without captions."""
    columns = {tag: [*column, *[None] * (images - len(column))] for tag, column in ranks.items()}
    items = {"image_ids": list(range(images)), "ranks": columns}
    return {"languages": {tag: {"ir@1": 0.5} for tag in ranks}, "items": items}


def said(ranks: dict[str, np.ndarray], **options) -> list[str]:
    return [text.split(":")[0] for text in diagnose(result(ranks, **options))]


def one_language_misses(rank: float, share: float = 0.2, count: int = 600) -> dict[str, np.ndarray]:
    """Right everywhere, but for a share of the photos that a language, any of them, ranks at `rank`."""
    rng = np.random.default_rng(0)
    table = np.zeros((count, 4))
    rows = np.flatnonzero(rng.random(count) < share)
    table[rows, rng.integers(0, 4, len(rows))] = rank
    return dict(zip(LANGUAGES, table.T, strict=False))


def hits(rates: dict[str, float], count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rank 0 at these rates, else 1."""
    rng = np.random.default_rng(seed)
    return {tag: (rng.random(count) > rate).astype(float) for tag, rate in rates.items()}


# --- good recall with high MRV ------------------------------------------------------------------------------------


def test_good_recall_with_high_mrv():
    ranks = one_language_misses(300)
    (text,) = diagnose(result(ranks))
    table = np.array(list(ranks.values()))
    assert text.startswith("Good recall with high MRV: 95 % of the questions")
    assert f"varies by {table.std(0).mean():.1f} on average" in text
    half = -(-int(np.sum(table.std(0) > 0)) // 2) / table.shape[1]  # each that moves, moves as far
    assert f"Half of that comes from {100 * half:.1f} % of the photos" in text


def test_good_recall_with_low_mrv_and_bad_recall_with_high_mrv():
    assert said(one_language_misses(30)) == []
    bad = {tag: column + 1 for tag, column in one_language_misses(300).items()}
    assert said(bad) == []


def test_what_is_high_depends_on_the_gallery_where_it_is_small():
    ranks = one_language_misses(60, share=0.4, count=100)  # 60 * sqrt(3) / 4 * 0.4: MRV is about 10
    assert 6 < np.array(list(ranks.values())).std(0).mean() < 10
    assert said(ranks, images=100) == ["Good recall with high MRV"]
    assert said(ranks, images=2000) == []


# --- English ahead ------------------------------------------------------------------------------------------------


def test_english_ahead():
    (text,) = diagnose(result(hits({"en": 0.8, "de": 0.6, "fr": 0.6, "zh": 0.5}, 1500)))
    assert text.startswith("English is ahead: it finds 79 % of the photos first") and "bridge language" in text
    assert said(hits({"en-GB": 0.8, "de": 0.6}, 1500)) == ["English is ahead"]


def test_english_is_not_ahead_by_chance_or_of_one_weak_language():
    few = hits({"en": 0.65, "de": 0.6, "fr": 0.6}, 60)
    assert few["en"].mean() < few["de"].mean() and few["en"].mean() < few["fr"].mean(), "a bare lead is there"
    assert "English is ahead" not in said(few)
    assert "English is ahead" not in said(hits({"en": 0.8, "de": 0.8, "fr": 0.8, "zh": 0.3}, 1500))
    assert "English is ahead" not in said(hits({"en": 0.6, "de": 0.8, "fr": 0.8}, 1500))
    assert said(hits({"de": 0.8, "fr": 0.5}, 1500)) == []


# --- MRV that grows -----------------------------------------------------------------------------------------------


def spread(scales, count: int = 800, seed: int = 0, heavy: bool = False) -> dict[str, np.ndarray]:
    """Ranks of 500 and more that each language moves at its scale, photos in common."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(scales), count)) * rng.gamma(1, 1, count)
    table = np.exp(3 + noise) if heavy else 500 + np.array(scales)[:, None] * noise
    return dict(zip(LANGUAGES, np.maximum(np.round(table), 1), strict=False))


def test_mrv_that_grows_with_the_languages():
    (text,) = diagnose(result(spread([1, 1, 1, 1, 20, 20, 20, 20])))
    assert text.startswith("MRV grows with the number of languages:") and "over all 8" in text
    assert set(text.rsplit("Last to join: ", 1)[1].rstrip(".").split(", ")) == {
        "Russian", "Turkish", "Chinese", "Indonesian",
    }  # fmt: skip
    assert said(spread([20, 1, 20, 1, 20, 1, 20, 1])) == ["MRV grows with the number of languages"]


def test_the_order_of_the_languages_does_not_matter():
    ranks = spread([20, 1, 15, 1, 10, 1, 5, 1])
    turned = dict(reversed(ranks.items()))
    one, other = (growth_over_languages(np.array(list(r.values())).T, list(r)) for r in (ranks, turned))
    assert one["order"][2:] == other["order"][2:] and set(one["order"]) == set(LANGUAGES)
    assert one["closest"] == pytest.approx(other["closest"]) and one["any"] == pytest.approx(other["any"])
    assert one["half"]["interchangeable"] == pytest.approx(other["half"]["interchangeable"], rel=0.02)


@pytest.mark.parametrize("heavy", [False, True])
def test_interchangeable_languages_grow_but_that_is_not_told(heavy: bool):
    ranks = spread([5] * 8, heavy=heavy)
    growth = growth_over_languages(np.array(list(ranks.values())).T, LANGUAGES)
    assert growth["any"][-1] > 1.5 * growth["any"][0], "the mild growth is there"
    assert said(ranks) == []


def test_interchangeable_languages_are_rarely_taken_for_others():
    found = [
        growth_over_languages(np.array(list(spread([5] * 4, 60, seed, heavy=True).values())).T, LANGUAGES[:4])["half"]
        for seed in range(80)
    ]
    assert np.mean([half["p"] <= 0.025 for half in found]) <= 0.075  # 0.025 is expected
    assert np.mean([half["p"] for half in found]) == pytest.approx(0.5, abs=0.12)


def test_growth_by_hand():
    table = np.array([[0.0, 0, 4], [0, 0, 4], [0, 0, 4], [2, 2, 6]])
    all_three = np.std([0, 0, 4])
    order, values = closest_first(table)
    assert order == [0, 1, 2] and values == pytest.approx([0, all_three])
    growth = growth_over_languages(table, ["a", "b", "c"])
    assert growth["closest"] == pytest.approx([0, all_three]) and growth["any"] == pytest.approx([4 / 3, all_three])
    assert growth["half"]["size"] == 2 and growth["half"]["closest"] == 0
    # each item has its odd one in any of three languages: all four in the same one in 3 of 81 cases
    assert growth["half"]["p"] == pytest.approx(3 / 81, abs=0.04)
    assert 0 < growth["half"]["interchangeable"] < 4 / 3


def test_the_closest_path_is_what_numpy_says():
    table = np.random.default_rng(0).gamma(1, 20, (40, 6))
    order, values = closest_first(table)
    assert sorted(order) == list(range(6))
    for size, value in enumerate(values, 2):
        assert value == pytest.approx(table[:, order[:size]].std(1).mean())
        if size > 2:
            others = [column for column in range(6) if column not in order[: size - 1]]
            least = min(table[:, [*order[: size - 1], column]].std(1).mean() for column in others)
            assert value == pytest.approx(least)
    pairs = [table[:, [a, b]].std(1).mean() for a in range(6) for b in range(a)]
    assert values[0] == pytest.approx(min(pairs))
    assert closest_first(table, 3) == (order[:3], values[:2])


def test_sets_that_are_too_many_are_drawn():
    table = np.random.default_rng(0).standard_normal((50, 12))
    drawn = [mrv_of_any(table, 6, seed=seed) for seed in range(5)]
    assert drawn[0] == mrv_of_any(table, 6) and len(set(drawn)) == 5
    assert drawn == pytest.approx([np.mean(drawn)] * 5, rel=0.02)
    # half the absolute difference is the standard deviation of two
    pairs = np.abs(table[:, :, None] - table[:, None, :]).sum((1, 2)) / (12 * 11) / 2
    assert mrv_of_any(table, 2) == pytest.approx(pairs.mean())


# --- nothing to say -----------------------------------------------------------------------------------------------


def test_nothing_is_said_about_little():
    assert diagnose({"languages": {"de": {"ir@1": 1.0}}, "items": None}) == []
    assert diagnose(result({"de": np.zeros(100)})) == []
    few = {tag: column[:25] for tag, column in one_language_misses(300, share=1).items()}
    assert diagnose(result(few)) == []
    assert diagnose(result({tag: np.zeros(200) for tag in LANGUAGES})) == []


def test_misses_are_left_out():
    ranks = {tag: [None if r else 0 for r in column] for tag, column in one_language_misses(300).items()}
    assert diagnose(result(ranks)) == []
