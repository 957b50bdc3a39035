"""Transformer layers of CCRk: the text tower, and the fusion encoder whose texts attend to images.

Post-norm layers as in BERT and XLM-R, with the parameter names of those models, so that their weights load by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .draws_ccrk import Draws, dropout


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    draws: Draws | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention spelled out: softmax(q k^T * scaling + mask) v. Heads come back as (N, L, heads, head_dim)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if draws is None:
        weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    elif dropout:
        weights = draws.dropout(weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask of true and false, or of ones and zeros (N, L), as what is added to scores."""
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None].bool()
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


class CCRkPacking:
    """Where the real tokens of padded texts stand.

    Layers run over the real tokens alone, (n, hidden): linear layers and norms do not care which text a token belongs
    to. Only attention, a hundredth of the cost, sees padded texts.

    Args:
        attention_mask: (N, L), other than 0 at real tokens.
    """

    def __init__(self, attention_mask: torch.Tensor):
        self.shape = tuple(attention_mask.shape)
        self.places = attention_mask.flatten().nonzero().flatten()

    @classmethod
    def of(cls, attention_mask: torch.Tensor | None) -> CCRkPacking | None:
        """None where nothing is to be gained, or where n, which depends on the data, must not be a shape."""
        if attention_mask is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        packing = cls(attention_mask)
        return packing if 0 < len(packing.places) < attention_mask.numel() else None

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """Real tokens (n, width) of padded texts (N, L, width)."""
        return states.flatten(0, 1).index_select(0, self.places)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Padded texts (N, L, width) of real tokens (n, width), zeros at the padding."""
        padded = states.new_zeros((self.shape[0] * self.shape[1], states.shape[-1]))
        return padded.index_copy(0, self.places, states).view(*self.shape, -1)


class CCRkImageRuns:
    """Texts that stand image by image: how long the run of each image is.

    Args:
        image_rows: (N,) the image of each text, equal ones side by side.
        attention_mask: (N, L), or None where all tokens are real.

    Attributes:
        rows: images that texts look at.
        texts, tokens: how many texts, and how many real tokens, look at each of them.
    """

    def __init__(self, image_rows: torch.LongTensor, attention_mask: torch.Tensor | None):
        rows, texts = image_rows.unique_consecutive(return_counts=True)
        self.rows, self.texts = rows.tolist(), texts.tolist()
        self.tokens = None
        if attention_mask is not None:
            self.tokens = [int(part.sum()) for part in (attention_mask != 0).sum(1).split(self.texts)]


class CCRkAttention(nn.Module):
    """Multi-head attention; queries from the text, keys and values from `key_width` wide states."""

    def __init__(self, config: PreTrainedConfig, key_width: int | None = None):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_width or config.hidden_size, config.hidden_size)
        self.value = nn.Linear(key_width or config.hidden_size, config.hidden_size)

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def keys_values(self, states: torch.Tensor, packing=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (N, heads, P, head_dim) of states (N, P, key_width), or of packed ones (n, key_width)."""
        keys, values = self.key(states), self.value(states)
        if packing is not None:
            keys, values = packing.unpack(keys), packing.unpack(values)
        return self._split(keys), self._split(values)

    def forward(
        self,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        draws: Draws | None = None,
        packing: CCRkPacking | None = None,
        runs: CCRkImageRuns | None = None,
    ) -> torch.Tensor:
        """Attends from `hidden_states`, (N, L, hidden) or packed, to keys and values made by `keys_values`.

        With `runs` keys and values are those of images, and each text attends to its own image's.
        """
        queries = self.query(hidden_states)
        if runs is not None:
            return self._attend_runs(queries, keys, values, runs)
        dropout = self.dropout if self.training else 0.0
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        keyed = {}
        if dropout and draws is not None:  # no fused attention takes its dropout mask from outside
            attend, keyed = eager_attention, {"draws": draws.at(1)}
            attention_mask = _additive(attention_mask, hidden_states.dtype)
        output, _ = attend(
            self,
            self._split(queries if packing is None else packing.unpack(queries)),
            keys,
            values,
            attention_mask,
            scaling=self.scaling,
            dropout=dropout,
            is_causal=False,
            **keyed,
        )
        output = output.flatten(-2)  # heads side by side
        return output if packing is None else packing.pack(output)

    def _attend_runs(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, runs) -> torch.Tensor:
        """All tokens that look at an image as one sequence: no padding, and no copy of keys and values."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        flat, parts = queries.reshape(-1, queries.shape[-1]), []
        counts = runs.tokens if queries.ndim == 2 else [count * queries.shape[1] for count in runs.texts]
        for row, part in zip(runs.rows, flat.split(counts), strict=True):
            of_image = slice(row, row + 1)
            output, _ = attend(
                self,
                self._split(part[None]),
                keys[of_image],
                values[of_image],
                None,
                scaling=self.scaling,
                dropout=0.0,
                is_causal=False,
            )
            parts.append(output.flatten(-2)[0])
        return torch.cat(parts).view(queries.shape)


class CCRkResidual(nn.Module):
    """Linear, dropout, addition to the residual, layer norm."""

    def __init__(self, config: PreTrainedConfig, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, states: torch.Tensor, residual: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        """LayerNorm(residual + dropout(dense(states)))."""
        return self.LayerNorm(dropout(self.dense(states), self.dropout, self.training, draws, 2) + residual)


class CCRkAttentionBlock(nn.Module):
    """Attention with its output projection and residual."""

    def __init__(self, config: PreTrainedConfig, key_width: int | None = None):
        super().__init__()
        self.self = CCRkAttention(config, key_width)
        self.output = CCRkResidual(config, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, keys, values, attention_mask=None, draws=None, packing=None, runs=None
    ) -> torch.Tensor:
        """Attends to given keys and values and adds the residual."""
        attended = self.self(hidden_states, keys, values, attention_mask, draws, packing, runs)
        return self.output(attended, hidden_states, _packed(draws, packing))


class CCRkIntermediate(nn.Module):
    """First half of the feed-forward network."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """activation(dense(states))."""
        return self.activation(self.dense(states))


class CCRkLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention to an image where `image_width` is given, feed-forward; each with post-norm."""

    def __init__(self, config: PreTrainedConfig, image_width: int | None = None):
        super().__init__()
        self.attention = CCRkAttentionBlock(config)
        if image_width is not None:
            self.crossattention = CCRkAttentionBlock(config, image_width)
        self.intermediate = CCRkIntermediate(config)
        self.output = CCRkResidual(config, config.intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_keys: torch.Tensor | None = None,
        image_values: torch.Tensor | None = None,
        draws: Draws | None = None,
        packing: CCRkPacking | None = None,
        first_only: bool = False,
        runs: CCRkImageRuns | None = None,
        attended: bool = False,
    ) -> torch.Tensor:
        """One layer over (N, L, hidden), or (n, hidden) if packed; image keys and values: (N, heads, P, head_dim).

        With `runs` texts stand in its order, and keys and values are those of images, not one for each text. With
        `attended` the states have been through the self-attention before.
        With `first_only` every token is attended to, but the output is that of the first token alone, (N, 1, hidden).
        """
        if not attended:
            hidden_states = self.attend_to_text(hidden_states, attention_mask, draws, packing, first_only)
        if first_only:
            packing = None
        if image_keys is not None:
            hidden_states = self.crossattention(
                hidden_states, image_keys, image_values, draws=_at(draws, 2), packing=packing, runs=runs
            )
        return self.output(self.intermediate(hidden_states), hidden_states, _packed(_at(draws, 3), packing))

    def attend_to_text(
        self, hidden_states: torch.Tensor, attention_mask, draws=None, packing=None, first_only: bool = False
    ) -> torch.Tensor:
        """The self-attention block alone, as `forward` begins; with `first_only` (N, 1, hidden)."""
        keys, values = self.attention.self.keys_values(hidden_states, packing)
        if first_only:
            hidden_states = (hidden_states if packing is None else packing.unpack(hidden_states))[:, :1]
            attention_mask, packing = None if attention_mask is None else attention_mask[:, :, :1], None
        return self.attention(hidden_states, keys, values, attention_mask, _at(draws, 1), packing)

    def image_keys_values(self, image_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, P, head_dim) of the cross-attention for image tokens (B, P, image_width)."""
        return self.crossattention.self.keys_values(image_hidden_states)


def _at(draws: Draws | None, place: int) -> Draws | None:
    return None if draws is None else draws.at(place)


def _packed(draws: Draws | None, packing: CCRkPacking | None) -> Draws | None:
    """The same draws for the real tokens alone."""
    return draws if draws is None or packing is None else draws.packed(packing.shape[1], packing.places)


class CCRkTextEmbeddings(nn.Module):
    """Word, position and token type embeddings with their layer norm."""

    def __init__(self, config: PreTrainedConfig, position_offset: int):
        super().__init__()
        self.position_offset = position_offset
        self.tied: Any = None  # a `CCRkTiedWords` while a batch is also decoded with the word embeddings
        self.max_length = config.max_position_embeddings - position_offset
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, input_ids: torch.LongTensor, draws: Draws | None = None) -> torch.Tensor:
        """Embeds (T, L) token ids; positions count from `position_offset`, padding included.

        Raises:
            ValueError: if the texts are longer than there are positions.
        """
        length = input_ids.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"texts of {length} tokens, but this model has positions for {self.max_length}: "
                "pass truncation=True (and max_length=...) to the processor"
            )
        positions = torch.arange(length, device=input_ids.device) + self.position_offset
        look_up = self.word_embeddings if self.tied is None else self.tied.look_up
        embeddings = look_up(input_ids) + self.token_type_embeddings.weight[0]
        embeddings = self.LayerNorm(embeddings + self.position_embeddings(positions))
        return dropout(embeddings, self.dropout, self.training, draws, 99)


class CCRkTextTower(nn.Module):
    """Embeddings and the layers that see only text."""

    def __init__(self, config: PreTrainedConfig, num_layers: int, position_offset: int):
        super().__init__()
        self.config = config
        self.embeddings = CCRkTextEmbeddings(config, position_offset)
        self.layer = nn.ModuleList(CCRkLayer(config) for _ in range(num_layers))

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        draws: Draws | None = None,
    ) -> torch.Tensor:
        """Hidden states (T, L, hidden) of token ids (T, L); dropout by `draws` where they are given."""
        hidden_states = self.embeddings(input_ids, draws)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        packing = CCRkPacking.of(attention_mask)
        if packing is not None:
            hidden_states = packing.pack(hidden_states)
        for number, layer in enumerate(self.layer):
            hidden_states = layer(hidden_states, mask, draws=_at(draws, number), packing=packing)
        return hidden_states if packing is None else packing.unpack(hidden_states)


@dataclass
class CCRkImageStates:
    """What the fusion encoder needs of images, computed once: keys and values of its cross-attention, by layer.

    Attributes:
        keys, values: for each fusion layer a tensor (B, heads, 1 + P, head_dim).
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[0]

    def _map(self, function) -> CCRkImageStates:
        return CCRkImageStates(tuple(map(function, self.keys)), tuple(map(function, self.values)))

    def select(self, rows: torch.LongTensor) -> CCRkImageStates:
        """The states of some images, in the order of `rows (N,)`."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, *args, **kwargs) -> CCRkImageStates:
        """Moves or casts all tensors, as `torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    @classmethod
    def cat(cls, parts: list[CCRkImageStates]) -> CCRkImageStates:
        """Joins the states of several batches of images."""
        return cls(
            tuple(torch.cat(tensors) for tensors in zip(*(part.keys for part in parts), strict=True)),
            tuple(torch.cat(tensors) for tensors in zip(*(part.values for part in parts), strict=True)),
        )


def trim_padding(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cuts off the columns on the right that are padding in every text of (N, L, ...); it costs time and no more."""
    if attention_mask is None or not len(attention_mask):
        return hidden_states, attention_mask
    used = attention_mask.any(0).nonzero()
    length = int(used.max()) + 1 if len(used) else attention_mask.shape[1]
    return hidden_states[:, :length], attention_mask[:, :length]


class CCRkFusionEncoder(nn.Module):
    """Layers in which the tokens of a text attend to one another and to an image; see `fusion_image_norm`."""

    def __init__(self, config: PreTrainedConfig, num_layers: int, image_width: int, normalize_images: bool = False):
        super().__init__()
        self.config = config
        self.normalize_images = normalize_images
        self.layer = nn.ModuleList(CCRkLayer(config, image_width) for _ in range(num_layers))

    def image_states(self, image_hidden_states: torch.Tensor) -> CCRkImageStates:
        """Keys and values of every layer for image tokens (B, 1 + P, image_width)."""
        if self.normalize_images:
            image_hidden_states = nn.functional.layer_norm(image_hidden_states, image_hidden_states.shape[-1:])
        pairs = [layer.image_keys_values(image_hidden_states) for layer in self.layer]
        return CCRkImageStates(tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        states: CCRkImageStates,
        image_rows: torch.LongTensor | None = None,
        draws: Draws | None = None,
        first_only: bool = False,
    ) -> torch.Tensor:
        """Fuses texts with images.

        Args:
            hidden_states: (N, L, hidden) output of the text tower.
            attention_mask: (N, L).
            states: of B images.
            image_rows: (N,) the image of each text; without it text i goes with image i. Rows are picked layer by
                layer, so that no copy of all layers is ever held.
            draws: dropout by keys, one for each text.
            first_only: the last layer computes the first token of each text alone, where that is all that is needed.

        Returns:
            (N, L, hidden); with `first_only` (N, 1, hidden).
        """
        mask = self._mask(hidden_states, attention_mask)
        packing = CCRkPacking.of(attention_mask)
        if packing is not None:
            hidden_states = packing.pack(hidden_states)
        cut = first_only and _can_cut(mask)
        for number, (layer, keys, values) in enumerate(zip(self.layer, states.keys, states.values, strict=True)):
            if image_rows is not None:
                keys, values = keys[image_rows], values[image_rows]
            last = cut and layer is self.layer[-1]
            hidden_states = layer(
                hidden_states, mask, keys, values, draws=_at(draws, 50 + number), packing=packing, first_only=last
            )
        if cut:
            return hidden_states
        hidden_states = hidden_states if packing is None else packing.unpack(hidden_states)
        return hidden_states[:, :1] if first_only else hidden_states

    def fuse_pairs(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        states: CCRkImageStates,
        image_rows: torch.LongTensor,
        text_rows: torch.LongTensor,
        first_only: bool = False,
    ) -> torch.Tensor:
        """Fuses pairs of T texts and B images, for passes without gradients on a CPU; equal to `forward` on pairs.

        The texts of an image attend to it as one sequence, and what the first layer does before it looks at an image
        is done once for each text.

        Args:
            hidden_states: (T, L, hidden).
            attention_mask: (T, L).
            states: of the images.
            image_rows: (N,) the image of each pair.
            text_rows: (N,) the text of each pair.
            first_only: as in `forward`.

        Returns:
            (N, L, hidden); with `first_only` (N, 1, hidden).
        """
        order = image_rows.argsort(stable=True)
        own, places = text_rows[order].unique(return_inverse=True)
        texts, of_texts = hidden_states[own], None if attention_mask is None else attention_mask[own]
        texts, of_texts = trim_padding(texts, of_texts)
        pairs_mask = None if of_texts is None else of_texts[places]
        runs, packing = CCRkImageRuns(image_rows[order], pairs_mask), CCRkPacking.of(pairs_mask)
        mask = self._mask(texts, of_texts)
        cut = first_only and _can_cut(mask)
        attended = len(self.layer) > 1 or not cut
        if attended:
            of_own = CCRkPacking.of(of_texts)
            texts = texts if of_own is None else of_own.pack(texts)
            texts = self.layer[0].attend_to_text(texts, mask, packing=of_own)
            texts = texts if of_own is None else of_own.unpack(texts)
        fused = texts[places] if packing is None else packing.pack(texts[places])
        mask = mask[places] if isinstance(mask, torch.Tensor) else self._mask(texts[places], pairs_mask)
        for number, (layer, keys, values) in enumerate(zip(self.layer, states.keys, states.values, strict=True)):
            fused = layer(
                fused,
                mask,
                keys,
                values,
                packing=packing,
                first_only=cut and layer is self.layer[-1],
                runs=runs,
                attended=attended and number == 0,
            )
        if not cut:
            fused = fused if packing is None else packing.unpack(fused)
        return (fused[:, :1] if first_only else fused)[order.argsort()]

    def _mask(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None):
        return create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )


def _can_cut(mask) -> bool:
    """Masks of other forms than (N, 1, L, L), as some attention implementations have them, cannot be cut."""
    return mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 4)
