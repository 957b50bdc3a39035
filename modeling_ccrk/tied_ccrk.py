"""Word embeddings that are looked up and decoded with: one dense gradient for both uses, not one for each.

Plain autograd makes a table of zeros for every look-up, a table for the decoder, and sums them. At the paper's size a
table is a gigabyte, and this costs an eighth of a training step. Here look-ups give only the rows they read, and these
are added to the decoder's table in place.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _Table(torch.autograd.Function):
    """The table itself; the one place where all gradients of a batch come together."""

    @staticmethod
    def forward(ctx, weight, owner):
        ctx.owner = owner
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, rows):
        decoded, ctx.owner.decoded = ctx.owner.decoded, None
        if not rows.is_sparse:
            return (rows if decoded is None else decoded.add_(rows)), None
        if decoded is None:
            decoded = torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
        return decoded.index_add_(0, rows._indices()[0], rows._values()), None


class _Decode(torch.autograd.Function):
    """A linear layer that leaves the gradient of its weight with the owner, for `_Table` to pass on."""

    @staticmethod
    def forward(ctx, states, weight, bias, owner):
        device = states.device.type
        ctx.owner, ctx.dtype = owner, weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            weight, bias = weight.to(dtype), bias.to(dtype)
        ctx.save_for_backward(states, weight)
        return nn.functional.linear(states.to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        states, weight = ctx.saved_tensors
        # straight into the weight's own type: a table in a smaller type and its conversion would cost more
        wide = gradient.to(ctx.dtype)
        ours = wide.t() @ states.to(ctx.dtype)
        ctx.owner.decoded = ours if ctx.owner.decoded is None else ctx.owner.decoded.add_(ours)
        return (gradient @ weight).to(states.dtype), None, wide.sum(0), None


class CCRkTiedWords:
    """The word embeddings of one batch whose masked texts are looked up in them and decoded with them.

    Every decoded state must come from a look-up in the same object, as those of masked texts do: the decoder's part
    of the gradient reaches the weight through the look-ups.

    Args:
        weight: (V, hidden).
        padding_idx: row that look-ups do not train.
    """

    def __init__(self, weight: nn.Parameter, padding_idx: int | None):
        self.weight, self.padding_idx = weight, padding_idx
        self.decoded: torch.Tensor | None = None
        self.table = _Table.apply(weight, self)

    @classmethod
    def of(cls, words: nn.Module, decoder: nn.Module) -> CCRkTiedWords | None:
        """None where the two do not share a trained weight, or autograd is off or being compiled."""
        plain = type(words) is nn.Embedding and type(decoder) is nn.Linear and decoder.weight is words.weight
        if not plain or not words.weight.requires_grad or not torch.is_grad_enabled():
            return None
        if words.max_norm is not None or words.scale_grad_by_freq or decoder.bias is None:
            return None
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        return cls(words.weight, words.padding_idx)

    def look_up(self, ids: torch.LongTensor) -> torch.Tensor:
        """Rows (..., hidden) of token ids (...)."""
        return nn.functional.embedding(ids, self.table, self.padding_idx, sparse=True)

    def decode(self, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) of states (N, hidden)."""
        return _Decode.apply(states, self.weight, bias, self)
