from __future__ import annotations

import pytest
import torch

from ccrk.masking_ccrk import MaskingRules, choose_masked_positions, count_masks, mask_tokens

RULES = MaskingRules(mask_token_id=999, vocab_size=1000)
# 40 % of the tokens, rounded, from 2 to 32 tokens; from 32 on the limit of 12 holds
COUNTS = [1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 12, 12, 12, 12]


@pytest.mark.parametrize("length", range(2, 61))
def test_number_of_masks(length):
    expected = COUNTS[length - 2] if length <= 32 else 12
    assert count_masks(length, RULES) == expected
    generator = torch.Generator().manual_seed(length)
    for _ in range(20):
        positions = choose_masked_positions(length, RULES, generator)
        assert len(positions) == expected
        assert positions == sorted(set(positions))
        assert positions[0] >= 1 and positions[-1] < length


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_maskable_tokens(length):
    assert count_masks(length, RULES) == 0
    assert choose_masked_positions(length, RULES, None) == []


def test_no_more_masks_than_maskable_tokens():
    rules = MaskingRules(mask_token_id=9, vocab_size=10, mask_ratio=1.0, max_masks=50)
    assert choose_masked_positions(6, rules, None) == [1, 2, 3, 4, 5]


def test_every_place_but_the_first_is_chosen_the_end_token_too():
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(10)
    for _ in range(2000):
        seen[choose_masked_positions(10, RULES, generator)] += 1
    assert seen[0] == 0
    # 4 of 9 places on average; the spans favour the later ones a little, as they run to the right
    assert (seen[1:] / 2000 > 0.3).all() and (seen[1:] / 2000 < 0.55).all()


def neighbours(rules: MaskingRules, draws: int = 3000) -> float:
    """Share of draws of two positions among 59 that lie side by side."""
    generator = torch.Generator().manual_seed(1)
    pairs = [choose_masked_positions(60, rules, generator) for _ in range(draws)]
    return sum(b - a == 1 for a, b in pairs) / draws


def test_spans_of_two_and_three():
    # Two of 59 places, spans with probability 0.2. First place a span: of 2 (0.1) side by side, of 3 (0.1) two of the
    # three are, 2/3. First place alone (0.8): a second alone is beside it by chance 2/59, a span of 2 or 3 (0.1 each)
    # leaves two of three or of four places, 1/3 side by side. In all 0.1 + 0.067 + 0.8 * (0.027 + 0.067) = 0.24.
    two = {"mask_token_id": 9, "vocab_size": 10, "max_masks": 2}
    assert neighbours(MaskingRules(**two)) == pytest.approx(0.24, abs=0.03)
    assert neighbours(MaskingRules(**two, span_probability=0.0)) == pytest.approx(2 / 59, abs=0.02)
    # always a span: of 2 in half of the draws, of 3 in the other half
    assert neighbours(MaskingRules(**two, span_probability=1.0)) == pytest.approx(1 / 2 + 1 / 3, abs=0.03)


def test_runs_of_three_come_from_spans():
    rules = MaskingRules(mask_token_id=9, vocab_size=10, max_masks=3, span_probability=1.0)
    generator = torch.Generator().manual_seed(2)
    draws = [choose_masked_positions(60, rules, generator) for _ in range(1000)]
    # the first span is of 3 in half of the draws, less the few that the end of the text cuts off
    share = sum(c - a == 2 for a, b, c in draws) / 1000
    assert 0.44 < share < 0.68


@pytest.fixture
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """400 texts of 5 to 40 tokens, padded to 40 with 1."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(5, 41, (400,), generator=generator)
    mask = (torch.arange(40)[None] < lengths[:, None]).long()
    ids = torch.randint(10, 900, (400, 40), generator=generator)
    ids[:, 0] = 0
    ids[torch.arange(400), lengths - 1] = 2
    return ids.masked_fill(mask == 0, 1), mask


def test_labels_are_the_original_ids_at_masked_places_only(texts):
    ids, mask = texts
    original = ids.clone()
    masked, labels = mask_tokens(ids, mask, RULES, torch.Generator().manual_seed(4))
    assert torch.equal(ids, original)
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    assert not chosen[:, 0].any()
    assert not (chosen & (mask == 0)).any()
    assert (chosen & (ids == 2)).any()
    assert chosen.sum(1).tolist() == [count_masks(int(n), RULES) for n in mask.sum(1)]


def test_shares_of_mask_random_and_kept(texts):
    generator = torch.Generator().manual_seed(5)
    totals = torch.zeros(3)
    for _ in range(8):
        masked, labels = mask_tokens(*texts, RULES, generator)
        chosen = labels != -100
        is_mask, is_same = masked[chosen] == 999, masked[chosen] == labels[chosen]
        totals += torch.tensor([is_mask.sum(), (~is_mask & ~is_same).sum(), is_same.sum()])
    assert totals.sum() > 20_000
    # one random token in a thousand equals the original or the mask; three standard deviations are about 0.008
    torch.testing.assert_close(totals / totals.sum(), torch.tensor([0.8, 0.1, 0.1]), atol=0.01, rtol=0)


def test_random_tokens_come_from_the_whole_vocabulary(texts):
    rules = MaskingRules(mask_token_id=7, vocab_size=8, mask_probability=0.0, random_probability=1.0)
    masked, labels = mask_tokens(*texts, rules, torch.Generator().manual_seed(6))
    counts = torch.bincount(masked[labels != -100], minlength=8).double()
    assert len(counts) == 8
    torch.testing.assert_close(counts / counts.sum(), torch.full((8,), 1 / 8).double(), atol=0.03, rtol=0)


def test_a_generator_makes_it_repeatable(texts):
    state = torch.get_rng_state()
    first, again, other = (mask_tokens(*texts, RULES, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(torch.get_rng_state(), state)
