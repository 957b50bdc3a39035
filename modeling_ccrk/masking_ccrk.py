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
    wanted = count_masks(num_tokens, rules)
    chosen: set[int] = set()
    order = (torch.randperm(num_tokens - 1, generator=generator) + 1).tolist() if num_tokens > 1 else []
    for start in order:
        if len(chosen) >= wanted:
            break
        length = 1
        if torch.rand((), generator=generator) < rules.span_probability:
            length = int(torch.randint(2, 4, (), generator=generator))
        chosen.update(range(start, min(start + length, num_tokens)))
    positions = sorted(chosen)
    if len(positions) > wanted:
        kept = torch.randperm(len(positions), generator=generator)[:wanted].tolist()
        positions = sorted(positions[i] for i in kept)
    return positions


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
    masked = input_ids.clone()
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, num_tokens in enumerate(attention_mask.sum(1).tolist()):
        positions = torch.tensor(choose_masked_positions(int(num_tokens), rules, generator), dtype=torch.long)
        labels[row, positions] = input_ids[row, positions]
        fate = torch.rand(len(positions), generator=generator)
        random_ids = torch.randint(rules.vocab_size, (len(positions),), generator=generator)
        to_mask = fate < rules.mask_probability
        to_random = (fate >= rules.mask_probability) & (fate < rules.mask_probability + rules.random_probability)
        masked[row, positions[to_mask]] = rules.mask_token_id
        masked[row, positions[to_random]] = random_ids[to_random]
    return masked, labels
