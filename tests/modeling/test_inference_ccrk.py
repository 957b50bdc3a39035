from __future__ import annotations

import pytest
import torch
from timm.layers import GluMlp, Mlp
from torch import nn

from ccrk import CCRkModel, CCRkVisionConfig, inference_ccrk
from ccrk.image_tower_ccrk import CCRkImageTower
from ccrk.inference_ccrk import fast_inference
from ccrk.text_layers_ccrk import CCRkFusionEncoder

needs_onednn = pytest.mark.skipif(not inference_ccrk._available(), reason="this torch has no oneDNN")


def taken(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in vars(module)]


@torch.no_grad()
def outputs(model, batch) -> dict[str, torch.Tensor]:
    result = model(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    states = model.get_image_states(image_hidden_states=result.image_hidden_states)
    logits = model.match(
        image_states=states, text_hidden_states=result.text_hidden_states, attention_mask=batch["attention_mask"]
    )
    return {"images": result.image_hidden_states, "texts": result.text_embeds, "logits": logits.float()}


@needs_onednn
def test_fast_layers_equal_plain_ones(tiny_model, tiny_batch):
    model, batch = tiny_model().eval(), tiny_batch()
    plain = outputs(model, batch)
    with fast_inference(model):
        assert len(taken(model)) > 20
        fast = outputs(model, batch)
    assert not taken(model)
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, atol=2e-6, rtol=1e-5)
        assert torch.equal(outputs(model, batch)[name], value)


@needs_onednn
def test_fast_bfloat16_errs_no_more_than_autocast(tiny_model, tiny_batch):
    model, batch = tiny_model().eval(), tiny_batch()
    exact = outputs(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        plain = outputs(model, batch)
        with fast_inference(model, dtype=torch.bfloat16):
            fast = outputs(model, batch)
    for name, value in exact.items():
        allowed = (plain[name].float() - value).abs().mean()
        assert 0 < (fast[name].float() - value).abs().mean() < 1.5 * allowed, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
def test_windows_keep_their_biases(count, dtype):
    fields = {"embed_dim": 8, "depths": [2, 1, 1, 2], "num_heads": [1, 2, 2, 4], "window_size": 7}
    tower = CCRkImageTower(
        CCRkVisionConfig(architecture="swin_base_patch4_window7_224", image_size=224, model_args=fields)
    ).eval()
    windows = [module for module in tower.modules() if hasattr(module, "relative_position_bias_table")]
    for window in windows:
        nn.init.normal_(window.relative_position_bias_table)
    pixels = torch.randn(count, 3, 224, 224)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = tower(pixels)
        with fast_inference(tower, dtype=dtype):
            assert all("forward" in vars(window) for window in windows)
            for images in (pixels, pixels[:1], pixels):
                tolerance = {"atol": 3e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
                torch.testing.assert_close(tower(images), plain[: len(images)], **tolerance)
    assert not taken(tower)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_rows_is_computed_as_one_of_few(dtype):
    layer = nn.Sequential(nn.Linear(5, 7))
    with torch.no_grad(), fast_inference(layer, dtype=dtype):
        for rows in (0, 1, 8, 9, 65, 511, 513, 1000):
            states = torch.randn(rows, 5)
            expected = nn.functional.linear(states.to(dtype), layer[0].weight.to(dtype), layer[0].bias.to(dtype))
            found = layer(states)
            assert found.shape == (rows, 7)
            torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0.01)
    sizes = [inference_ccrk._rounded(rows) for rows in range(1, 4000)]
    assert len(set(sizes)) < 80 and all(rows <= size < rows + 64 for rows, size in enumerate(sizes, 1))


@needs_onednn
def test_layers_come_back_after_an_error(tiny_model):
    model = tiny_model().eval()
    with pytest.raises(KeyError), fast_inference(model.vision_model, model.text_model):
        assert taken(model.text_model) and not taken(model.fusion_model)
        raise KeyError
    assert not taken(model)


@needs_onednn
@pytest.mark.parametrize(
    ("module", "fused"),
    [
        (Mlp(8, 16), True),
        (Mlp(8, 16, act_layer=nn.ReLU), False),
        (Mlp(8, 16, act_layer=lambda: nn.GELU("tanh")), False),
        (GluMlp(8, 16, act_layer=nn.GELU), False),
    ],
)
def test_only_an_exact_gelu_right_after_a_layer_joins_it(module, fused):
    states = torch.randn(3, 5, 8)
    with torch.no_grad():
        plain = module(states)
        with fast_inference(module):
            assert ("forward" in vars(module.act)) == fused
            torch.testing.assert_close(module(states), plain)


def test_what_is_no_plain_layer_is_left_alone():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(4, 4), nn.Linear(4, 4).double(), nn.Linear(4, 4).bfloat16(), nn.Conv2d(1, 1, 1))
    with fast_inference(model):
        assert not taken(model)


def test_without_onednn_nothing_changes(tiny_model, tiny_batch, monkeypatch):
    monkeypatch.setattr(inference_ccrk, "_available", lambda: False)
    monkeypatch.setattr(inference_ccrk, "_is_window", lambda module: False)
    model, batch = tiny_model().eval(), tiny_batch()
    plain = outputs(model, batch)
    with fast_inference(model):
        assert not taken(model)
        for name, value in outputs(model, batch).items():
            assert torch.equal(value, plain[name])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("fields", [{}, {"fusion_pooling": "mean"}, {"num_fusion_layers": 1}])
@pytest.mark.parametrize("padded", [True, False])
def test_pairs_by_image_equal_pairs_one_by_one(fields, padded, attention, tiny_model, tiny_batch, monkeypatch):
    calls = []
    fuse_pairs = CCRkFusionEncoder.fuse_pairs
    monkeypatch.setattr(CCRkFusionEncoder, "fuse_pairs", lambda *a, **k: calls.append(1) or fuse_pairs(*a, **k))
    model, batch = tiny_model(CCRkModel, **fields).eval(), tiny_batch((2, 1, 3))
    model.set_attn_implementation(attention)
    mask = batch["attention_mask"] if padded else None
    with torch.no_grad():
        states = model.get_image_states(batch["pixel_values"])
        texts = model.text_model(batch["input_ids"], mask)
    pairs = torch.tensor([[2, 5], [0, 0], [1, 3], [2, 5], [0, 4], [2, 0], [0, 0], [1, 1]])
    given = {"image_states": states, "text_hidden_states": texts, "attention_mask": mask}
    with torch.no_grad():
        by_image = model.match(**given, pairs=pairs)
        alone = torch.cat([model.match(**given, pairs=pair[None]) for pair in pairs])
    assert len(calls) == 1 + len(pairs)
    plain = model.match(**given, pairs=pairs)  # with gradients, pairs go the plain way
    assert len(calls) == 1 + len(pairs)
    assert plain.requires_grad and by_image.std(0).min() > 1e-4
    for other in (by_image, alone):
        torch.testing.assert_close(other, plain.detach(), atol=2e-6, rtol=1e-5)
