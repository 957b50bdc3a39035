from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import AutoModel

from ccrk import CCRkConfig, CCRkForPreTraining, CCRkModel, CCRkVisionConfig
from ccrk.image_tower_ccrk import (
    CCRkImageTower,
    _geometric_positions,
    cubic_spline_matrix,
    interpolate_relative_positions,
)

SWIN = {"embed_dim": 8, "depths": [2, 1, 1, 2], "num_heads": [1, 2, 2, 4]}
SWIN_NAME = "swin_base_patch4_window7_224"


def vision(architecture: str, image_size: int, **model_args) -> dict:
    return {"architecture": architecture, "image_size": image_size, "model_args": model_args}


# name: (configuration, side of the grid, width)
TOWERS = {
    "swin-w7": (vision(SWIN_NAME, 224, window_size=7, **SWIN), 7, 64),
    "swin-w12": (vision(SWIN_NAME, 384, window_size=12, **SWIN), 12, 64),
    "vit": (vision("vit_tiny_patch16_224", 64, embed_dim=12, depth=2, num_heads=2), 4, 12),
    "vit-registers": (vision("vit_tiny_patch16_224", 64, embed_dim=12, depth=2, num_heads=2, reg_tokens=3), 4, 12),
    "convnext": (vision("convnext_atto", 64, depths=[1, 1, 2, 1], dims=[4, 8, 12, 16]), 2, 16),
    "efficientnet-lite": (vision("tf_efficientnet_lite0", 64), 2, 1280),
    "resnet": (vision("resnet10t", 64), 2, 512),
}


@pytest.fixture(params=TOWERS)
def tower(request) -> tuple[CCRkVisionConfig, int, int]:
    config, grid, width = TOWERS[request.param]
    return CCRkVisionConfig(**copy.deepcopy(config)), grid, width


def images(config: CCRkVisionConfig, count: int = 2, seed: int = 0) -> torch.Tensor:
    shape = (count, 3, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first_convolution(module: nn.Module) -> nn.Conv2d:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def randomise_batch_norm(module: nn.Module) -> None:
    """Statistics that training would have left behind, so that losing them shows."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)


def test_tokens_are_the_mean_and_the_grid(tower):
    config, grid, width = tower
    model = CCRkImageTower(config).eval()
    assert model.hidden_size == width
    pixels = images(config)
    with torch.no_grad():
        tokens = model(pixels)
        plain = model.timm_model.forward_features(pixels)
    assert tokens.shape == (2, 1 + grid**2, width)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1))
    if plain.ndim == 4 and plain.shape[1] == width:
        plain = plain.permute(0, 2, 3, 1)
    if config.architecture != "convnext_atto":  # whose last norm sits in the head
        torch.testing.assert_close(tokens[:, 1:], plain.reshape(2, -1, width)[:, -(grid**2) :], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tokens[0], tokens[1])


def test_saved_and_loaded_models_are_equal(tower, tiny_model, tmp_path):
    """Loading goes over the meta device, which loses every buffer that is not saved."""
    config = tower[0]
    model = tiny_model(vision_config=config.to_dict())
    randomise_batch_norm(model)
    model.save_pretrained(tmp_path)
    pixels = images(config)
    loaded = CCRkModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model.vision_model(pixels), loaded.vision_model(pixels))
    for (name, ours), (other_name, theirs) in zip(
        model.vision_model.named_buffers(), loaded.vision_model.named_buffers(), strict=True
    ):
        assert name == other_name and torch.equal(ours, theirs), name


def test_gradients_reach_the_first_convolution_with_checkpointing_or_without(tower):
    config = tower[0]
    torch.manual_seed(0)
    model = CCRkImageTower(config).train()
    for module in model.modules():  # stochastic depth and dropout off: two passes must agree
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    pixels, results = images(config), []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        output = model(pixels)
        output.square().sum().backward()
        assert first_convolution(model).weight.grad.abs().sum() > 0
        results.append(
            (output.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def saved_bytes(function) -> int:
    """Bytes that autograd keeps for the backward pass."""
    total = 0

    def count(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        function()
    return total


@pytest.mark.parametrize("model_class", [CCRkModel, CCRkForPreTraining])
@pytest.mark.parametrize("name", ["swin-w7", "vit", "convnext", "efficientnet-lite", "resnet"])
def test_checkpointing_of_the_model_reaches_the_image_tower(name, model_class, tiny_model):
    config = CCRkVisionConfig(**copy.deepcopy(TOWERS[name][0]))
    model = tiny_model(model_class, vision_config=config.to_dict()).train()
    tower, pixels = model.retriever.vision_model, images(config)
    plain = saved_bytes(lambda: tower(pixels))
    model.activation_checkpointing_enable()
    assert saved_bytes(lambda: tower(pixels)) < 0.8 * plain
    model.activation_checkpointing_disable()
    assert saved_bytes(lambda: tower(pixels)) == plain


def test_checkpointed_blocks_run_again_in_the_backward_pass(tiny_model, tiny_batch):
    model = tiny_model().train()
    calls = {"image": 0, "text": 0, "fusion": 0}

    def count(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    model.vision_model.timm_model.layers[0].blocks[0].attn.register_forward_hook(count("image"))
    model.text_model.layer[0].intermediate.register_forward_hook(count("text"))
    model.fusion_model.layer[0].intermediate.register_forward_hook(count("fusion"))
    model(**tiny_batch(), return_loss=True).loss.backward()
    assert calls == {"image": 1, "text": 1, "fusion": 1}
    model.activation_checkpointing_enable()
    model(**tiny_batch(), return_loss=True).loss.backward()
    assert calls == {"image": 3, "text": 3, "fusion": 3}


def test_a_tower_without_checkpointing_says_so(tiny_model):
    model = tiny_model(vision_config=vision("dla46x_c", 64))
    with pytest.raises(ValueError, match="'dla46x_c' does not support activation checkpointing"):
        model.activation_checkpointing_enable()


@pytest.mark.parametrize("name", ["efficientnet-lite", "resnet"])
def test_batch_norm_keeps_its_statistics_in_training(name, tiny_model):
    config = CCRkVisionConfig(**copy.deepcopy(TOWERS[name][0]))
    model = tiny_model(vision_config=config.to_dict())
    randomise_batch_norm(model)
    before = {n: b.clone() for n, b in model.vision_model.named_buffers()}
    model.train()
    assert model.vision_model.training and model.vision_model.timm_model.training
    pixels = images(config, 4)
    whole = model.vision_model(pixels)
    pieces = torch.cat([model.vision_model(part) for part in pixels.split(1)])
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)
    for buffer_name, buffer in model.vision_model.named_buffers():
        assert torch.equal(buffer, before[buffer_name]), buffer_name


@pytest.mark.parametrize("shape", [(2, 3, 48, 48), (2, 1, 64, 64), (3, 64, 64), (2, 3, 64, 32)])
def test_images_of_another_size_are_refused(shape):
    model = CCRkImageTower(CCRkVisionConfig(**copy.deepcopy(TOWERS["resnet"][0])))
    with pytest.raises(ValueError, match=r"takes \(B, 3, 64, 64\); load it with image_size"):
        model(torch.zeros(shape))


# --- resolution ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", [CCRkModel, AutoModel])
def test_swin_loaded_for_another_resolution(loader, tiny_model, tmp_path):
    model = tiny_model(vision_config=TOWERS["swin-w7"][0])
    for name, parameter in model.vision_model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "224")
    loaded = loader.from_pretrained(tmp_path / "224", image_size=384)
    assert isinstance(loaded, CCRkModel)
    assert (loaded.config.image_size, loaded.config.window_size) == (384, 12)
    ours, theirs = loaded.state_dict(), model.state_dict()
    tables = 0
    for name, value in ours.items():
        expected = theirs[name]
        if name.endswith("relative_position_bias_table"):
            expected, tables = interpolate_relative_positions(expected, 23**2), tables + 1
        assert torch.equal(value, expected), name
    assert tables == 6
    pixels = images(loaded.config.vision_config, 1)
    with torch.no_grad():
        tokens = loaded.vision_model(pixels)
    assert tokens.shape == (1, 145, 64)
    loaded.save_pretrained(tmp_path / "384")
    again = CCRkModel.from_pretrained(tmp_path / "384")
    assert (again.config.image_size, again.config.window_size) == (384, 12)
    with torch.no_grad():
        assert torch.equal(again.vision_model(pixels), tokens)
    assert model.config.image_size == 224


def test_swin_with_a_window_of_its_own(tiny_model, tmp_path):
    tiny_model(CCRkForPreTraining, vision_config=TOWERS["swin-w7"][0]).save_pretrained(tmp_path)
    loaded = CCRkForPreTraining.from_pretrained(tmp_path, image_size=256, window_size=8)
    assert (loaded.config.image_size, loaded.config.window_size) == (256, 8)
    assert loaded.ccrk.config.image_size == 256
    assert loaded.ccrk.vision_model(torch.zeros(1, 3, 256, 256)).shape == (1, 65, 64)


@pytest.mark.parametrize(("name", "prefix"), [("vit", 1), ("vit-registers", 1)])
def test_vit_loaded_for_another_resolution(name, prefix, tiny_model, tmp_path):
    from timm.layers import resample_abs_pos_embed

    model = tiny_model(vision_config=TOWERS[name][0])
    nn.init.normal_(model.vision_model.timm_model.pos_embed)
    model.save_pretrained(tmp_path)
    loaded = CCRkModel.from_pretrained(tmp_path, image_size=96)
    old, new = model.vision_model.timm_model.pos_embed, loaded.vision_model.timm_model.pos_embed
    prefix = old.shape[1] - 16
    assert new.shape == (1, 36 + prefix, 12)
    assert torch.equal(new[:, :prefix], old[:, :prefix])
    assert torch.equal(new, resample_abs_pos_embed(old, [6, 6], num_prefix_tokens=prefix))
    assert loaded.vision_model(torch.zeros(1, 3, 96, 96)).shape == (1, 37, 12)


def test_convolutions_take_any_size_unchanged(tiny_model, tmp_path):
    model = tiny_model(vision_config=TOWERS["resnet"][0])
    model.save_pretrained(tmp_path)
    loaded = CCRkModel.from_pretrained(tmp_path, image_size=96)
    assert loaded.config.image_size == 96
    assert loaded.vision_model(torch.zeros(1, 3, 96, 96)).shape == (1, 10, 512)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_same_resolution_changes_nothing(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = CCRkModel.from_pretrained(tmp_path, image_size=32)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_model_in_use_can_be_resized(tiny_model):
    """What was set before stays: type, mode, checkpointing, and what is frozen."""
    model = tiny_model().to(torch.float64).train()
    model.activation_checkpointing_enable()
    for parameter in model.vision_model.parameters():
        parameter.requires_grad_(False)
    model.vision_model.timm_model.norm.weight.requires_grad_(True)
    model.resize_images(64)
    tower = model.vision_model
    assert (model.config.image_size, model.config.window_size, tower.config.image_size) == (64, 8, 64)
    assert tower(torch.zeros(1, 3, 64, 64).double()).dtype == torch.float64
    assert tower.timm_model.training
    assert all(stage.grad_checkpointing for stage in tower.timm_model.layers)
    assert [n for n, p in tower.timm_model.named_parameters() if p.requires_grad] == ["norm.weight"]


def test_a_size_that_cannot_be_built(tiny_model):
    model = tiny_model(vision_config=TOWERS["vit"][0])
    with pytest.raises(ValueError, match="image_size is 0"):
        model.resize_images(0)
    assert model.config.image_size == 64


# --- interpolation ------------------------------------------------------------------------------------------------


def test_geometric_positions_reach_the_new_border():
    positions = _geometric_positions(13, 23)
    assert len(positions) == 13 and np.array_equal(positions, -positions[::-1])
    # 1 + q + ... + q^5 = 11, the new half-width
    assert positions[-1] == pytest.approx(11, abs=1e-3)
    steps = np.diff(positions[6:])
    assert steps[0] == pytest.approx(1)
    np.testing.assert_allclose(steps[1:] / steps[:-1], steps[1] / steps[0])


def test_spline_reproduces_cubics_and_knots():
    knots = np.array([-3.0, -1.2, 0.0, 0.7, 2.0, 4.5])
    points = np.linspace(-3, 4.5, 41)
    np.testing.assert_allclose(cubic_spline_matrix(knots, knots), np.eye(6), atol=1e-12)
    for power in range(4):
        np.testing.assert_allclose(cubic_spline_matrix(knots, points) @ knots**power, points**power, atol=1e-10)
    ends = cubic_spline_matrix(knots, np.array([-9.0, 9.0]))
    np.testing.assert_allclose(ends, np.eye(6)[[0, -1]], atol=1e-12)


@pytest.mark.parametrize("num_knots", [4, 5, 13, 23])
def test_spline_equals_scipys(num_knots):
    interpolate = pytest.importorskip("scipy.interpolate")
    generator = np.random.default_rng(num_knots)
    knots = np.cumsum(generator.uniform(0.3, 2, num_knots))
    points = np.linspace(knots[0], knots[-1], 57)
    values = generator.normal(size=(num_knots, 3))
    expected = interpolate.CubicSpline(knots, values, bc_type="not-a-knot")(points)
    np.testing.assert_allclose(cubic_spline_matrix(knots, points) @ values, expected, atol=1e-9)


@pytest.mark.parametrize(("old", "new"), [(7, 12), (7, 15), (8, 7), (12, 8)])
def test_tables_equal_scipys_two_dimensional_spline(old, new):
    interpolate = pytest.importorskip("scipy.interpolate")
    table = torch.randn((2 * old - 1) ** 2, 3, generator=torch.Generator().manual_seed(old))
    ours = interpolate_relative_positions(table, (2 * new - 1) ** 2)
    positions = _geometric_positions(2 * old - 1, 2 * new - 1)
    offsets = np.clip(np.arange(2 * new - 1) - (new - 1), positions[0], positions[-1])
    for head in range(3):
        grid = table[:, head].double().numpy().reshape(2 * old - 1, -1)
        expected = interpolate.RectBivariateSpline(positions, positions, grid)(offsets, offsets)
        np.testing.assert_allclose(ours[:, head].numpy().reshape(2 * new - 1, -1), expected, atol=2e-6)


def test_tables_that_cannot_be_interpolated():
    with pytest.raises(ValueError, match="170 rows cannot be interpolated to 529"):
        interpolate_relative_positions(torch.zeros(170, 2), 529)
    with pytest.raises(ValueError, match="169 rows cannot be interpolated to 530"):
        interpolate_relative_positions(torch.zeros(169, 2), 530)
    with pytest.raises(ValueError, match="9 rows cannot"):
        interpolate_relative_positions(torch.zeros(9, 2), 529)
    table = torch.randn(169, 2)
    assert torch.equal(interpolate_relative_positions(table, 169), table)
    assert interpolate_relative_positions(table.half(), 529).dtype == torch.float16


def test_timm_initialisation_is_kept():
    torch.manual_seed(5)
    plain = timm.create_model("resnet10t", pretrained=False, num_classes=0, global_pool="")
    torch.manual_seed(5)
    config = CCRkConfig(
        vision_config=TOWERS["resnet"][0],
        text_config={"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9},
    )
    model = CCRkModel(config)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.vision_model.timm_model.state_dict()[name], value), name


@pytest.mark.parametrize("name", ["swin-w7", "swin-w12"])
def test_fused_windows_equal_plain_ones(name):
    config = CCRkVisionConfig(**copy.deepcopy(TOWERS[name][0]))
    tower, pixels = CCRkImageTower(config).train(), images(config)
    windows = [module for module in tower.modules() if hasattr(module, "relative_position_bias_table")]
    for window in windows:
        nn.init.normal_(window.relative_position_bias_table)
    for module in tower.modules():  # no stochastic depth
        module.drop_prob = 0.0
    with torch.no_grad():
        plain = tower(pixels)
        assert not any(window.fused_attn for window in windows)
        fused = tower.eval()(pixels)
        assert all(window.fused_attn for window in windows)
        config._attn_implementation = "eager"
        assert torch.equal(tower(pixels), plain)
    assert not torch.equal(fused, plain)
    torch.testing.assert_close(fused, plain, atol=3e-6, rtol=1e-5)
