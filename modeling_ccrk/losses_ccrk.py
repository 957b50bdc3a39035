r"""The objectives of CCRk as functions of tensors.

Notation: B images, T texts, `image_index (T,)` names the row of the image that each text describes; K_b is the number
of texts of image b and may differ from image to image. `logits` s are similarities divided by the temperature, (B, T).

Every contrastive objective with softmaxes is one expression of the pairs (b, t) in which t is a positive of b:

.. math:: L = \tfrac12\sum_{(b,t)} \big[\alpha_{bt}(r_b - s_{bt}) + \beta_{bt}(c_t - s_{bt})\big]

with r_b the log-sum-exp of row b and c_t that of column t. Objectives differ in the weights alone, so the plain form
(from logits), the tiled one (no logits held) and a process's share of a larger batch all end in the same few lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .tiles_ccrk import pair_dots, tiled_log_sum_exp, tiled_softplus_sum

CONTRASTIVE_VARIANTS = ("official", "balanced", "one-to-one", "sigmoid")


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


@dataclass
class Positives:
    """The pairs of an image and a text that describes it, with their weights in an objective.

    Attributes:
        image, text: (P,) rows.
        image_weight: (P,) alpha, the weight of -log p(text | image).
        text_weight: (P,) beta, the weight of -log q(image | text).
    """

    image: torch.LongTensor
    text: torch.LongTensor
    image_weight: torch.Tensor
    text_weight: torch.Tensor


def positive_pairs(
    image_index: torch.LongTensor, num_images: int, image_ids: torch.Tensor | None = None
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """All pairs of `positive_mask` as rows of images and of texts, without the mask; text-major."""
    texts = torch.arange(len(image_index), device=image_index.device)
    if image_ids is None:
        return image_index, texts
    _, groups = torch.unique(image_ids, return_inverse=True)
    order = torch.argsort(groups, stable=True)  # images, those of equal id together
    sizes = torch.bincount(groups)
    first = sizes.cumsum(0) - sizes
    group_of_text = groups[image_index]
    repeats = sizes[group_of_text]
    ends = repeats.cumsum(0)
    pair_texts = texts.repeat_interleave(repeats)
    within = torch.arange(int(ends[-1]) if len(ends) else 0, device=image_index.device)
    within = within - (ends - repeats).repeat_interleave(repeats)
    return order[first[group_of_text].repeat_interleave(repeats) + within], pair_texts


def weigh_positives(
    image_index: torch.LongTensor,
    num_images: int,
    *,
    variant: str = "official",
    divisor: float | None = None,
    image_ids: torch.Tensor | None = None,
    text_weights: torch.Tensor | None = None,
) -> Positives:
    r"""The weights that make an objective of the pairs; see the module and `one_to_k`.

    With w_t the weight of a text (1 by default), W_b the sum of the weights of image b's positives, K_t that of the
    texts of text t's own image, n_t the number of images that t describes, and N the number of images with texts:
    :math:`\alpha_{bt} = w_t / (W_b N)` always; :math:`\beta_{bt} = \alpha_{bt}` for `"balanced"` and
    :math:`w_t / (\sum_t w_t\, K_t n_t)` for `"official"`.

    Raises:
        ValueError: for an unknown variant, a divisor with another variant than `"official"`, or weights that are
            negative or all zero.
    """
    if variant not in ("official", "balanced"):
        raise ValueError(f"contrastive variant '{variant}' is not one of 'official', 'balanced'")
    if divisor is not None and variant != "official":
        raise ValueError(f"a divisor belongs to the variant 'official', not to '{variant}'")
    images, texts = positive_pairs(image_index, num_images, image_ids)
    weights = torch.ones(len(image_index), device=image_index.device) if text_weights is None else text_weights
    if len(weights) and not (weights.min() >= 0 and weights.max() > 0):
        raise ValueError("text_weights must be at least 0, and not all of them 0")
    pair_weights = weights[texts]
    zeros = weights.new_zeros(num_images)
    of_image = zeros.index_add(0, images, pair_weights)  # W_b
    described = (of_image > 0).sum().clamp(min=1)
    alpha = pair_weights / (divisor or of_image.clamp(min=torch.finfo(weights.dtype).tiny)[images]) / described
    if variant == "balanced":
        return Positives(images, texts, alpha, alpha)
    own = zeros.index_add(0, image_index, weights).clamp(min=torch.finfo(weights.dtype).tiny)[image_index][texts]
    shared = torch.bincount(texts, minlength=len(weights))[texts]
    beta = pair_weights / ((divisor or own) * shared * weights.sum().clamp(min=torch.finfo(weights.dtype).tiny))
    return Positives(images, texts, alpha, beta)


def one_to_k(
    logits: torch.Tensor,
    image_index: torch.LongTensor,
    *,
    variant: str = "official",
    divisor: float | None = None,
    image_ids: torch.Tensor | None = None,
    text_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""1-to-K contrastive loss: every image is aligned with all its K texts at once (CCRk, section 4.2).

    With :math:`p_{bt}` the softmax over texts in row b, :math:`q_{tb}` the softmax over images in column t and
    :math:`P_b` the positives of image b:

    .. math:: L = \tfrac12\Big[\tfrac1B\sum_b \tfrac1{D_b}\sum_{t\in P_b}-\log p_{bt}
              + \tfrac1T\sum_t \tfrac1{D_t}\,\overline{-\log q_{tb}}\Big]

    where the bar is the mean over the images that text t describes (one, unless `image_ids` repeat).

    `"official"` has :math:`D = K` in both directions, as the authors' code has it (`need_divm=0`): the text-to-image
    term, already a mean over texts, is divided by K once more. `"balanced"` has no second division: each direction is
    the mean over images of the mean over their positives. With K = 1 the two are one and the same.

    Args:
        logits: (B, T).
        image_index: (T,).
        variant: `"official"` or `"balanced"`.
        divisor: a number in place of D, official variant only (the authors' `need_divm`; their -1 is 1.0 here).
        image_ids: (B,) optional; images with equal ids are positives of each other's texts and share the label mass.
        text_weights: (T,) optional, at least 0: how much each text counts as a positive; means over texts become
            weighted means. A text of weight 0 is a negative only.

    Returns:
        A scalar. Images without texts serve as negatives only.

    Raises:
        ValueError: for an unknown variant, a divisor with another variant than `"official"`, or weights that are
            negative or all zero.
    """
    pairs = weigh_positives(
        image_index,
        logits.shape[0],
        variant=variant,
        divisor=divisor,
        image_ids=image_ids,
        text_weights=None if text_weights is None else text_weights.to(logits.dtype),
    )
    return contrastive_sum(logits.logsumexp(1), logits.logsumexp(0), logits[pairs.image, pairs.text], pairs)


def contrastive_sum(
    rows: torch.Tensor, columns: torch.Tensor, pair_logits: torch.Tensor, pairs: Positives
) -> torch.Tensor:
    """The expression of the module, from log-sum-exps of rows (B,) and columns (T,) and the logits of pairs (P,)."""
    # differences first: sums of large terms would lose in float32 what the small loss consists of
    image_terms = pairs.image_weight.to(rows.dtype) * (rows[pairs.image] - pair_logits)
    text_terms = pairs.text_weight.to(rows.dtype) * (columns[pairs.text] - pair_logits)
    return (image_terms.sum() + text_terms.sum()) / 2


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


def sigmoid_one_to_k(
    logits: torch.Tensor,
    image_index: torch.LongTensor,
    *,
    image_ids: torch.Tensor | None = None,
    text_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Multi-positive sigmoid loss: every pair is a question of its own (SigLIP, Zhai et al. 2023, with K positives).

    .. math:: L = \tfrac1N\sum_t \tfrac{w_t}{W_{b(t)}}\sum_b \log\big(1 + e^{-z_{bt} s_{bt}}\big)

    with z = 1 for positives and -1 for all others; w_t, W and N as in `weigh_positives`. The logits carry the learned
    bias already. No softmax: the K texts of an image don't compete with one another, and a ragged K needs no care.

    Args:
        logits: (B, T), similarity / temperature + bias.
        image_index: (T,).
        image_ids: (B,) optional; images with equal ids are positives of each other's texts.
        text_weights: (T,) optional, see `one_to_k`.

    Returns:
        A scalar.
    """
    weights = sigmoid_weights(image_index, logits.shape[0], text_weights).to(logits.dtype)
    images, texts = positive_pairs(image_index, logits.shape[0], image_ids)
    # log(1 + e^-x) = log(1 + e^x) - x, so positives only add a linear term
    return (nn.functional.softplus(logits).sum(0) * weights).sum() - (weights[texts] * logits[images, texts]).sum()


def sigmoid_weights(
    image_index: torch.LongTensor, num_images: int, text_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Weight (T,) of each text in `sigmoid_one_to_k`: w_t / (W N), equal shares for all images with texts."""
    pairs = weigh_positives(image_index, num_images, variant="balanced", text_weights=text_weights)
    return pairs.image_weight


@dataclass
class BatchLayout:
    """What every process knows of the whole batch, and which part of it is its own.

    Without several processes the whole batch is its own.

    Attributes:
        num_images: B, of all processes.
        image_index: (T,) row of the image that each text describes, counted over all processes.
        images, texts: (start, stop) of this process's images and texts.
        image_ids: (B,) or None.
        text_weights: (T,) or None.
        guides: (T,) for each text the row of the English text of its image, or -1; None without guidance.
    """

    num_images: int
    image_index: torch.LongTensor
    images: tuple[int, int]
    texts: tuple[int, int]
    image_ids: torch.Tensor | None = None
    text_weights: torch.Tensor | None = None
    guides: torch.LongTensor | None = None

    @classmethod
    def single(cls, image_index: torch.LongTensor, num_images: int, **kwargs) -> BatchLayout:
        """The layout of a batch that one process holds."""
        return cls(num_images, image_index, (0, num_images), (0, len(image_index)), **kwargs)

    @property
    def is_whole(self) -> bool:
        """Whether this process holds the whole batch."""
        return self.images == (0, self.num_images) and self.texts == (0, len(self.image_index))

    def owned(self, rows: torch.LongTensor, of: str) -> torch.BoolTensor:
        """Which of the rows of `images` or `texts` are this process's own."""
        start, stop = getattr(self, of)
        return (rows >= start) & (rows < stop)

    def first_texts(self) -> torch.LongTensor:
        """Row of the first text of each image (B,).

        Raises:
            ValueError: if an image has none.
        """
        order = torch.arange(len(self.image_index), device=self.image_index.device)
        first = torch.full((self.num_images,), len(order), dtype=torch.long, device=order.device)
        first = first.scatter_reduce(0, self.image_index, order, "amin")
        if (first == len(order)).any():
            raise ValueError("contrastive_variant 'one-to-one' needs a text for every image of the batch")
        return first


def contrastive_share(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    layout: BatchLayout,
    *,
    variant: str = "official",
    bias: torch.Tensor | None = None,
    guidance: float = 0.0,
    tiled: bool = False,
) -> torch.Tensor:
    r"""A process's share of a contrastive loss over the embeddings of all processes.

    The shares of all processes add up to the loss of the whole batch; each computes the rows of its own images and
    the columns of its own texts. In float32 whatever the autocast, since softmaxes over thousands of similarities in
    bfloat16 are far off.

    English-guided soft targets (`guidance` g > 0): the text-to-image target of a text becomes
    :math:`(1-g)` its own image plus :math:`g` the distribution over images that the English text of the same image
    has at present (no gradient flows into it). A translation that is off is thus held to what its English sees.

    Args:
        image_embeds: (B, D) unit vectors of all processes.
        text_embeds: (T, D).
        temperature: scalar.
        layout: of the batch.
        variant: one of `CONTRASTIVE_VARIANTS`.
        bias: scalar, for `"sigmoid"`.
        guidance: g.
        tiled: never hold the logits.

    Returns:
        A scalar.

    Raises:
        ValueError: for an unknown variant, or for `"sigmoid"` without a bias or with guidance.
    """
    if variant not in CONTRASTIVE_VARIANTS:
        raise ValueError(f"contrastive variant '{variant}' is not one of {', '.join(CONTRASTIVE_VARIANTS)}")
    with torch.autocast(image_embeds.device.type, enabled=False):
        images, texts = (e if e.dtype == torch.float64 else e.float() for e in (image_embeds, text_embeds))
        scale = 1 / temperature.to(images.dtype)
        if variant == "sigmoid":
            if bias is None or guidance:
                raise ValueError("the variant 'sigmoid' needs the model's logit_bias, and takes no guidance")
            return _sigmoid_share(images, texts, scale, bias.to(images.dtype), layout, tiled)
        if variant == "one-to-one":
            layout, first = _one_text_each(layout)
            texts, variant = texts[first], "official"
        pairs = weigh_positives(
            layout.image_index,
            layout.num_images,
            variant=variant,
            image_ids=layout.image_ids,
            text_weights=layout.text_weights,
        )
        return _softmax_share(images, texts, scale, layout, pairs, guidance, tiled)


def _one_text_each(layout: BatchLayout) -> tuple[BatchLayout, torch.LongTensor]:
    """The layout with the first text of every image alone, and the rows of these texts."""
    first = layout.first_texts()
    weights = None if layout.text_weights is None else layout.text_weights[first]
    index = torch.arange(layout.num_images, device=first.device)
    return BatchLayout(layout.num_images, index, layout.images, layout.images, layout.image_ids, weights), first


def _softmax_share(images, texts, scale, layout, pairs, guidance, tiled) -> torch.Tensor:
    own_images, own_texts = images[slice(*layout.images)], texts[slice(*layout.texts)]
    if layout.is_whole:
        rows, columns = _log_sum_exps(images, texts, scale, True, tiled)
    else:
        rows, _ = _log_sum_exps(own_images, texts, scale, False, tiled)
        columns, _ = _log_sum_exps(own_texts, images, scale, False, tiled)
    of_images, of_texts = layout.owned(pairs.image, "images"), layout.owned(pairs.text, "texts")
    kept = (of_images | of_texts).nonzero().flatten()
    logits = pair_dots(images, texts, pairs.image[kept], pairs.text[kept]) * scale
    own = of_images[kept], of_texts[kept]
    of_images, of_texts = kept[own[0]], kept[own[1]]  # pairs whose row, and whose column, is this process's own
    log_sums = rows[pairs.image[of_images] - layout.images[0]]
    total = _terms(pairs.image_weight[of_images], log_sums, logits[own[0]])
    log_sums, logits = columns[pairs.text[of_texts] - layout.texts[0]], logits[own[1]]
    weight = pairs.text_weight[of_texts]
    if guidance and layout.guides is not None:
        guided = layout.guides[pairs.text[of_texts]] >= 0
        expected = _guided_logits(images, texts, scale, layout, pairs.text[of_texts[guided]])
        total = total + guidance * _terms(weight[guided], log_sums[guided], expected)
        weight = torch.where(guided, (1 - guidance) * weight, weight)
    return (total + _terms(weight, log_sums, logits)) / 2


def _log_sum_exps(a, b, scale, columns, tiled):
    if tiled:
        return tiled_log_sum_exp(a, b, scale, columns=columns)
    logits = a * scale @ b.t()
    return logits.logsumexp(1), logits.logsumexp(0) if columns else None


def _terms(weights, log_sums, logits) -> torch.Tensor:
    """Sum over pairs of weight * (log-sum-exp - logit)."""
    return (weights.to(logits.dtype) * (log_sums - logits)).sum()


def _guided_logits(images, texts, scale, layout, chosen) -> torch.Tensor:
    """For chosen texts the mean logit under their guide's distribution, in the place of the positive's logit."""
    rows, back = torch.unique(layout.guides[chosen], return_inverse=True)
    with torch.no_grad():
        shares = (texts[rows] * scale @ images.t()).softmax(1)
    return pair_dots(texts, shares @ images, chosen, back) * scale


def _sigmoid_share(images, texts, scale, bias, layout, tiled) -> torch.Tensor:
    weights = sigmoid_weights(layout.image_index, layout.num_images, layout.text_weights).to(images.dtype)
    own = images[slice(*layout.images)]
    if tiled:
        total = tiled_softplus_sum(own, texts, scale, bias, weights)
    else:
        total = (nn.functional.softplus(own * scale @ texts.t() + bias).sum(0) * weights).sum()
    pair_images, pair_texts = positive_pairs(layout.image_index, layout.num_images, layout.image_ids)
    mine = layout.owned(pair_images, "images")
    pair_images, pair_texts = pair_images[mine], pair_texts[mine]
    logits = pair_dots(images, texts, pair_images, pair_texts) * scale + bias
    return total - (weights[pair_texts] * logits).sum()


def matching_loss(itm_logits: torch.Tensor, labels: torch.LongTensor, total: int | None = None) -> torch.Tensor:
    """Image-text matching: cross entropy of (N, 2) logits against labels (N,), 1 = match.

    The mean over pairs; with `total`, their sum divided by it: the share of these pairs in a mean over more of them.
    """
    total = len(labels) if total is None else total
    return nn.functional.cross_entropy(itm_logits.float(), labels, reduction="sum") / max(1, total)


def mlm_loss(mlm_logits: torch.Tensor, labels: torch.LongTensor, total: int | None = None) -> torch.Tensor:
    """Masked-language loss: cross entropy of (N, V) logits against token ids (N,); -100 is ignored.

    The mean over masked tokens; with `total`, their sum divided by it. A batch in which nothing is masked has loss 0,
    not NaN.
    """
    total = int((labels != -100).sum()) if total is None else total
    summed = nn.functional.cross_entropy(mlm_logits.float(), labels, ignore_index=-100, reduction="sum")
    return summed / max(1, total)
