"""Which pairs are matched: weights by hand, frequencies, strategies, and the same draws however a batch is cut."""

from __future__ import annotations

from math import log

import pytest
import torch

from ccrk.losses_ccrk import BatchLayout, positive_mask
from ccrk.sampling_ccrk import (
    SamplingRules,
    draw_matching_pairs,
    matched_images,
    negative_weights,
    positive_text_weights,
    sample_matching_pairs,
)

# exp(LOGITS) holds whole numbers, so every softmax is a fraction that can be read off.
LOGITS = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 4.0]], dtype=torch.float64).log()
INDEX = torch.tensor([0, 0, 1])


def test_positive_weights_by_hand():
    # probability: the largest share is 4/8, the epsilon of the shares cancels and one is added
    own = [[1 / 2 - 1 / 4 + 1e-5, 1e-5, 0], [0, 0, 1e-5]]
    torch.testing.assert_close(positive_text_weights(LOGITS, INDEX, "probability"), torch.tensor(own).double())
    # similarity: the largest logit is log 4
    own = [[log(4) + 1e-5, log(2) + 1e-5, 0], [0, 0, 1e-5]]
    torch.testing.assert_close(positive_text_weights(LOGITS, INDEX, "similarity"), torch.tensor(own).double())
    assert positive_text_weights(LOGITS, INDEX, "uniform").tolist() == [[1, 1, 0], [0, 0, 1]]


def test_negative_weights_by_hand():
    for_images, for_texts = negative_weights(LOGITS, INDEX)
    torch.testing.assert_close(
        for_images, torch.tensor([[0, 0, 0.25], [0.375, 0.125, 0]]).double() + 1e-5 * (for_images > 0)
    )
    torch.testing.assert_close(
        for_texts, torch.tensor([[0, 3 / 4], [0, 1 / 3], [1 / 5, 0]]).double() + 1e-5 * (for_texts > 0)
    )


def test_hardness_mixes_with_uniform():
    negatives = ~positive_mask(INDEX, 2)
    for_images, for_texts = negative_weights(LOGITS, INDEX, hardness=0.0)
    torch.testing.assert_close(for_images, negatives.double() / 3)
    torch.testing.assert_close(for_texts, negatives.t().double() / 2)
    hard = negative_weights(LOGITS, INDEX)
    half = negative_weights(LOGITS, INDEX, hardness=0.5)
    torch.testing.assert_close(half[0], (hard[0] + for_images) / 2)
    torch.testing.assert_close(half[1], (hard[1] + for_texts) / 2)


RAGGED = torch.tensor([0, 0, 0, 1, 3, 3, 4])  # image 2 has no text
RAGGED_LOGITS = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)) * 4


@pytest.mark.parametrize("choice", ["probability", "similarity", "uniform"])
@pytest.mark.parametrize("hardness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ids", [None, torch.tensor([5, 6, 5, 5, 8])])
def test_draws_never_take_a_positive_for_a_negative(choice, hardness, ids):
    positives = positive_mask(RAGGED, 5, ids)
    own = positive_mask(RAGGED, 5)
    generator = torch.Generator().manual_seed(3)
    arguments = {"image_ids": ids, "positive_choice": choice, "hardness": hardness, "generator": generator}
    seen = set()
    for _ in range(200):
        pairs = sample_matching_pairs(RAGGED_LOGITS, RAGGED, **arguments)
        assert pairs.image.tolist() == [0, 1, 3, 4]
        assert own[pairs.image, pairs.positive_text].all()
        assert not positives[pairs.negative_image, pairs.positive_text].any()
        assert not positives[pairs.image, pairs.negative_text].any()
        seen.update(pairs.negative_image.tolist())
    assert len(seen) >= 4


def chi_square(draws: torch.Tensor, weights: torch.Tensor) -> float:
    """Pearson's statistic of draws (n,) against the categories' weights, and never a draw of weight 0."""
    counts = torch.bincount(draws, minlength=len(weights)).double()
    expected = weights.double() / weights.sum() * len(draws)
    assert (counts[weights == 0] == 0).all()
    kept = expected > 0
    return float(((counts - expected)[kept] ** 2 / expected[kept]).sum())


@pytest.mark.parametrize("hardness", [0.0, 1.0])
def test_frequencies_follow_the_weights(hardness):
    logits = torch.tensor([[2.0, 1.0, 0.5, 1.5], [1.0, 0.0, 2.0, 0.5], [0.5, 2.0, 1.0, 1.0]])
    index = torch.tensor([0, 0, 1, 2])
    generator = torch.Generator().manual_seed(4)
    draws = [sample_matching_pairs(logits, index, hardness=hardness, generator=generator) for _ in range(2000)]
    positive = torch.stack([d.positive_text for d in draws])
    negative_image = torch.stack([d.negative_image for d in draws])
    negative_text = torch.stack([d.negative_text for d in draws])
    for_images, for_texts = negative_weights(logits, index, hardness=hardness)
    # at most three categories with two degrees of freedom: 18.4 is passed once in 10,000 times
    assert chi_square(positive[:, 0], positive_text_weights(logits, index, "probability")[0]) < 18.4
    for row in range(3):
        assert chi_square(negative_text[:, row], for_images[row]) < 18.4
    for text in range(2):
        assert chi_square(negative_image[positive[:, 0] == text, 0], for_texts[text]) < 18.4


def test_draws_are_reproducible_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second = (
        sample_matching_pairs(RAGGED_LOGITS, RAGGED, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    for name in ("image", "positive_text", "negative_image", "negative_text"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert torch.equal(torch.get_rng_state(), state)
    others = [
        sample_matching_pairs(RAGGED_LOGITS, RAGGED, hardness=0.0, generator=torch.Generator().manual_seed(seed))
        for seed in range(6, 12)
    ]
    assert any(not torch.equal(other.negative_text, first.negative_text) for other in others)


def test_stacked_pairs():
    pairs = sample_matching_pairs(LOGITS, INDEX)
    images, texts, labels = pairs.stacked()
    assert labels.tolist() == [1, 1, 0, 0, 0, 0]
    # with two images the negative image is always the other one, and image 0 can only have text 2 as a negative
    assert images.tolist() == [0, 1, 1, 0, 0, 1]
    assert texts[0] in (0, 1) and texts[1] == 2 and texts[4] == 2 and texts[5] in (0, 1)
    assert texts[:2].tolist() == texts[2:4].tolist()


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("choice", ["probability", "similarity", "uniform"])
def test_the_most_similar_text_can_be_drawn_when_it_is_the_only_one(scale, choice):
    # at the smallest temperature, 0.001, logits reach 1000, where float32 swallows an epsilon of 1e-5
    logits = scale * torch.tensor([[1.0, 0.2], [0.1, 0.9]])
    pairs = sample_matching_pairs(logits, torch.arange(2), positive_choice=choice)
    assert pairs.positive_text.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("index", "num_images", "ids"),
    [([0, 0], 1, None), ([0, 1], 2, torch.tensor([7, 7])), ([0, 1, 1], 2, torch.ones(2))],
)
def test_no_negative_to_be_had(index, num_images, ids):
    with pytest.raises(ValueError, match="at least two images with different ids"):
        sample_matching_pairs(torch.zeros(num_images, len(index)), torch.tensor(index), image_ids=ids)


def test_similarities_that_are_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        sample_matching_pairs(torch.tensor([[0.0, float("nan")], [0.0, 1.0]]), torch.arange(2))


# --- strategies, and batches in parts --------------------------------------------------------------------------------

FIELDS = ("image", "positive_text", "negative_image", "negative_text")
KEYS = torch.randint(2**62, (12,), generator=torch.Generator().manual_seed(9))


def draw(rules: SamplingRules, layout: BatchLayout, logits=RAGGED_LOGITS, largest=lambda top: top):
    """The pairs of a layout over RAGGED."""
    return draw_matching_pairs(
        lambda rows: logits[rows], lambda rows: logits[:, rows].t(), layout, rules, KEYS[:5], KEYS[5:], largest
    )


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'hardest' is not one of"):
        positive_text_weights(LOGITS, INDEX, "hardest")
    with pytest.raises(ValueError, match="negative_strategy 'easy' is not one of"):
        SamplingRules(strategy="easy")


@pytest.mark.parametrize("ids", [None, torch.tensor([5, 6, 5, 5, 8])])
def test_hardest_takes_the_most_similar_negative(ids):
    pairs = sample_matching_pairs(RAGGED_LOGITS, RAGGED, image_ids=ids, strategy="hardest")
    hidden = RAGGED_LOGITS.masked_fill(positive_mask(RAGGED, 5, ids), -torch.inf)
    # rows are compared by their own softmax, which keeps the order within a row
    assert torch.equal(pairs.negative_text, hidden[pairs.image].argmax(1))
    assert torch.equal(pairs.negative_image, hidden[:, pairs.positive_text].argmax(0))


def test_random_does_not_look_at_similarities():
    generator = torch.Generator().manual_seed(8)
    draws = [sample_matching_pairs(RAGGED_LOGITS, RAGGED, strategy="random", generator=generator) for _ in range(2000)]
    negatives = (~positive_mask(RAGGED, 5)).float()
    for place, row in enumerate((0, 1, 3, 4)):
        # at most five degrees of freedom: 26 is passed once in 10,000 times
        assert chi_square(torch.stack([d.negative_text for d in draws])[:, place], negatives[row]) < 26


@pytest.mark.parametrize(("count", "expected"), [(None, 4), (2, 2), (3, 3), (9, 4)])
def test_count_limits_the_images(count, expected):
    layout = BatchLayout.single(RAGGED, 5)
    pairs = draw(SamplingRules(count=count), layout)
    assert len(pairs) == pairs.total == expected
    assert 2 not in pairs.image and pairs.image.tolist() == sorted(set(pairs.image.tolist()))
    assert torch.equal(pairs.image, matched_images(layout, KEYS[:5], count))


def test_every_image_is_matched_as_often():
    layout = BatchLayout.single(RAGGED, 5)
    seen = torch.zeros(5)
    for seed in range(800):
        keys = torch.randint(2**62, (5,), generator=torch.Generator().manual_seed(seed))
        seen[matched_images(layout, keys, 2)] += 1
    assert seen[2] == 0
    assert (seen[[0, 1, 3, 4]] - 400).abs().max() < 60  # four standard deviations are 57


def test_lenient_has_no_pairs_where_others_fail():
    layout = BatchLayout.single(RAGGED, 5, image_ids=torch.full((5,), 3))
    with pytest.raises(ValueError, match="at least two images with different ids"):
        draw(SamplingRules(), layout)
    pairs = draw(SamplingRules(lenient=True), layout)
    assert len(pairs) == pairs.total == 0
    assert all(getattr(pairs, name).dtype == torch.long for name in FIELDS)


@pytest.mark.parametrize("ids", [None, torch.tensor([5, 6, 5, 5, 8])])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positive_choice": "similarity", "hardness": 0.4},
        {"strategy": "hardest", "positive_choice": "uniform"},
        {"strategy": "random", "count": 3},
    ],
)
def test_draws_are_the_same_however_the_batch_is_cut(options, ids):
    whole = draw(SamplingRules(**options), BatchLayout.single(RAGGED, 5, image_ids=ids))
    scores = RAGGED_LOGITS if options.get("positive_choice") == "similarity" else RAGGED_LOGITS.softmax(1)
    top = torch.zeros(()) if options.get("positive_choice") == "uniform" else scores[[0, 1, 3, 4]].max()
    for cuts in ((0, 2, 5), (0, 1, 1, 4, 5)):
        parts = []
        for start, stop in zip(cuts, cuts[1:], strict=False):
            own = int((start > RAGGED).sum()), int((stop > RAGGED).sum())
            layout = BatchLayout(5, RAGGED, (start, stop), own, ids)
            parts.append(draw(SamplingRules(**options), layout, largest=lambda own_top: torch.maximum(own_top, top)))
            assert parts[-1].total == whole.total
        # which text is the positive depends on the largest score of all that are matched
        names = ("image", "negative_text") if options.get("count") else FIELDS
        for name in names:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    for rows_at_once in (1, 3):
        again = draw(SamplingRules(**options, rows_at_once=rows_at_once), BatchLayout.single(RAGGED, 5, image_ids=ids))
        for name in FIELDS:
            assert torch.equal(getattr(again, name), getattr(whole, name)), name


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("choice", ["similarity", "probability"])
def test_the_largest_score_of_all_pieces_counts_wherever_it_is(choice, first):
    """Weights of positives fall with the distance to it; a piece's own largest would make other draws."""
    index = torch.arange(4).repeat_interleave(3)
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    logits[0 if first else 3] *= 20
    layout = BatchLayout.single(index, 4)
    for seed in range(20):
        keys = torch.randint(2**62, (16,), generator=torch.Generator().manual_seed(seed))
        found = [
            draw_matching_pairs(
                lambda rows: logits[rows],
                lambda rows: logits[:, rows].t(),
                layout,
                SamplingRules(choice, rows_at_once=rows_at_once),
                keys[:4],
                keys[4:],
            ).positive_text
            for rows_at_once in (4, 1)
        ]
        assert torch.equal(*found)


def test_parts_of_pairs_keep_the_total():
    pairs = draw(SamplingRules(), BatchLayout.single(RAGGED, 5))
    parts = [pairs.part(0, 3), pairs.part(3, 6)]
    assert [len(part) for part in parts] == [3, 1] and all(part.total == 4 for part in parts)
    assert torch.equal(torch.cat([part.negative_text for part in parts]), pairs.negative_text)
