"""Random numbers that are a function of a key and a place, and of nothing else.

A generator's numbers depend on what was drawn before: split a batch over two processes, take it in pieces, or pad it
further, and every row gets another dropout mask. Here each row of a batch has a key (made of seed, step and the
identity of the image), each place in the model a number, and a hash of both says what is drawn. The same row gets the
same draws however the batch is cut, on whatever device, and a second pass repeats the first with no state kept.

The hash is the finalizer of splitmix64 (Steele, Lea and Flood 2014) for keys, and that of MurmurHash3 for elements.
"""

from __future__ import annotations

import torch
from torch import nn

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as signed
_A, _B = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # multipliers of splitmix64, as signed
_C, _D = -0x7A143595, -0x3D4D51CB  # multipliers of MurmurHash3's finalizer, as signed 32 bit
_GOLDEN_32 = -0x61C88647


def _shift(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right of int64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(keys: torch.LongTensor, number: int | torch.LongTensor) -> torch.LongTensor:
    """Keys made of keys and a number (or a tensor of numbers), as if drawn anew; int64, wrapping."""
    if not isinstance(number, torch.Tensor):
        # int64 wraps around by itself; in Python's ints a compiler that takes the number for a variable could not
        number = keys.new_full((), number)
    keys = (keys ^ (number * GOLDEN)) + GOLDEN
    keys = (keys ^ _shift(keys, 30)) * _A
    keys = (keys ^ _shift(keys, 27)) * _B
    return keys ^ _shift(keys, 31)


def _scramble(values: torch.IntTensor) -> torch.IntTensor:
    """In place: the last rounds of a 32 bit hash but for its last shift, which serves the low bits; use the high."""
    values.mul_(_C)
    values.bitwise_xor_((values >> 15).bitwise_and_(0x1FFFF))  # a logical shift: the sign is a bit like others
    return values.mul_(_D)


def _columns(count: int, device: torch.device) -> torch.IntTensor:
    """A random-looking int32 for each of `count` columns."""
    return mix(torch.arange(count, device=device), 1).to(torch.int32)


def uniform(row_keys: torch.LongTensor, column_keys: torch.LongTensor) -> torch.Tensor:
    """Numbers uniform over (0, 1), one for each pair of a row key and a column key; the keys broadcast."""
    values = _scramble(row_keys.to(torch.int32) ^ mix(column_keys, 1).to(torch.int32))
    return ((values >> 9) & 0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)


class Draws:
    """Random draws for the rows of a tensor.

    Args:
        keys: (N,) int64, one for each row.
        tokens: length of rows, and which of all rows' tokens there are: rows are then tokens, see `packed`.
    """

    def __init__(self, keys: torch.LongTensor, tokens: tuple[int, torch.LongTensor] | None = None):
        self.keys = keys
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.keys) if self.tokens is None else len(self.tokens[1])

    def at(self, place: int) -> Draws:
        """Draws for another place in the model; the same rows."""
        return Draws(mix(self.keys, place), self.tokens)

    def packed(self, length: int, places: torch.LongTensor) -> Draws:
        """Draws for some tokens of rows (N, length), at `places` of them all; each gets what it would in its row."""
        return Draws(self.keys, (length, places))

    def rows(self, index: torch.LongTensor | slice) -> Draws:
        """Draws for some of the rows."""
        return Draws(self.keys[index])

    def keep(self, shape: tuple[int, ...], probability: float) -> torch.BoolTensor:
        """Which elements are kept: (N, ...) of `shape`, true with `probability`.

        What an element gets depends on its row's key and its indices, not on the size of any dimension but its own
        place in it, so that padding changes nothing.
        """
        values = self.keys.to(torch.int32)
        device = values.device
        if self.tokens is not None:
            shape = (len(values), self.tokens[0], *shape[1:])
        for size in shape[1:-1]:
            values = _scramble(values[..., None] ^ (torch.arange(size, dtype=torch.int32, device=device) * _GOLDEN_32))
            if self.tokens is not None and values.ndim == 2:
                values = values.flatten()[self.tokens[1]]
        if len(shape) > 1:
            values = values[..., None] ^ _columns(shape[-1], device)
        limit = round((1 - probability) * 2**32) - 2**31
        return _scramble(values) >= min(limit, 2**31 - 1)

    def dropout(self, states: torch.Tensor, probability: float) -> torch.Tensor:
        """Dropout of (N, ...): each element is zero with `probability`, the rest scaled up.

        Raises:
            ValueError: if there is not one key for each row.
        """
        if len(self) != len(states):
            raise ValueError(f"there are draws for {len(self)} rows, but {len(states)} rows to drop from")
        return states * (self.keep(tuple(states.shape), 1 - probability) * (1 / (1 - probability))).to(states.dtype)


def dropout(states: torch.Tensor, probability: float, training: bool, draws: Draws | None, place: int = 0):
    """Dropout by keys where there are draws, and by the global generator otherwise; none outside training."""
    if not training or probability == 0:
        return states
    if draws is None:
        return nn.functional.dropout(states, probability)
    return draws.at(place).dropout(states, probability)


class DrawsHolder:
    """Where modules that cannot be handed an argument (those inside a timm model) find the draws of this pass."""

    def __init__(self):
        self.draws: Draws | None = None


class KeyedDropout(nn.Module):
    """Takes the place of dropout or stochastic depth in a model that is not ours.

    Args:
        probability: of dropping.
        whole_rows: drop whole rows (stochastic depth) rather than elements.
        holder: where the draws are.
        place: the number of this module.
    """

    def __init__(self, probability: float, whole_rows: bool, holder: DrawsHolder, place: int):
        super().__init__()
        self.drop_prob = probability
        self.whole_rows = whole_rows
        self.holder = holder
        self.place = place

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Drops from (N, ...), where N may be a multiple of the number of keys (windows of an image, in order)."""
        if not self.training or self.drop_prob == 0:
            return states
        shape = (len(states), *[1] * (states.ndim - 1)) if self.whole_rows else tuple(states.shape)
        draws = self.holder.draws
        if draws is None:
            keep = torch.empty(shape, device=states.device).bernoulli_(1 - self.drop_prob)
        else:
            draws = draws.at(self.place)
            parts = len(states) // len(draws.keys)
            if parts > 1:
                numbers = torch.arange(parts, device=states.device)
                draws = Draws(mix(draws.keys[:, None].expand(-1, parts), numbers).flatten())
            keep = draws.keep(shape, 1 - self.drop_prob)
        return states * (keep * (1 / (1 - self.drop_prob))).to(states.dtype)


def replace_dropouts(model: nn.Module, holder: DrawsHolder) -> None:
    """Puts a `KeyedDropout` in the place of every dropout and stochastic depth of a timm model.

    Modules of probability 0 are left as they are; none of them has weights, so the state dict stays the same.
    """
    place = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kind = type(child).__name__
            if isinstance(child, nn.Dropout) or kind == "DropPath":
                probability = float(child.p if isinstance(child, nn.Dropout) else child.drop_prob or 0.0)
                place += 1
                if probability > 0:
                    setattr(module, name, KeyedDropout(probability, kind == "DropPath", holder, place))


__all__ = ["Draws", "DrawsHolder", "KeyedDropout", "dropout", "mix", "replace_dropouts", "uniform"]
