from __future__ import annotations

import pytest
import torch

from ccrk.text_layers_ccrk import CCRkFusionEncoder, CCRkImageStates, CCRkPacking, CCRkTextTower, eager_attention


@pytest.fixture
def text_config(tiny_config):
    config = tiny_config().text_config
    config._attn_implementation = "eager"
    return config


def test_attention_by_hand():
    # one query with scores 0 and log 3 after scaling: weights 1/4 and 3/4
    query = torch.tensor([[[[1.0, 0.0]]]])
    key = torch.tensor([[[[0.0, 5.0], [2 * torch.tensor(3.0).log(), 0.0]]]])
    values = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    output, weights = eager_attention(torch.nn.Identity().eval(), query, key, values, None, scaling=0.5)
    torch.testing.assert_close(weights, torch.tensor([[[[0.25, 0.75]]]]))
    torch.testing.assert_close(output, torch.tensor([[[[1.0, 6.0]]]]))
    hidden = torch.tensor([[[[0.0, torch.finfo(torch.float32).min]]]])
    output, _ = eager_attention(torch.nn.Identity().eval(), query, key, values, hidden, scaling=0.5)
    torch.testing.assert_close(output, torch.tensor([[[[4.0, 0.0]]]]))


def test_positions_count_from_the_offset(text_config):
    torch.manual_seed(0)
    tower = CCRkTextTower(text_config, 0, 2).eval()
    ids = torch.tensor([[5, 6, 7]])
    words = tower.embeddings
    by_hand = (
        words.word_embeddings.weight[[5, 6, 7]]
        + words.position_embeddings.weight[[2, 3, 4]]
        + words.token_type_embeddings.weight[0]
    )
    expected = torch.nn.functional.layer_norm(by_hand, (16,), eps=1e-5)
    torch.testing.assert_close(tower(ids)[0], expected)


@pytest.mark.parametrize("offset", [0, 2])
def test_texts_up_to_the_last_position(text_config, offset):
    tower = CCRkTextTower(text_config, 1, offset).eval()
    assert tower(torch.full((1, 40 - offset), 5)).shape == (1, 40 - offset, 16)
    with pytest.raises(
        ValueError, match=f"texts of {41 - offset} tokens, .* positions for {40 - offset}: .*truncation"
    ):
        tower(torch.full((1, 41 - offset), 5))


def test_padding_changes_nothing(text_config):
    torch.manual_seed(0)
    tower = CCRkTextTower(text_config, 2, 0).eval()
    ids = torch.tensor([[0, 7, 8, 2]])
    padded = torch.tensor([[0, 7, 8, 2, 1, 9, 1]])  # what stands in the padding does not matter either
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    torch.testing.assert_close(tower(padded, mask)[:, :4], tower(ids), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(tower(padded)[:, :4], tower(ids), atol=1e-3)


def test_every_text_token_sees_the_image(text_config):
    torch.manual_seed(0)
    fusion = CCRkFusionEncoder(text_config, 1, 5).eval()
    hidden, images = torch.randn(1, 3, 16), torch.randn(2, 4, 5)
    states = fusion.image_states(images)
    first, second = (fusion(hidden, None, states, torch.tensor([row])) for row in (0, 1))
    assert (first - second).abs().amax(-1).min() > 1e-4
    assert len(states) == 2 and states.keys[0].shape == (2, 2, 4, 8)


def test_rows_pick_the_images(text_config):
    torch.manual_seed(0)
    fusion = CCRkFusionEncoder(text_config, 2, 5).eval()
    hidden, states = torch.randn(4, 3, 16), fusion.image_states(torch.randn(3, 4, 5))
    rows = torch.tensor([2, 0, 2, 1])
    together = fusion(hidden, None, states, rows)
    torch.testing.assert_close(fusion(hidden, None, states.select(rows)), together)
    for number, row in enumerate(rows):
        alone = fusion(hidden[number : number + 1], None, states.select(row[None]))
        torch.testing.assert_close(alone[0], together[number], atol=1e-6, rtol=1e-5)


def test_image_states_join_select_and_move(text_config):
    fusion = CCRkFusionEncoder(text_config, 2, 5)
    images = torch.randn(5, 4, 5)
    whole = fusion.image_states(images)
    joined = CCRkImageStates.cat([fusion.image_states(part) for part in images.split(2)])
    assert len(joined) == 5 and len(joined.keys) == 2
    for ours, theirs in zip(joined.keys + joined.values, whole.keys + whole.values, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert whole.to(torch.bfloat16).values[1].dtype == torch.bfloat16
    assert torch.equal(whole.select(torch.tensor([3, 1])).keys[1], whole.keys[1][[3, 1]])


def test_normalised_images_have_no_scale(text_config):
    torch.manual_seed(0)
    plain, norm = CCRkFusionEncoder(text_config, 2, 5), CCRkFusionEncoder(text_config, 2, 5, normalize_images=True)
    norm.load_state_dict(plain.state_dict())
    images = torch.randn(3, 4, 5) + 2
    states = norm.image_states(images)
    scaled = norm.image_states(50 * images)
    for ours, theirs in zip(scaled.keys + scaled.values, states.keys + states.values, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    by_hand = (images - images.mean(-1, keepdim=True)) / images.var(-1, correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(states.keys[1], plain.image_states(by_hand).keys[1])
    assert not torch.allclose(plain.image_states(images).keys[0], states.keys[0], atol=1e-2)


# --- fast paths against their plain forms -------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])


def plain(monkeypatch) -> None:
    """From here on every token is computed, padding too."""
    monkeypatch.setattr(CCRkPacking, "of", classmethod(lambda cls, mask: None))


def outcome(function, modules) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a function gives, and the gradients of a weighted sum of it."""
    for module in modules:
        module.zero_grad()
    output = function()
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    return output.detach(), {
        f"{place}.{name}": parameter.grad
        for place, module in enumerate(modules)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def assert_same(ours, theirs) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert ours[1].keys() == theirs[1].keys() and len(ours[1]) > 20
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_packing_there_and_back():
    packing = CCRkPacking.of(MASK)
    states = torch.arange(36.0).view(3, 6, 2)
    packed = packing.pack(states)
    torch.testing.assert_close(packed, torch.cat([states[0, :4], states[1], states[2, :2]]))
    torch.testing.assert_close(packing.unpack(packed), states * MASK[..., None])
    assert CCRkPacking.of(None) is None and CCRkPacking.of(torch.ones(2, 3)) is None
    assert CCRkPacking.of(torch.zeros(2, 3)) is None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_padding_is_not_computed_and_changes_nothing(text_config, monkeypatch, attention, checkpointing):
    torch.manual_seed(0)
    text_config._attn_implementation = attention
    text_config.hidden_dropout_prob = text_config.attention_probs_dropout_prob = 0.0
    tower, fusion = CCRkTextTower(text_config, 2, 0).train(), CCRkFusionEncoder(text_config, 2, 5).train()
    for layer in [*tower.layer, *fusion.layer]:
        layer.gradient_checkpointing = checkpointing
        layer._gradient_checkpointing_func = lambda f, *a: torch.utils.checkpoint.checkpoint(
            f, *a, use_reentrant=False
        )
    ids, images, rows = torch.randint(3, 40, MASK.shape), torch.randn(2, 4, 5), torch.tensor([1, 0, 1])
    widths = []
    tower.layer[1].intermediate.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[:-1]))

    def run():
        states = fusion.image_states(images)
        return fusion(tower(ids, MASK), MASK, states, rows) * MASK[..., None]

    fast = outcome(run, (tower, fusion))
    assert set(widths) == {(12,)}
    plain(monkeypatch)
    assert_same(fast, outcome(run, (tower, fusion)))
    assert widths[-1] == (3, 6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [MASK, None])
def test_the_first_token_alone(text_config, monkeypatch, attention, mask):
    torch.manual_seed(0)
    text_config._attn_implementation = attention
    fusion = CCRkFusionEncoder(text_config, 2, 5).eval()
    hidden, images, rows = torch.randn(3, 6, 16), torch.randn(2, 4, 5), torch.tensor([1, 0, 1])
    widths = []
    fusion.layer[1].intermediate.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))

    def run(first_only=False):
        return fusion(hidden, mask, fusion.image_states(images), rows, first_only=first_only)[:, :1]

    fast = outcome(lambda: run(first_only=True), (fusion,))
    assert widths == [1]
    plain(monkeypatch)
    assert_same(fast, outcome(run, (fusion,)))
    assert widths == [1, 6]
