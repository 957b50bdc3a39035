"""Masking for cross-modal masked language modelling, on the collator's side."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED_LABEL = -100


@dataclass(frozen=True)
class MaskingRules:
    """How tokens are masked. The defaults are those of the authors' code.

    Attributes:
        mask_token_id: id that replaces most masked tokens.
        vocab_size: random replacements are drawn from 0..vocab_size-1.
        mask_ratio: share of a text's real tokens (its start and end included) that is masked.
        max_masks: at most so many per text.
        span_probability: probability that a masked place starts a span of 2 or 3 tokens.
        mask_probability, random_probability: share of the masked tokens replaced by the mask token and by a random
            token; the rest stays as it is.
    """

    mask_token_id: int
    vocab_size: int
    mask_ratio: float = 0.4
    max_masks: int = 12
    span_probability: float = 0.2
    mask_probability: float = 0.8
    random_probability: float = 0.1


def count_masks(num_tokens: int, rules: MaskingRules) -> int:
    """min(max_masks, max(1, round(mask_ratio * num_tokens))), as the authors count; no more than can be masked."""
    wanted = min(rules.max_masks, max(1, round(rules.mask_ratio * num_tokens)))
    return min(wanted, max(0, num_tokens - 1))


def choose_masked_positions(num_tokens: int, rules: MaskingRules, generator: torch.Generator | None) -> list[int]:
    """Chooses the positions to mask in a text of `num_tokens` real tokens.

    Position 0 is never chosen, the end token may be. Places are visited in random order; each takes one token or,
    with `span_probability`, a span of two or three, until enough are covered; what is over is dropped at random.

    Returns:
        Sorted positions, `count_masks` of them.
    """
    return _cover(num_tokens, rules, *(draw[0] for draw in _draw_places(1, num_tokens, generator)))


def _draw_places(num_texts: int, length: int, generator) -> tuple[list[list[float]], ...]:
    """Random numbers for `_cover`, one row a text: order of places, span or not, length of span, order of dropping."""
    shape = (num_texts, length)
    draws = [torch.rand(shape, generator=generator) for _ in range(4)]
    return tuple(draw.tolist() for draw in draws)


def _cover(num_tokens: int, rules: MaskingRules, order, spans, lengths, drops) -> list[int]:
    """Covers enough positions of one text, by random numbers in 0..1 for each of its places."""
    wanted = count_masks(num_tokens, rules)
    chosen: set[int] = set()
    for start in sorted(range(1, num_tokens), key=order.__getitem__):
        if len(chosen) >= wanted:
            break
        length = (2 if lengths[start] < 0.5 else 3) if spans[start] < rules.span_probability else 1
        chosen.update(range(start, min(start + length, num_tokens)))
    return sorted(sorted(chosen, key=drops.__getitem__)[:wanted])


def mask_tokens(
    input_ids: torch.LongTensor,
    attention_mask: torch.LongTensor,
    rules: MaskingRules,
    generator: torch.Generator | None = None,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Masks a batch of right-padded texts.

    Of the masked tokens 80 % become the mask token, 10 % a random token (special ones possible) and 10 % stay.

    Args:
        input_ids: (T, L).
        attention_mask: (T, L), 1 at real tokens.
        rules: see `MaskingRules`.
        generator: source of randomness, the global one by default.

    Returns:
        `masked_input_ids (T, L)` and `mlm_labels (T, L)`: the original id at masked positions, -100 elsewhere.
    """
    chosen = torch.zeros_like(input_ids, dtype=torch.bool)
    draws = _draw_places(input_ids.shape[0], input_ids.shape[1], generator)
    for row, num_tokens in enumerate(attention_mask.sum(1).tolist()):
        positions = _cover(int(num_tokens), rules, *(draw[row] for draw in draws))
        chosen[row, torch.tensor(positions, dtype=torch.long)] = True
    fate = torch.rand(input_ids.shape, generator=generator)
    random_ids = torch.randint(rules.vocab_size, input_ids.shape, generator=generator)
    to_mask = chosen & (fate < rules.mask_probability)
    to_random = chosen & ~to_mask & (fate < rules.mask_probability + rules.random_probability)
    masked = input_ids.masked_fill(to_mask, rules.mask_token_id)
    return torch.where(to_random, random_ids, masked), input_ids.masked_fill(~chosen, IGNORED_LABEL)
