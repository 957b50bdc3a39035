from __future__ import annotations

from math import log

import pytest
import torch

from ccrk.losses_ccrk import matching_loss, mlm_loss, one_to_k, one_to_one, positive_mask
from ccrk.sampling_ccrk import negative_weights, positive_text_weights, sample_matching_pairs

# exp(LOGITS) holds whole numbers, so every softmax is a fraction that can be read off.
#   rows sum to 4 and 8:       1/4 2/4 1/4 | 3/8 1/8 4/8
#   columns sum to 4, 3 and 5: 1/4 3/4     | 2/3 1/3     | 1/5 4/5
LOGITS = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 4.0]], dtype=torch.float64).log()
INDEX = torch.tensor([0, 0, 1])  # texts 0 and 1 describe image 0, text 2 image 1


def value(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64)


def test_positive_mask_by_row_and_by_id():
    assert positive_mask(INDEX, 2).tolist() == [[True, True, False], [False, False, True]]
    shared = positive_mask(torch.tensor([0, 1, 2]), 3, torch.tensor([7, 9, 7]))
    assert shared.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_official_by_hand():
    # images: (-log 1/4 - log 2/4) / 2 and -log 4/8; texts: -log 1/4 / 2, -log 2/3 / 2, -log 4/5 / 1, mean of three
    image_to_text = (log(8) / 2 + log(2)) / 2  # 0.86643
    text_to_image = (log(4) / 2 + log(3 / 2) / 2 + log(5 / 4)) / 3  # 0.37301
    loss = one_to_k(LOGITS, INDEX)
    torch.testing.assert_close(loss, value((image_to_text + text_to_image) / 2))
    assert loss.item() == pytest.approx(0.6197209, abs=1e-7)


def test_balanced_by_hand():
    # as above, but the texts of an image are averaged and then the two images
    text_to_image = ((log(4) + log(3 / 2)) / 2 + log(5 / 4)) / 2  # 0.55951
    loss = one_to_k(LOGITS, INDEX, variant="balanced")
    torch.testing.assert_close(loss, value(((log(8) / 2 + log(2)) / 2 + text_to_image) / 2))
    assert loss.item() == pytest.approx(0.7129728, abs=1e-6)


def test_divisor_by_hand():
    # sums over positives, mean over two images and over three texts, all divided by 3
    by_hand = ((log(8) + log(2)) / 2 + (log(4) + log(3 / 2) + log(5 / 4)) / 3) / 2 / 3
    torch.testing.assert_close(one_to_k(LOGITS, INDEX, divisor=3.0), value(by_hand))


def test_order_of_the_texts_does_not_matter():
    order = torch.tensor([2, 0, 1])
    for variant in ("official", "balanced"):
        expected = one_to_k(LOGITS, INDEX, variant=variant)
        torch.testing.assert_close(one_to_k(LOGITS[:, order], INDEX[order], variant=variant), expected)


def test_one_text_per_image_makes_all_variants_equal():
    logits = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    index = torch.arange(5)
    expected = (
        torch.nn.functional.cross_entropy(logits, index) + torch.nn.functional.cross_entropy(logits.t(), index)
    ) / 2
    for loss in (one_to_k(logits, index), one_to_k(logits, index, variant="balanced"), one_to_one(logits)):
        torch.testing.assert_close(loss, expected)


def test_shared_ids_share_the_label_mass():
    # images 0 and 1 show the same thing: both texts are positives of both, each with label mass 1/2
    logits = torch.tensor([[1.0, 2.0, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 2.0]], dtype=torch.float64).log()
    ids = torch.tensor([7, 7, 9])
    # rows: (-log 1/4 - log 2/4) / 2 twice, then -log 2/4; the matrix is symmetric, so columns give the same
    by_hand = (log(8) / 2 + log(8) / 2 + log(2)) / 3
    torch.testing.assert_close(one_to_one(logits, ids), value(by_hand))
    assert one_to_one(logits, ids) != one_to_one(logits)
    torch.testing.assert_close(one_to_one(logits, torch.tensor([4, 5, 6])), one_to_one(logits))


def test_shared_ids_with_several_texts():
    # image 0 has texts 0 and 1, image 1 text 2, and both have one id: every text is a positive of every image
    ids = torch.tensor([3, 3])
    image_terms = [(log(4) + log(2) + log(4)) / 3, (log(8 / 3) + log(8) + log(2)) / 3]
    text_terms = [(log(4) + log(4 / 3)) / 2, (log(3 / 2) + log(3)) / 2, (log(5) + log(5 / 4)) / 2]
    official = (sum(image_terms) / 2 + (text_terms[0] / 2 + text_terms[1] / 2 + text_terms[2]) / 3) / 2
    torch.testing.assert_close(one_to_k(LOGITS, INDEX, image_ids=ids), value(official))


@pytest.mark.parametrize("variant", ["official", "balanced"])
def test_an_image_without_texts_is_a_negative_only(variant):
    # its row adds to the columns: they sum to 5, 4 and 6 with a third image of exp(logit) = 1
    logits = torch.cat([LOGITS, torch.zeros(1, 3, dtype=torch.float64)])
    texts = log(5) / 2, log(2) / 2, log(6 / 4)
    text_to_image = sum(texts) / (3 if variant == "official" else 2)
    by_hand = ((log(8) / 2 + log(2)) / 2 + text_to_image) / 2
    torch.testing.assert_close(one_to_k(logits, INDEX, variant=variant), value(by_hand))


@pytest.mark.parametrize("variant", ["official", "balanced"])
@pytest.mark.parametrize("count", [1, 2, 6, 10])
def test_perfect_alignment_leaves_half_the_log_of_k(variant, count):
    # the other positives stand in the denominator: an image's share of its K texts cannot pass 1/K each
    index = torch.arange(4).repeat_interleave(count)
    logits = 200 * positive_mask(index, 4).double()
    torch.testing.assert_close(one_to_k(logits, index, variant=variant), value(log(count) / 2))


@pytest.mark.parametrize(
    "arguments", [{}, {"variant": "balanced"}, {"divisor": 2.0}, {"image_ids": torch.tensor([1, 2, 1])}]
)
def test_gradients(arguments):
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    index = torch.tensor([0, 2, 0, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda x: one_to_k(x, index, **arguments), (logits,))


def test_gradients_of_one_to_one():
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: one_to_one(x, torch.tensor([0, 1, 0, 2])), (logits,))


def test_large_logits_stay_finite():
    logits = (LOGITS.float() * 1000).requires_grad_()
    loss = one_to_k(logits, INDEX)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match="'fair' is not one of"):
        one_to_k(LOGITS, INDEX, variant="fair")
    with pytest.raises(ValueError, match="divisor belongs to the variant 'official', not to 'balanced'"):
        one_to_k(LOGITS, INDEX, variant="balanced", divisor=2)
    with pytest.raises(ValueError, match="2 images and 3 texts"):
        one_to_one(LOGITS)
    with pytest.raises(ValueError, match="'hardest' is not one of"):
        positive_text_weights(LOGITS, INDEX, "hardest")


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


def test_matching_loss_by_hand():
    # shares of class 1: 3/4 (a match) and 1/5 (not one)
    logits = torch.tensor([[1.0, 3.0], [4.0, 1.0]]).log()
    loss = matching_loss(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(loss, torch.tensor((log(4 / 3) + log(5 / 4)) / 2))


def test_mlm_loss_by_hand_ignores_what_is_not_masked():
    logits = torch.tensor([[1.0, 3.0], [4.0, 1.0], [1.0, 9.0]]).log()
    loss = mlm_loss(logits, torch.tensor([1, 0, -100]))
    torch.testing.assert_close(loss, torch.tensor((log(4 / 3) + log(5 / 4)) / 2))


@pytest.mark.parametrize("labels", [[-100, -100], []])
def test_mlm_loss_with_nothing_masked_is_zero(labels):
    logits = torch.randn(len(labels), 5, requires_grad=True)
    loss = mlm_loss(logits, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
