"""A step over a batch of any size in the memory of a small one, with the gradient of the whole (GradCache, Gao 2021).

Towers run over the batch in pieces without keeping anything but their output; losses are computed from it, the
matching and masked-language losses again in pieces; then each piece runs once more, now with the gradient of the
losses with respect to its output. It costs one more forward pass of the towers.

Dropout is the same in both passes: keyed draws repeat themselves (see `draws_ccrk`), and for whatever else draws from
the global generators (adapters, say) their state is kept with each piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ccrk.draws_ccrk import Draws
from ccrk.modeling_ccrk import check_image_index
from ccrk.objectives_ccrk import (
    PairTables,
    SingleProcess,
    StepBatch,
    contrastive_of,
    count_masked,
    draw_pairs,
    gather_batch,
    pair_losses,
    pair_tables,
    sampling_rules,
)
from ccrk.text_layers_ccrk import trim_padding


@dataclass
class _Piece:
    """Images and texts that pass through the towers together, and the generators' state before they do."""

    images: slice
    texts: torch.LongTensor
    random_state: torch.Tensor | None = None
    device_state: torch.Tensor | None = None


class CachedStep:
    """One training step over a batch in pieces.

    Args:
        model: a CCRk model, not wrapped.
        batch: as for its `forward`.
        mini_batch_size: images in a piece, with all their texts; matching takes so many images at once too.
        exchange: with other processes. Gradients are this process's; add them up afterwards.
        hardness, matching_images: see `CCRkModel.forward`.
        tiled: see there.
        autocast: makes the context that forward passes run in.

    Raises:
        ValueError: if something is missing from the batch.
    """

    def __init__(
        self,
        model,
        batch: dict[str, torch.Tensor],
        mini_batch_size: int,
        *,
        exchange: SingleProcess | None = None,
        hardness: float = 1.0,
        matching_images: int | None = None,
        tiled: bool = False,
        autocast: Callable | None = None,
    ):
        self.model, self.retriever, self.batch = model, model.retriever, batch
        self.exchange = exchange or SingleProcess()
        self.rules = sampling_rules(model.config, hardness, matching_images, lenient=True)
        self.tiled = tiled
        self.autocast = autocast or (lambda: torch.autocast("cpu", enabled=False))
        self.mini_batch_size = mini_batch_size
        self.images = batch.get("pixel_values", batch.get("image_hidden_states"))
        self.texts = batch.get("input_ids", batch.get("text_hidden_states"))
        if self.images is None or self.texts is None:
            raise ValueError(f"a batch needs images and texts, but this one has {', '.join(sorted(batch))}")
        self.image_index = check_image_index(batch.get("image_index"), len(self.images), len(self.texts))
        self.stand_in = bool(batch.get("stand_in"))
        self.losses: dict[str, torch.Tensor] = {}

    def run(self, scale: float = 1.0) -> dict[str, torch.Tensor]:
        """Computes the losses and adds the gradient of their weighted sum, times `scale`, to the parameters.

        Returns:
            `loss` and its parts `contrastive`, `matching` and `mlm`, this process's shares, without `scale`.
        """
        config, batch = self.model.config, self.batch
        if hasattr(self.model, "clamp_temperature"):
            self.model.clamp_temperature()
        step = gather_batch(
            self.image_index,
            len(self.images),
            exchange=self.exchange,
            stand_in=self.stand_in,
            **{name: batch.get(name) for name in ("image_ids", "draw_keys", "text_weights", "is_guide")},
        )
        pieces = list(self._pieces())
        self._encode(step, pieces)
        if self.stand_in:
            self._leave_nothing()
            pieces = []
        labels = batch.get("mlm_labels") if getattr(config, "mlm_weight", 0) else None
        image_embeds, text_embeds = (self.exchange.gather_rows(e) for e in (self.image_embeds, self.text_embeds))
        if config.contrastive_weight:
            loss = contrastive_of(self.model, image_embeds, text_embeds, step, self.tiled)
            self._backward("contrastive", loss, config.contrastive_weight, scale)
        if config.matching_weight or labels is not None:
            pairs = draw_pairs(image_embeds, text_embeds, self.retriever.temperature, step, self.rules)
            self._match(step, pairs, labels, scale)
        self._encode_again(step, pieces)
        weights = {"contrastive": config.contrastive_weight, "matching": config.matching_weight}
        weights["mlm"] = config.mlm_weight
        self.losses["loss"] = sum(weights[name] * value for name, value in self.losses.items())
        return self.losses

    def _backward(self, name: str, loss: torch.Tensor, weight: float, scale: float) -> None:
        (loss * (weight * scale)).backward()
        self.losses[name] = self.losses.get(name, 0) + loss.detach()

    def _pieces(self) -> Iterator[_Piece]:
        for start in range(0, len(self.images), self.mini_batch_size):
            images = slice(start, min(start + self.mini_batch_size, len(self.images)))
            chosen = (self.image_index >= images.start) & (self.image_index < images.stop)
            yield _Piece(images, chosen.nonzero().flatten())

    def _features(self, piece: _Piece, step: StepBatch):
        """Both towers' output for a piece: image states and embeddings, text states and embeddings."""
        batch, of_images, of_texts = self.batch, None, None
        if not self.stand_in:
            of_images, of_texts = step.image_draws(), step.text_draws()
        with self.autocast():
            image = self.retriever.get_image_features(
                _rows(batch.get("pixel_values"), piece.images),
                _rows(batch.get("image_hidden_states"), piece.images),
                _draws(of_images, piece.images),
            )
            if not len(piece.texts):
                return image.last_hidden_state, image.pooler_output, None, None
            mask = _rows(batch.get("attention_mask"), piece.texts)
            inputs = (_rows(batch.get(name), piece.texts) for name in ("input_ids", "text_hidden_states"))
            trimmed = [value if value is None else trim_padding(value, mask)[0] for value in inputs]
            if mask is not None:
                mask = trim_padding(mask, mask)[0]
            text = self.retriever.get_text_features(trimmed[0], mask, trimmed[1], _draws(of_texts, piece.texts))
        return image.last_hidden_state, image.pooler_output, text.last_hidden_state, text.pooler_output

    @torch.no_grad()
    def _encode(self, step: StepBatch, pieces: list[_Piece]) -> None:
        """First pass: outputs of the whole batch as leaves whose gradients will be collected."""
        length, found = self.texts.shape[1], []
        for piece in pieces:
            piece.random_state = torch.get_rng_state()
            if self.images.is_cuda:
                piece.device_state = torch.cuda.get_rng_state(self.images.device)
            found.append(self._features(piece, step))
        self.image_states, self.image_embeds = (_leaf(torch.cat([part[i] for part in found])) for i in (0, 1))
        with_texts = [(piece, part) for piece, part in zip(pieces, found, strict=True) if part[2] is not None]
        states, embeds = with_texts[0][1][2], with_texts[0][1][3]
        self.text_states = states.new_zeros((len(self.texts), length, states.shape[-1]))
        self.text_embeds = embeds.new_zeros((len(self.texts), embeds.shape[-1]))
        for piece, (_, _, states, embeds) in with_texts:
            self.text_states[piece.texts, : states.shape[1]] = states
            self.text_embeds[piece.texts] = embeds
        _leaf(self.text_states), _leaf(self.text_embeds)

    def _leave_nothing(self) -> None:
        """This process has no batch: its features are there for their shape alone."""
        for name in ("image_states", "image_embeds", "text_states", "text_embeds"):
            setattr(self, name, _leaf(getattr(self, name).detach()[:0]))

    def _match(self, step: StepBatch, pairs, labels, scale: float) -> None:
        """Losses through the fusion encoder, some images at a time; gradients go to the first pass's output."""
        config, batch = self.model.config, self.batch
        tables = pair_tables(self.image_states, self.text_states, batch.get("attention_mask"), pairs, step)
        total = None if labels is None else count_masked(labels, pairs, step)
        leaves = PairTables(
            _leaf(tables.images.detach()),
            tables.image_place,
            _leaf(tables.texts.detach()),
            tables.text_mask,
            tables.text_place,
        )
        weights = {"matching": config.matching_weight, "mlm": config.mlm_weight}
        for start in range(0, max(1, len(pairs)), self.mini_batch_size):
            part = pairs.part(start, start + self.mini_batch_size)
            with self.autocast():
                losses = pair_losses(self.model, leaves, part, step, batch.get("masked_input_ids"), labels, total)
            sum(weights[name] * scale * loss for name, loss in losses.items()).backward()
            for name, loss in losses.items():
                self.losses[name] = self.losses.get(name, 0) + loss.detach()
        reached = [(t, leaf.grad) for t, leaf in ((tables.images, leaves.images), (tables.texts, leaves.texts))]
        reached = [(tensor, grad) for tensor, grad in reached if grad is not None and tensor.requires_grad]
        torch.autograd.backward([tensor for tensor, _ in reached], [grad for _, grad in reached])

    def _encode_again(self, step: StepBatch, pieces: list[_Piece]) -> None:
        """Second pass: each piece with the gradient that its output has collected."""
        for piece in pieces:
            with _restored(piece, self.images.device):
                outputs = self._features(piece, step)
            wanted = [
                (outputs[0], self.image_states.grad, piece.images),
                (outputs[1], self.image_embeds.grad, piece.images),
                (outputs[2], self.text_states.grad, piece.texts),
                (outputs[3], self.text_embeds.grad, piece.texts),
            ]
            tensors, gradients = [], []
            for tensor, gradient, rows in wanted:
                if tensor is not None and gradient is not None and tensor.requires_grad:
                    part = gradient[rows]
                    tensors.append(tensor)
                    gradients.append(part[:, : tensor.shape[1]] if tensor.ndim == 3 else part)
            if tensors:
                torch.autograd.backward(tensors, gradients)


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.requires_grad_()


def _rows(tensor: torch.Tensor | None, rows) -> torch.Tensor | None:
    return None if tensor is None else tensor[rows]


def _draws(draws: Draws | None, rows) -> Draws | None:
    return None if draws is None else draws.rows(rows)


@contextmanager
def _restored(piece: _Piece, device: torch.device):
    """The generators as they were before the piece's first pass; afterwards as they were found."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(piece.random_state)
        if piece.device_state is not None:
            torch.cuda.set_rng_state(piece.device_state, device)
        yield
