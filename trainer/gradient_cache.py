"""A step over a batch of any size in the memory of a small one, with the gradient of the whole (GradCache, Gao 2021).

Towers run over the batch in pieces without keeping anything but their output; losses are computed from it, the
matching and masked-language losses again in pieces; then each piece runs once more, now with the gradient of the
losses with respect to its output. It costs one more forward pass of the towers.

Of hidden states only those rows stay that pairs need, and of their gradients only those that pairs reach; a tower that
does not learn runs once.

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
from ccrk.sampling_ccrk import MatchingPairs
from ccrk.text_layers_ccrk import trim_padding


@dataclass
class _Piece:
    """Images and texts that pass through the towers together, and the generators' state before they do."""

    images: slice
    texts: torch.LongTensor
    random_state: torch.Tensor | None = None
    device_state: torch.Tensor | None = None


class _Rows:
    """Rows of a table that pairs need, some at a time, and the gradients that they collect.

    Args:
        table: (R, ...) hidden states.
        rows: those that some pair needs, in any order and repeatedly.
    """

    def __init__(self, table: torch.Tensor, rows: torch.LongTensor):
        self.table, self.rows = table, torch.unique(rows)
        learns = table.requires_grad
        self.grad = table.new_zeros((len(self.rows), *table.shape[1:])) if learns else None

    def take(self, rows: torch.LongTensor) -> tuple[torch.Tensor, torch.LongTensor]:
        """Some of the rows as a leaf, and what they are."""
        rows = torch.unique(rows)
        return self.table.detach()[rows].requires_grad_(self.grad is not None), rows

    def collect(self, rows: torch.LongTensor, leaf: torch.Tensor) -> None:
        """Takes the gradient of what `take` has given."""
        if leaf.grad is not None:
            self.grad.index_add_(0, torch.searchsorted(self.rows, rows), leaf.grad)

    def whole(self) -> torch.Tensor:
        """The gradient of the whole table."""
        if len(self.rows) == len(self.table):
            return self.grad
        return torch.zeros_like(self.table).index_copy_(0, self.rows, self.grad)


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
        self.learns = {
            "images": _learns(self.retriever.vision_model) and batch.get("image_hidden_states") is None,
            "texts": _learns(self.retriever.text_model) and batch.get("text_hidden_states") is None,
        }
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

    def _features(self, piece: _Piece, step: StepBatch, kept: dict[str, torch.Tensor | None] | None = None):
        """Both towers' output for a piece: image states and embeddings, text states and embeddings.

        Args:
            piece: of the batch.
            step: of the batch.
            kept: states of `images` and `texts` in place of towers that do not learn.
        """
        batch, of_images, of_texts = self.batch, None, None
        kept = {name: states for name, states in (kept or {}).items() if states is not None}
        image_states = kept.get("images", batch.get("image_hidden_states"))
        text_states = kept.get("texts", batch.get("text_hidden_states"))
        if not self.stand_in:
            of_images, of_texts = step.image_draws(), step.text_draws()
        with self.autocast():
            image = self.retriever.get_image_features(
                _rows(batch.get("pixel_values"), piece.images),
                _rows(image_states, piece.images),
                _draws(of_images, piece.images),
            )
            if not len(piece.texts):
                return image.last_hidden_state, image.pooler_output, None, None
            mask = _rows(batch.get("attention_mask"), piece.texts)
            inputs = (_rows(tensor, piece.texts) for tensor in (batch.get("input_ids"), text_states))
            trimmed = [value if value is None else trim_padding(value, mask)[0] for value in inputs]
            if mask is not None:
                mask = trim_padding(mask, mask)[0]
            text = self.retriever.get_text_features(trimmed[0], mask, trimmed[1], _draws(of_texts, piece.texts))
        return image.last_hidden_state, image.pooler_output, text.last_hidden_state, text.pooler_output

    @torch.no_grad()
    def _encode(self, step: StepBatch, pieces: list[_Piece]) -> None:
        """First pass: outputs of the whole batch as leaves whose gradients will be collected."""
        texts = None
        for number, piece in enumerate(pieces):
            piece.random_state = torch.get_rng_state()
            if self.images.is_cuda:
                piece.device_state = torch.cuda.get_rng_state(self.images.device)
            found = self._features(piece, step)
            if not number:
                self.image_states, self.image_embeds = (_room(len(self.images), part) for part in found[:2])
            self.image_states[piece.images], self.image_embeds[piece.images] = found[:2]
            if found[2] is None:
                continue
            if texts is None:
                texts = found[2].new_zeros((len(self.texts), self.texts.shape[1], found[2].shape[-1]))
                self.text_states, self.text_embeds = texts, _room(len(self.texts), found[3])
            texts[piece.texts, : found[2].shape[1]] = found[2]
            self.text_embeds[piece.texts] = found[3]
        self.image_states.requires_grad_(self.learns["images"])
        self.text_states.requires_grad_(self.learns["texts"])
        self.text_rows = None  # of the texts whose states are kept; all of them
        _leaf(self.image_embeds), _leaf(self.text_embeds)

    def _leave_nothing(self) -> None:
        """This process has no batch: its features are there for their shape alone."""
        for name in ("image_states", "image_embeds", "text_states", "text_embeds"):
            tensor = getattr(self, name)
            setattr(self, name, tensor.detach()[:0].requires_grad_(tensor.requires_grad))

    def _match(self, step: StepBatch, pairs: MatchingPairs, labels, scale: float) -> None:
        """Losses through the fusion encoder, some images at a time; gradients go to the first pass's output."""
        config, batch = self.model.config, self.batch
        tables = self._tables(pairs, step)
        total = None if labels is None else count_masked(labels, pairs, step)
        images = _Rows(tables.images, tables.image_place[torch.cat([pairs.image, pairs.negative_image])])
        texts = _Rows(tables.texts, tables.text_place[torch.cat([pairs.positive_text, pairs.negative_text])])
        weights = {"matching": config.matching_weight, "mlm": config.mlm_weight}
        for start in range(0, max(1, len(pairs)), self.mini_batch_size):
            part = pairs.part(start, start + self.mini_batch_size)
            few, of_images, of_texts = _part_tables(tables, images, texts, part)
            with self.autocast():
                losses = pair_losses(self.model, few, part, step, batch.get("masked_input_ids"), labels, total)
            sum(weights[name] * scale * loss for name, loss in losses.items()).backward()
            images.collect(of_images, few.images)
            texts.collect(of_texts, few.texts)
            for name, loss in losses.items():
                self.losses[name] = self.losses.get(name, 0) + loss.detach()
        for table, state in ((images, self.image_states), (texts, self.text_states)):
            if table.table is state:
                state.grad = None if table.grad is None else table.whole()
            elif table.grad is not None:  # parts of it are other processes'
                torch.autograd.backward(table.table, table.whole())

    def _tables(self, pairs: MatchingPairs, step: StepBatch) -> PairTables:
        """What pairs need. One process alone lets go of the states of all other texts, most where K is large."""
        mask = self.batch.get("attention_mask")
        tables = pair_tables(self.image_states, self.text_states, mask, pairs, step)
        if self.exchange.world_size > 1 or not self.learns["texts"]:
            return tables
        self.text_rows = torch.unique(torch.cat([pairs.positive_text, pairs.negative_text]))
        with torch.no_grad():
            self.text_states = _leaf(self.text_states[self.text_rows])
        places = torch.full_like(tables.text_place, -1)
        places[self.text_rows] = torch.arange(len(self.text_rows), device=places.device)
        mask = None if mask is None else mask[self.text_rows]
        return PairTables(tables.images, tables.image_place, self.text_states, mask, places)

    def _encode_again(self, step: StepBatch, pieces: list[_Piece]) -> None:
        """Second pass: each piece with the gradient that its output has collected."""
        kept = {"images": self.image_states.detach(), "texts": self.text_states.detach()}
        grads = self.image_states.grad, self.text_states.grad
        self.image_states = self.text_states = None
        kept = {name: None if self.learns[name] else states for name, states in kept.items()}
        for piece in pieces:
            with _restored(piece, self.images.device):
                outputs = self._features(piece, step, kept)
            wanted = [
                (outputs[0], grads[0], piece.images),
                (outputs[1], self.image_embeds.grad, piece.images),
                (outputs[2], *self._of_texts(grads[1], piece.texts)),
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

    def _of_texts(self, grad: torch.Tensor | None, texts: torch.LongTensor):
        """The gradient of the states of some texts, and the rows of it that are theirs."""
        if grad is not None and self.text_rows is not None and not len(self.text_rows):
            return None, texts  # no text is in any pair
        if grad is None or self.text_rows is None or not len(texts):
            return grad, texts
        few = grad.new_zeros((len(texts), *grad.shape[1:]))
        places = torch.searchsorted(self.text_rows, texts).clamp(max=len(self.text_rows) - 1)
        found = (self.text_rows[places] == texts).nonzero().flatten()
        few[found] = grad[places[found]]
        return few, slice(None)


def _part_tables(tables: PairTables, images: _Rows, texts: _Rows, part: MatchingPairs):
    """The tables of some pairs, and which rows of the whole tables they are."""
    chosen = []
    for rows, place, wanted in (
        (images, tables.image_place, (part.image, part.negative_image)),
        (texts, tables.text_place, (part.positive_text, part.negative_text)),
    ):
        leaf, taken = rows.take(place[torch.cat(wanted)])
        # where a row of the whole batch is among those taken: through its place in the table
        position = torch.full((len(rows.table) + 1,), -1, dtype=torch.long, device=place.device)
        position[taken] = torch.arange(len(taken), device=place.device)
        chosen.append((leaf, taken, position[place]))
    (image, of_images, image_place), (text, of_texts, text_place) = chosen
    mask = None if tables.text_mask is None else tables.text_mask[of_texts]
    return PairTables(image, image_place, text, mask, text_place), of_images, of_texts


def _learns(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _room(count: int, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty((count, *like.shape[1:]))


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
