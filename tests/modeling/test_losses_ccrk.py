from __future__ import annotations

from math import log

import pytest
import torch

from ccrk.losses_ccrk import (
    CONTRASTIVE_VARIANTS,
    BatchLayout,
    contrastive_share,
    matching_loss,
    mlm_loss,
    one_to_k,
    one_to_one,
    positive_mask,
    sigmoid_one_to_k,
    weigh_positives,
)

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


# --- weights of captions, sigmoid, guidance --------------------------------------------------------------------------

WEIGHTS = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)


def test_text_weights_by_hand():
    # image 0: weights 3/4 and 1/4, image 1 has one text; the mean over both images
    image_to_text = (3 / 4 * log(4) + 1 / 4 * log(2)) / 2 + log(2) / 2
    balanced = (image_to_text + (3 / 4 * log(4) + 1 / 4 * log(3 / 2)) / 2 + log(5 / 4) / 2) / 2
    torch.testing.assert_close(one_to_k(LOGITS, INDEX, variant="balanced", text_weights=WEIGHTS), value(balanced))
    # official: a mean over texts of total weight 6, each divided by the weight of its image's texts, 4 and 2
    text_to_image = (3 / 4 * log(4) + 1 / 4 * log(3 / 2) + 2 / 2 * log(5 / 4)) / 6
    official = (image_to_text + text_to_image) / 2
    torch.testing.assert_close(one_to_k(LOGITS, INDEX, text_weights=WEIGHTS), value(official))


def test_equal_text_weights_are_none():
    for variant in ("official", "balanced"):
        plain = one_to_k(LOGITS, INDEX, variant=variant)
        halves = torch.ones(3, dtype=torch.float64)
        torch.testing.assert_close(one_to_k(LOGITS, INDEX, variant=variant, text_weights=halves), plain)
    with pytest.raises(ValueError, match="at least 0, and not all of them 0"):
        one_to_k(LOGITS, INDEX, text_weights=torch.zeros(3))
    with pytest.raises(ValueError, match="at least 0, and not all of them 0"):
        weigh_positives(INDEX, 2, text_weights=torch.tensor([1.0, -1.0, 1.0]))


@pytest.mark.parametrize("variant", ["official", "balanced"])
def test_a_text_of_weight_zero_is_a_negative_only(variant):
    # image 0 keeps text 1; its row still sums to 4 over all three texts
    terms = log(2) + log(2), log(3 / 2), log(5 / 4)
    by_hand = (terms[0] / 2 + (terms[1] + terms[2]) / 2) / 2
    weights = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(one_to_k(LOGITS, INDEX, variant=variant, text_weights=weights), value(by_hand))


def test_sigmoid_by_hand():
    # a text counts 1 / (texts of its image) / images; e^s of the positives: 1, 2, 4, of the negatives 3, 1, 1
    by_hand = (log(2) + log(4)) / 4 + (log(3 / 2) + log(2)) / 4 + (log(5 / 4) + log(2)) / 2
    torch.testing.assert_close(sigmoid_one_to_k(LOGITS, INDEX), value(by_hand))
    weighted = (log(2) + log(4)) * 3 / 8 + (log(3 / 2) + log(2)) / 8 + (log(5 / 4) + log(2)) / 2
    torch.testing.assert_close(sigmoid_one_to_k(LOGITS, INDEX, text_weights=WEIGHTS), value(weighted))
    shared = (log(2) + log(4 / 3)) / 4 + (log(3 / 2) + log(2)) / 4 + (log(5 / 4) + log(2)) / 2
    torch.testing.assert_close(sigmoid_one_to_k(LOGITS, INDEX, image_ids=torch.tensor([3, 3])), value(shared))


def test_guidance_by_hand():
    # text 1 is guided by text 0, which sees the images with shares 1/4 and 3/4: half its target is that
    layout = BatchLayout.single(INDEX, 2, guides=torch.tensor([-1, 0, -1]))
    images, one = torch.eye(2, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    guided = (1 / 2 + 1 / 8) * log(3 / 2) + 3 / 8 * log(3)
    by_hand = ((log(8) / 2 + log(2)) / 2 + (log(4) + guided) / 4 + log(5 / 4) / 2) / 2
    for tiled in (False, True):
        loss = contrastive_share(images, LOGITS.t(), one, layout, variant="balanced", guidance=0.5, tiled=tiled)
        torch.testing.assert_close(loss, value(by_hand))


def test_the_guide_itself_gets_no_gradient_from_guidance():
    images, texts = torch.eye(2, dtype=torch.float64), LOGITS.t().clone().requires_grad_()
    gradients = []
    for guidance in (0.0, 0.7):
        layout = BatchLayout.single(INDEX, 2, guides=torch.tensor([-1, 0, -1]))
        loss = contrastive_share(images, texts, torch.ones(()), layout, variant="balanced", guidance=guidance)
        gradients.append(torch.autograd.grad(loss, texts)[0])
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert not torch.allclose(gradients[0][1], gradients[1][1])


# --- shares of processes ---------------------------------------------------------------------------------------------

COUNTS = [3, 1, 0, 2, 4, 1]  # texts of each image
RAGGED_INDEX = torch.arange(6).repeat_interleave(torch.tensor(COUNTS))


def embeddings():
    generator = torch.Generator().manual_seed(5)
    made = torch.randn(6, 5, generator=generator), torch.randn(len(RAGGED_INDEX), 5, generator=generator)
    return [torch.nn.functional.normalize(rows.double()).requires_grad_() for rows in made]


@pytest.mark.parametrize("temperature", [0.3, 0.01])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 1, 4, 6), (0, 0, 5, 6)])
@pytest.mark.parametrize("ids", [None, torch.tensor([7, 8, 7, 9, 8, 6])])
@pytest.mark.parametrize("variant", CONTRASTIVE_VARIANTS)
def test_shares_add_up_to_the_whole(variant, ids, cuts, tiled, temperature):
    images, texts = embeddings()
    index = RAGGED_INDEX
    if variant == "one-to-one":
        index = torch.arange(6)  # it needs a text for every image
        texts = texts[:6].detach().requires_grad_()
    weights = torch.rand(len(index), generator=torch.Generator().manual_seed(6), dtype=torch.float64) + 0.1
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (temperature, -2.0))
    logits = images @ texts.t() / scale
    if variant == "sigmoid":
        whole = sigmoid_one_to_k(logits + bias, index, image_ids=ids, text_weights=weights)
    else:
        plain = "official" if variant == "one-to-one" else variant
        whole = one_to_k(logits, index, variant=plain, image_ids=ids, text_weights=weights)
    total = 0
    for start, stop in zip(cuts, cuts[1:], strict=False):
        own = int((index < start).sum()), int((index < stop).sum())
        layout = BatchLayout(6, index, (start, stop), own, ids, weights)
        total = total + contrastive_share(images, texts, scale, layout, variant=variant, bias=bias, tiled=tiled)
    torch.testing.assert_close(total, whole, atol=1e-10, rtol=1e-10)
    leaves = [images, texts, scale] + ([bias] if variant == "sigmoid" else [])
    for ours, expected in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(whole, leaves), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("cuts", [(0, 3, 6), (0, 1, 4, 6)])
def test_guided_shares_add_up(cuts):
    images, texts = embeddings()
    guides = torch.tensor([-1, 0, 0, -1, 5, -1, -1, 6, 6, -1, -1])
    options = {"variant": "balanced", "guidance": 0.4}
    scale = torch.tensor(0.2, dtype=torch.float64)
    whole = contrastive_share(images, texts, scale, BatchLayout.single(RAGGED_INDEX, 6, guides=guides), **options)
    total = 0
    for start, stop in zip(cuts, cuts[1:], strict=False):
        own = sum(COUNTS[:start]), sum(COUNTS[:stop])
        layout = BatchLayout(6, RAGGED_INDEX, (start, stop), own, guides=guides)
        total = total + contrastive_share(images, texts, scale, layout, **options)
    torch.testing.assert_close(total, whole)
    for ours, expected in zip(
        torch.autograd.grad(total, (images, texts)), torch.autograd.grad(whole, (images, texts)), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_what_a_share_refuses():
    images, texts = embeddings()
    layout = BatchLayout.single(RAGGED_INDEX, 6)
    with pytest.raises(ValueError, match="'fair' is not one of"):
        contrastive_share(images, texts, torch.ones(()), layout, variant="fair")
    with pytest.raises(ValueError, match="needs the model's logit_bias"):
        contrastive_share(images, texts, torch.ones(()), layout, variant="sigmoid")
    with pytest.raises(ValueError, match="needs a text for every image"):
        contrastive_share(images, texts, torch.ones(()), layout, variant="one-to-one")
