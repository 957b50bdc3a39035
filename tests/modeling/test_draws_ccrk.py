"""Keyed draws: they look random in every direction, and depend on the key and the place alone."""

from __future__ import annotations

import pytest
import torch

from ccrk.configuration_ccrk import CCRkVisionConfig
from ccrk.draws_ccrk import Draws, KeyedDropout, dropout, mix, uniform
from ccrk.image_tower_ccrk import CCRkImageTower

KEYS = torch.randint(2**62, (64,), generator=torch.Generator().manual_seed(0))
SHAPES = [(64,), (64, 4000), (64, 40, 96), (64, 4, 30, 30)]
SWIN = CCRkVisionConfig(
    image_size=32,
    model_args={
        "window_size": 4,
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "drop_path_rate": 0.5,
        "proj_drop_rate": 0.2,
        "attn_drop_rate": 0.2,
    },
)
CONVNEXT = CCRkVisionConfig(
    architecture="convnext_atto",
    image_size=32,
    model_args={
        "depths": [2, 1, 1, 1],
        "dims": [8, 8, 16, 16],
        "patch_size": 2,
        "drop_path_rate": 0.5,
        "ls_init_value": 1.0,  # branches start so small by default that dropping one changes next to nothing
    },
)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two sets of numbers, times the root of their count: about normal if they are independent."""
    one, other = (x.double().flatten() for x in (one, other))
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).mean() / (one.std() * other.std()) * len(one) ** 0.5)


# --- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_share_that_is_kept(shape, probability):
    kept = Draws(KEYS).keep(shape, probability).double()
    deviation = (probability * (1 - probability) / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - probability) < 4.5 * deviation
    # each row by itself too: the squares of the deviations of 64 rows are about 64 with a deviation of 11
    of_rows = kept.flatten(1)
    scores = (of_rows.mean(1) - probability) / (probability * (1 - probability) / of_rows.shape[1]) ** 0.5
    assert 20 < float((scores**2).sum()) < 120


def test_rows_by_themselves():
    keys = torch.arange(20000)
    kept = Draws(keys).keep((20000,), 0.3).double()
    assert abs(float(kept.mean()) - 0.3) < 4.5 * (0.21 / 20000) ** 0.5
    assert abs(correlation(kept[1:], kept[:-1])) < 4.5


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_neighbours_rows_columns_and_places_are_independent(shape):
    draws = Draws(KEYS)
    kept = draws.keep(shape, 0.5)
    pairs = {"places": (kept, draws.at(1).keep(shape, 0.5)), "next places": (kept, draws.at(2).keep(shape, 0.5))}
    pairs["places one after the other"] = draws.at(1).keep(shape, 0.5), draws.at(2).keep(shape, 0.5)
    for dimension in range(len(shape)):
        for distance in (1, 2, 8, 16):
            if shape[dimension] > distance:
                one = kept.narrow(dimension, distance, shape[dimension] - distance)
                other = kept.narrow(dimension, 0, shape[dimension] - distance)
                pairs[f"dimension {dimension}, distance {distance}"] = one, other
    for name, (one, other) in pairs.items():
        assert abs(correlation(one, other)) < 4.5, name


def test_keys_of_small_numbers_are_as_good():
    kept = Draws(torch.arange(64)).keep((64, 4000), 0.5)
    assert abs(correlation(kept[1:], kept[:-1])) < 4.5
    assert abs(float(kept.double().mean()) - 0.5) < 4.5 * 0.5 / 256000**0.5


def test_no_two_places_or_rows_are_alike():
    masks = torch.cat([Draws(KEYS).at(place).keep((64, 256), 0.5) for place in range(50)])
    assert len(torch.unique(masks, dim=0)) == len(masks)
    keys = mix(torch.arange(1000)[:, None], torch.arange(1000)[None]).flatten()
    assert len(torch.unique(keys)) == len(keys)


def test_uniform_numbers():
    values = uniform(KEYS[:, None], torch.arange(5000)[None])
    assert values.shape == (64, 5000) and values.min() > 0 and values.max() < 1
    count = values.numel()
    assert abs(float(values.mean()) - 0.5) < 4.5 * (1 / 12 / count) ** 0.5
    assert abs(float(values.double().var()) - 1 / 12) < 4.5 * (1 / 180 / count) ** 0.5
    counts = torch.histc(values, 100, 0, 1)
    assert float(((counts - count / 100) ** 2 / (count / 100)).sum()) < 160  # 99 degrees of freedom
    assert abs(correlation(values[1:], values[:-1])) < 4.5
    assert abs(correlation(values[:, 1:], values[:, :-1])) < 4.5


# --- what they depend on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_order_and_splits_change_nothing(shape):
    whole = Draws(KEYS).keep(shape, 0.7)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Draws(KEYS).rows(order).keep(shape, 0.7), whole[order])
    parts = [Draws(KEYS).rows(slice(a, b)).keep((b - a, *shape[1:]), 0.7) for a, b in ((0, 1), (1, 20), (20, 64))]
    assert torch.equal(torch.cat(parts), whole)


def test_padding_changes_nothing():
    whole = Draws(KEYS).keep((64, 9, 33), 0.7)
    assert torch.equal(whole, Draws(KEYS).keep((64, 14, 40), 0.7)[:, :9, :33])
    whole = Draws(KEYS).keep((64, 2, 9, 9), 0.7)
    assert torch.equal(whole, Draws(KEYS).keep((64, 2, 14, 14), 0.7)[:, :, :9, :9])


def test_dropout_scales_and_checks_its_rows():
    states = torch.ones(64, 500)
    dropped = Draws(KEYS).dropout(states, 0.25)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert abs(float(dropped.mean()) - 1) < 0.02
    with pytest.raises(ValueError, match="draws for 64 rows, but 3 rows"):
        Draws(KEYS).dropout(states[:3], 0.25)
    assert dropout(states, 0.25, False, Draws(KEYS)) is states
    assert dropout(states, 0.0, True, Draws(KEYS)) is states


def test_no_draw_touches_the_global_generator(tiny_model, tiny_batch):
    model = tiny_model(text_config={"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}).train()
    batch = tiny_batch()
    state = torch.get_rng_state()
    output = model(**batch, draw_keys=torch.tensor([5, 6, 7]), return_loss=True)
    output.loss.backward()
    assert torch.equal(torch.get_rng_state(), state)
    model(**batch, return_loss=True)
    assert not torch.equal(torch.get_rng_state(), state)


# --- in models ----------------------------------------------------------------------------------------------------


def test_checkpointing_computes_the_same_again(tiny_model, tiny_batch):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(
            text_config={"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3},
            vision_config={"image_size": 32, "model_args": dict(SWIN.model_args)},
        ).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**tiny_batch(), draw_keys=torch.tensor([5, 6, 7]), return_loss=True).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", [SWIN, CONVNEXT], ids=["swin", "convnext"])
def test_image_towers_drop_by_keys(config):
    torch.manual_seed(0)
    tower = CCRkImageTower(config).train()
    keyed = [module for module in tower.modules() if isinstance(module, KeyedDropout)]
    assert any(module.whole_rows for module in keyed)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    keys, order = KEYS[:6], torch.tensor([3, 0, 5, 1, 4, 2])
    state = torch.get_rng_state()
    with torch.no_grad():
        whole = tower(images, Draws(keys))
        torch.testing.assert_close(tower(images, Draws(keys)), whole, atol=0, rtol=0)
        parts = [tower(images[a:b], Draws(keys[a:b])) for a, b in ((0, 1), (1, 4), (4, 6))]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tower(images[order], Draws(keys[order])), whole[order], atol=1e-5, rtol=1e-5)
        other = tower(images, Draws(keys + 1))
    assert torch.equal(torch.get_rng_state(), state)
    # images are told apart by their keys, and dropped at all
    plain = tower.eval()(images, Draws(keys))
    assert ((whole - other).abs().amax((1, 2)) > 1e-3).sum() >= 5
    assert ((whole - plain).abs().amax((1, 2)) > 1e-3).sum() >= 5


def test_windows_of_an_image_have_draws_of_their_own():
    from ccrk.draws_ccrk import DrawsHolder

    holder = DrawsHolder()
    holder.draws = Draws(KEYS[:2])
    module = KeyedDropout(0.5, False, holder, 1).train()
    kept = module(torch.ones(8, 200)) > 0  # four windows of each of two images
    assert len(torch.unique(kept, dim=0)) == 8
    holder.draws = Draws(KEYS[1:2])
    assert torch.equal(module(torch.ones(4, 200)) > 0, kept[4:])
