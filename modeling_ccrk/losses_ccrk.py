"""The objectives of CCRk as functions of tensors, and the sampling that they need.

Notation: B images, T texts, `image_index (T,)` names the row of the image that each text describes; K_b is the number
of texts of image b and may differ from image to image. `logits` are similarities divided by the temperature, (B, T).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

EPSILON = 1e-5  # the authors add it to every sampling weight, so that none is exactly zero


def positive_mask(
    image_index: torch.LongTensor, num_images: int, image_ids: torch.Tensor | None = None
) -> torch.BoolTensor:
    """Which text is a positive of which image.

    Args:
        image_index: (T,) row of the image that each text describes.
        num_images: B.
        image_ids: (B,) optional identities; images with equal ids share their texts.

    Returns:
        (B, T), true where text t describes image b or an image with the same id.
    """
    rows = torch.arange(num_images, device=image_index.device)
    if image_ids is None:
        return rows[:, None] == image_index[None, :]
    return image_ids[:, None] == image_ids[image_index][None, :]


def one_to_k(
    logits: torch.Tensor,
    image_index: torch.LongTensor,
    *,
    variant: str = "official",
    divisor: float | None = None,
    image_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""1-to-K contrastive loss: every image is aligned with all its K texts at once (CCRk, section 4.2).

    With :math:`p_{bt}` the softmax over texts in row b, :math:`q_{tb}` the softmax over images in column t and
    :math:`P_b` the positives of image b:

    .. math:: L = \tfrac12\Big[\tfrac1B\sum_b \tfrac1{D_b}\sum_{t\in P_b}-\log p_{bt}
              + \tfrac1T\sum_t \tfrac1{D_t}\,\overline{-\log q_{tb}}\Big]

    where the bar is the mean over the images that text t describes (one, unless `image_ids` repeat).

    `"official"` has :math:`D = K` in both directions, as the authors' code has it (`need_divm=0`): the text-to-image
    term, already a mean over texts, is divided by K once more. `"balanced"` has no second division: each direction is
    the mean over images of the mean over their texts. With K = 1 the two are one and the same.

    Args:
        logits: (B, T).
        image_index: (T,).
        variant: `"official"` or `"balanced"`.
        divisor: a number in place of D, official variant only (the authors' `need_divm`; their -1 is 1.0 here).
        image_ids: (B,) optional; images with equal ids are positives of each other's texts and share the label mass.

    Returns:
        A scalar. Images without texts serve as negatives only.

    Raises:
        ValueError: for an unknown variant, or a divisor with another variant than `"official"`.
    """
    if variant not in ("official", "balanced"):
        raise ValueError(f"contrastive variant '{variant}' is not one of 'official', 'balanced'")
    if divisor is not None and variant != "official":
        raise ValueError(f"a divisor belongs to the variant 'official', not to '{variant}'")
    positives = positive_mask(image_index, logits.shape[0], image_ids)
    texts_per_image = positives.sum(1)  # (B,), with the texts shared through equal ids
    images_per_text = positives.sum(0)  # (T,)
    own_texts = torch.bincount(image_index, minlength=logits.shape[0])[image_index]  # (T,) K of the text's own image
    image_terms = -(nn.functional.log_softmax(logits, 1) * positives).sum(1)  # (B,) sums over positives
    text_terms = -(nn.functional.log_softmax(logits, 0) * positives).sum(0) / images_per_text  # (T,)
    num_images = (texts_per_image > 0).sum().clamp(min=1)
    if divisor is not None:
        return (image_terms.sum() / num_images + text_terms.mean()) / 2 / divisor
    image_to_text = (image_terms / texts_per_image.clamp(min=1)).sum() / num_images
    text_terms = text_terms / own_texts
    text_to_image = text_terms.mean() if variant == "official" else text_terms.sum() / num_images
    return (image_to_text + text_to_image) / 2


def one_to_one(logits: torch.Tensor, image_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Contrastive loss of image-text pairs: the baseline, one text per image.

    The mean of the two cross entropies. With `image_ids`, pairs of equal id are positives of one another and the
    label mass is shared equally among them (the authors' fine-tuning).

    Args:
        logits: (B, B); text b belongs to image b.
        image_ids: (B,) optional.

    Returns:
        A scalar.

    Raises:
        ValueError: if the numbers of images and texts differ.
    """
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(
            f"one_to_one takes one text per image, but got {logits.shape[0]} images and {logits.shape[1]} texts"
        )
    return one_to_k(logits, torch.arange(len(logits), device=logits.device), image_ids=image_ids)


@dataclass
class MatchingPairs:
    """Rows chosen for image-text matching, one entry for each image that has a text (N of them).

    Attributes:
        image: (N,) row of the image.
        positive_text: (N,) row of the text taken as its match.
        negative_image: (N,) row of an image that `positive_text` does not describe.
        negative_text: (N,) row of a text that does not describe `image`.
    """

    image: torch.LongTensor
    positive_text: torch.LongTensor
    negative_image: torch.LongTensor
    negative_text: torch.LongTensor

    def subset(self, count: int) -> MatchingPairs:
        """`count` of the pairs, drawn at random, or all where there are no more."""
        if count >= len(self.image):
            return self
        kept = torch.randperm(len(self.image), device=self.image.device)[:count]
        return MatchingPairs(
            self.image[kept], self.positive_text[kept], self.negative_image[kept], self.negative_text[kept]
        )

    def stacked(self) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
        """Image rows, text rows and labels (3N,): matches, then negative images, then negative texts."""
        images = torch.cat([self.image, self.negative_image, self.image])
        texts = torch.cat([self.positive_text, self.positive_text, self.negative_text])
        labels = torch.zeros_like(images)
        labels[: len(self.image)] = 1
        return images, texts, labels


def matching_probabilities(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two softmaxes that matching samples from: image-to-text (B, T) and text-to-image (T, B), plus epsilon."""
    return logits.softmax(1) + EPSILON, logits.t().softmax(1) + EPSILON


def positive_text_weights(logits: torch.Tensor, image_index: torch.LongTensor, choice: str) -> torch.Tensor:
    """Weights by which each image's positive text is drawn.

    The authors' `neg_sample_type`: `"uniform"` (0) knows no preference; `"probability"` (1, their default) weighs a
    text by how far its image-to-text probability stays below the largest of the batch, `"similarity"` (2) the same
    with the similarity itself: the less similar translation is the more likely one.

    Args:
        logits: (B, T).
        image_index: (T,).
        choice: one of the three.

    Returns:
        (B, T), zero where the text is not the image's own.

    Raises:
        ValueError: for another choice.
    """
    own = positive_mask(image_index, logits.shape[0])
    if choice == "uniform":
        return own.to(logits.dtype)
    if choice == "probability":
        scores = matching_probabilities(logits)[0]
    elif choice == "similarity":
        scores = logits
    else:
        raise ValueError(f"positive_choice '{choice}' is not one of 'probability', 'similarity', 'uniform'")
    # the epsilon is added last: beside similarities in the hundreds float32 would lose it
    return (scores.max() - scores + EPSILON) * own


def negative_weights(
    logits: torch.Tensor,
    image_index: torch.LongTensor,
    image_ids: torch.Tensor | None = None,
    hardness: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights by which hard negatives are drawn.

    Args:
        logits: (B, T).
        image_index: (T,).
        image_ids: (B,) optional; a text of an image with the same id is never a negative.
        hardness: 1 draws by the softmax of the similarities, 0 uniformly, between them a mixture of the two. From
            scratch a matcher learns more surely when it rises from 0 to 1.

    Returns:
        Weights of texts for each image (B, T) and of images for each text (T, B).
    """
    negatives = ~positive_mask(image_index, logits.shape[0], image_ids)
    for_images, for_texts = matching_probabilities(logits)
    if hardness < 1:
        for_images = hardness * for_images + (1 - hardness) / logits.shape[1]
        for_texts = hardness * for_texts + (1 - hardness) / logits.shape[0]
    return for_images * negatives, for_texts * negatives.t()


@torch.no_grad()
def sample_matching_pairs(
    logits: torch.Tensor,
    image_index: torch.LongTensor,
    *,
    image_ids: torch.Tensor | None = None,
    positive_choice: str = "probability",
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
) -> MatchingPairs:
    """Draws one positive text, one negative image and one negative text for every image that has texts.

    Negatives are drawn by similarity, so most are hard; all draws of a batch are made at once.

    Args:
        logits: (B, T) similarities divided by the temperature.
        image_index: (T,).
        image_ids: (B,) optional, see `negative_weights`.
        positive_choice: see `positive_text_weights`.
        hardness: see `negative_weights`.
        generator: source of randomness, the global one by default.

    Returns:
        The rows chosen.

    Raises:
        ValueError: if no text of the batch has a negative image, as when it holds a single image.
    """
    logits = logits.detach().float()
    if not logits.isfinite().all():
        raise ValueError("similarities are not finite (NaN or infinite), so no negatives can be drawn from them")
    for_images, for_texts = negative_weights(logits, image_index, image_ids, hardness)
    images = torch.bincount(image_index, minlength=logits.shape[0]).nonzero().flatten()
    if not (for_images[images].sum(1) > 0).all() or not (for_texts.sum(1) > 0).all():
        raise ValueError(
            f"matching needs a negative for every text, but among the {logits.shape[0]} images of the batch there is "
            "none for some: a batch takes at least two images with different ids"
        )
    weights = positive_text_weights(logits, image_index, positive_choice)[images]
    positive_text = torch.multinomial(weights, 1, generator=generator).flatten()
    negative_image = torch.multinomial(for_texts[positive_text], 1, generator=generator).flatten()
    negative_text = torch.multinomial(for_images[images], 1, generator=generator).flatten()
    return MatchingPairs(images, positive_text, negative_image, negative_text)


def matching_loss(itm_logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """Image-text matching: cross entropy of (N, 2) logits against labels (N,), 1 = match; mean over pairs."""
    return nn.functional.cross_entropy(itm_logits.float(), labels)


def mlm_loss(mlm_logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """Masked-language loss: cross entropy of (N, V) logits against token ids (N,); -100 is ignored.

    A batch in which nothing is masked has loss 0, not NaN.
    """
    if not (labels != -100).any():
        return mlm_logits.sum() * 0
    return nn.functional.cross_entropy(mlm_logits.float(), labels, ignore_index=-100)
