"""From features to losses: what one training step computes once images and texts are encoded.

Written for a process that holds a part of the batch: embeddings of all processes are seen, rows of its own are
computed, and the shares that processes compute add up to the loss of the whole batch. A single process is the case in
which its part is the whole. The parts are functions of their own so that a gradient cache can put them together anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .draws_ccrk import Draws, mix
from .losses_ccrk import BatchLayout, contrastive_share, matching_loss
from .sampling_ccrk import MatchingPairs, SamplingRules, draw_matching_pairs

# kinds of passes through the fusion encoder, told apart in its dropout
_POSITIVE, _NEGATIVE_IMAGE, _NEGATIVE_TEXT, _MASKED = 6, 7, 8, 9


class SingleProcess:
    """Exchange with other processes where there are none. `ccrk.trainer.exchange` has the one for several."""

    rank = 0
    world_size = 1

    def gather(self, rows: torch.Tensor, counts: list[int] | None = None) -> torch.Tensor:
        """Rows of all processes in their order, without gradient; `counts`, if known: how many each has."""
        return rows

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of all processes in their order; the gradient is the sum of all processes' gradients."""
        return rows

    def fetch(self, rows: torch.Tensor, start: int, wanted: torch.LongTensor) -> torch.Tensor:
        """Rows that other processes hold, by their place in the whole; with gradient."""
        return rows[:0]

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over processes."""
        return value

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """Maximum over processes."""
        return value

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Adds up the gradients of all processes."""


@dataclass
class StepBatch:
    """What a step knows of the whole batch beside its features.

    Attributes:
        layout: see `losses_ccrk.BatchLayout`.
        image_keys: (B,) of all processes; what is drawn for an image is a function of its key.
        text_keys: (T,).
        keyed: whether dropout is keyed too, or left to the global generator.
        exchange: with the other processes.
    """

    layout: BatchLayout
    image_keys: torch.LongTensor
    text_keys: torch.LongTensor
    keyed: bool
    exchange: SingleProcess

    def image_draws(self) -> Draws | None:
        """Dropout of this process's images."""
        return Draws(mix(self.image_keys[slice(*self.layout.images)], 10)) if self.keyed else None

    def text_draws(self) -> Draws | None:
        """Dropout of this process's texts."""
        return Draws(mix(self.text_keys[slice(*self.layout.texts)], 11)) if self.keyed else None

    def pair_draws(self, images: torch.LongTensor, kind: int) -> Draws | None:
        """Dropout of a pass through the fusion encoder for pairs of these images."""
        return Draws(mix(self.image_keys[images], kind)) if self.keyed else None


def gather_batch(
    image_index: torch.LongTensor,
    num_images: int,
    *,
    image_ids: torch.Tensor | None = None,
    draw_keys: torch.LongTensor | None = None,
    text_weights: torch.Tensor | None = None,
    is_guide: torch.BoolTensor | None = None,
    exchange: SingleProcess | None = None,
    stand_in: bool = False,
) -> StepBatch:
    """Puts together what all processes need to know of one another's batch.

    Args:
        image_index: (T,) of this process, counted from 0.
        num_images: of this process.
        image_ids: (B,) of this process, equal for equal images in whatever process.
        draw_keys: (B,) of this process; without them draws come from the global generator.
        text_weights: (T,) of this process.
        is_guide: (T,) whether a text is in the language that guides the others.
        exchange: with the other processes.
        stand_in: what is given counts for nothing.
    """
    exchange = exchange or SingleProcess()
    if stand_in:
        num_images, image_index = 0, image_index[:0]
        labels = (image_ids, draw_keys, text_weights, is_guide)
        image_ids, draw_keys, text_weights, is_guide = (None if x is None else x[:0] for x in labels)
    device = image_index.device
    own = torch.tensor([[num_images, len(image_index)]], device=device)
    of_images, of_texts = exchange.gather(own, [1] * exchange.world_size).t().tolist()
    first_image, first_text = sum(of_images[: exchange.rank]), sum(of_texts[: exchange.rank])
    index = exchange.gather(image_index + first_image, of_texts)
    total_images = sum(of_images)
    keyed = draw_keys is not None
    if draw_keys is None:
        draw_keys = torch.randint(2**62, (num_images,), device=device)
    keys = exchange.gather(draw_keys, of_images)
    layout = BatchLayout(
        total_images,
        index,
        (first_image, first_image + num_images),
        (first_text, first_text + len(image_index)),
        None if image_ids is None else exchange.gather(image_ids, of_images),
        None if text_weights is None else exchange.gather(text_weights.float(), of_texts),
        None if is_guide is None else _guides(index, total_images, exchange.gather(is_guide, of_texts)),
    )
    return StepBatch(layout, keys, mix(keys[index], _ordinals(index, total_images)), keyed, exchange)


def _ordinals(image_index: torch.LongTensor, num_images: int) -> torch.LongTensor:
    """(T,) which of its image's texts each text is, counted from 0."""
    order = image_index.argsort(stable=True)
    counts = torch.bincount(image_index, minlength=num_images)
    starts = (counts.cumsum(0) - counts)[image_index[order]]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device) - starts
    return places


def _guides(image_index: torch.LongTensor, num_images: int, is_guide: torch.BoolTensor) -> torch.LongTensor:
    """(T,) row of the first guiding text of the same image; -1 for guides themselves and where there is none."""
    rows = torch.arange(len(image_index), device=image_index.device)
    first = torch.full((num_images,), len(rows), device=rows.device)
    first = first.scatter_reduce(0, image_index[is_guide], rows[is_guide], "amin")[image_index]
    return torch.where(is_guide | (first == len(rows)), -1, first)


@dataclass
class PairTables:
    """Hidden states of the images and texts that occur in a process's pairs, its own and those of others.

    Attributes:
        images: (R, 1 + P, image width).
        image_place: (B,) where an image of the whole batch is in the table.
        texts: (S, L, hidden).
        text_mask: (S, L) or None.
        text_place: (T,).
    """

    images: torch.Tensor
    image_place: torch.LongTensor
    texts: torch.Tensor
    text_mask: torch.Tensor | None
    text_place: torch.LongTensor


def pair_tables(
    image_hidden_states: torch.Tensor,
    text_hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    pairs: MatchingPairs,
    step: StepBatch,
) -> PairTables:
    """Collects what the pairs need; states of other processes' negatives are fetched, with their gradient.

    Args:
        image_hidden_states: (b, 1 + P, image width) of this process.
        text_hidden_states: (t, L, hidden) of this process.
        attention_mask: (t, L) of this process.
        pairs: of this process.
        step: of the batch.
    """
    layout, exchange = step.layout, step.exchange
    images = torch.unique(torch.cat([pairs.image, pairs.negative_image]))
    own = layout.owned(images, "images")
    local = images[own] - layout.images[0]
    table = image_hidden_states if len(local) == len(image_hidden_states) else image_hidden_states[local]
    texts, mask = text_hidden_states, attention_mask
    text_rows = torch.arange(*layout.texts, device=images.device)
    if exchange.world_size > 1:
        table = torch.cat([table, exchange.fetch(image_hidden_states, layout.images[0], images[~own])])
        images = torch.cat([images[own], images[~own]])
        wanted = torch.unique(pairs.negative_text)
        wanted = wanted[~layout.owned(wanted, "texts")]
        if mask is None:
            mask = torch.ones(texts.shape[:2], dtype=torch.long, device=texts.device)
        length = int(exchange.largest(torch.tensor(texts.shape[1], device=texts.device)))
        texts = nn.functional.pad(texts, (0, 0, 0, length - texts.shape[1]))
        mask = nn.functional.pad(mask, (0, length - mask.shape[1]))
        fetched = exchange.fetch(texts, layout.texts[0], wanted)
        mask = torch.cat([mask, exchange.fetch(mask, layout.texts[0], wanted)])
        texts, text_rows = torch.cat([texts, fetched]), torch.cat([text_rows, wanted])
    return PairTables(
        table, _places(images, layout.num_images), texts, mask, _places(text_rows, len(layout.image_index))
    )


def _places(rows: torch.LongTensor, count: int) -> torch.LongTensor:
    """For each of `count` numbers where it is in `rows`; -1 where it is not."""
    places = torch.full((count,), -1, dtype=torch.long, device=rows.device)
    places[rows] = torch.arange(len(rows), device=rows.device)
    return places


def draw_pairs(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    step: StepBatch,
    rules: SamplingRules,
) -> MatchingPairs:
    """The pairs of this process's images, from embeddings of all processes; see `sampling_ccrk`."""
    with torch.no_grad(), torch.autocast(image_embeds.device.type, enabled=False):
        images, texts = image_embeds.detach().float(), text_embeds.detach().float()
        scale = 1 / temperature.detach().float()
        return draw_matching_pairs(
            lambda rows: images[rows] * scale @ texts.t(),
            lambda rows: texts[rows] * scale @ images.t(),
            step.layout,
            rules,
            step.image_keys,
            step.text_keys,
            step.exchange.largest,
        )


def pair_losses(
    model,
    tables: PairTables,
    pairs: MatchingPairs,
    step: StepBatch,
    masked_input_ids: torch.LongTensor | None = None,
    mlm_labels: torch.LongTensor | None = None,
    total_masked: int | None = None,
) -> dict[str, torch.Tensor]:
    """This process's shares of the losses that go through the fusion encoder, for all of its pairs or some.

    Args:
        model: a CCRk model; the masked-language loss needs its head and `mlm_labels`.
        tables: see `pair_tables`.
        pairs: with the total number of them.
        step: of the batch.
        masked_input_ids: (t, L) of this process.
        mlm_labels: (t, L) of this process.
        total_masked: number of masked tokens in the positive texts of the whole batch.

    Returns:
        `matching` and `mlm`, those that have a weight.
    """
    config, retriever = model.config, model.retriever
    images, texts, labels = pairs.stacked()
    places = tables.image_place[images]
    used, places = torch.unique(places, return_inverse=True)
    hidden = tables.images if len(used) == len(tables.images) else tables.images[used]
    states = retriever.fusion_model.image_states(hidden)
    losses = {}
    if config.matching_weight:
        draws = None
        if step.keyed:
            kinds = (_POSITIVE, _NEGATIVE_IMAGE, _NEGATIVE_TEXT)
            draws = Draws(torch.cat([step.pair_draws(pairs.image, kind).keys for kind in kinds]))
        logits = retriever.match_rows(states, tables.texts, tables.text_mask, places, tables.text_place[texts], draws)
        total = len(pairs) if pairs.total is None else pairs.total
        losses["matching"] = matching_loss(logits, labels, 3 * total)
    if mlm_labels is not None:
        rows = pairs.positive_text - step.layout.texts[0]
        mask = None if tables.text_mask is None else tables.text_mask[tables.text_place[pairs.positive_text]]
        losses["mlm"] = model.masked_language_loss(
            masked_input_ids[rows],
            None if mask is None else mask[:, : masked_input_ids.shape[1]],
            mlm_labels[rows],
            states,
            places[: len(pairs)],
            draws=step.pair_draws(pairs.image, _MASKED),
            total=total_masked,
        )
    return losses


def count_masked(mlm_labels: torch.LongTensor, pairs: MatchingPairs, step: StepBatch) -> int:
    """Masked tokens in the positive texts of the whole batch."""
    own = (mlm_labels[pairs.positive_text - step.layout.texts[0]] != -100).sum()
    return int(step.exchange.total(own))


def contrastive_of(model, image_embeds, text_embeds, step: StepBatch, tiled: bool = False) -> torch.Tensor:
    """This process's share of the contrastive loss that the configuration names, from all processes' embeddings."""
    config, retriever = model.config, model.retriever
    return contrastive_share(
        image_embeds,
        text_embeds,
        retriever.temperature,
        step.layout,
        variant=config.contrastive_variant,
        bias=retriever.logit_bias,
        guidance=config.english_guidance,
        tiled=tiled,
    )


def sampling_rules(config, hardness: float = 1.0, count: int | None = None, lenient: bool = False) -> SamplingRules:
    """The rules that the configuration names."""
    return SamplingRules(config.positive_choice, config.negative_strategy, hardness, count, lenient)


def add_losses(
    model,
    output,
    step: StepBatch,
    attention_mask: torch.Tensor | None,
    *,
    pairs: MatchingPairs | None = None,
    rules: SamplingRules | None = None,
    masked_input_ids: torch.LongTensor | None = None,
    mlm_labels: torch.LongTensor | None = None,
    tiled: bool = False,
) -> None:
    """Fills the losses of a batch into the output of the encoders.

    Args:
        model: a CCRk model.
        output: with embeddings and hidden states of this process.
        step: of the batch.
        attention_mask: (t, L) of this process.
        pairs: for matching; drawn by default.
        rules: for drawing them.
        masked_input_ids: (t, L), for the masked-language loss.
        mlm_labels: (t, L), the same.
        tiled: never hold the similarities.
    """
    config = model.config
    image_embeds = step.exchange.gather_rows(output.image_embeds)
    text_embeds = step.exchange.gather_rows(output.text_embeds)
    output.loss = (output.image_embeds.sum() + output.text_embeds.sum()) * 0
    if config.contrastive_weight:
        output.loss_contrastive = contrastive_of(model, image_embeds, text_embeds, step, tiled)
        output.loss = output.loss + config.contrastive_weight * output.loss_contrastive
    if not (config.matching_weight or mlm_labels is not None):
        return
    if pairs is None:
        pairs = draw_pairs(image_embeds, text_embeds, model.retriever.temperature, step, rules)
    tables = pair_tables(output.image_hidden_states, output.text_hidden_states, attention_mask, pairs, step)
    total = None if mlm_labels is None else count_masked(mlm_labels, pairs, step)
    losses = pair_losses(model, tables, pairs, step, masked_input_ids, mlm_labels, total)
    if "matching" in losses:
        output.loss_matching = losses["matching"]
        output.loss = output.loss + config.matching_weight * output.loss_matching
    if "mlm" in losses:
        output.loss_mlm = losses["mlm"]
        output.loss = output.loss + config.mlm_weight * output.loss_mlm


__all__ = [
    "SingleProcess",
    "StepBatch",
    "add_losses",
    "contrastive_of",
    "count_masked",
    "draw_pairs",
    "gather_batch",
    "pair_losses",
    "pair_tables",
    "sampling_rules",
]
