from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from transformers import AutoModel, XLMRobertaConfig, XLMRobertaModel

from ccrk import CCRkForPreTraining, CCRkModel
from ccrk.towers_ccrk import default_layers, load_timm_model, tower_preprocessing


def assert_layer(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    state = ours.state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("folder", ["xlmr_folder", "bert_folder"])
def test_text_tower_equals_the_source_encoder(folder, request, timm_folder):
    """All layers in the text tower: hidden states at real positions are those of transformers' own model."""
    source = request.getfixturevalue(folder)
    theirs = AutoModel.from_pretrained(source).eval()
    count = theirs.config.num_hidden_layers
    model = CCRkModel.from_towers(timm_folder, source, text_layers=list(range(count)), fusion_layers=[0])
    assert model.config.position_offset == (2 if folder == "xlmr_folder" else 0)
    assert model.config.text_config.layer_norm_eps == theirs.config.layer_norm_eps
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (4, 12), generator=generator)
    mask = (torch.arange(12)[None] < torch.tensor([12, 9, 3, 1])[:, None]).long()
    ids = ids.masked_fill(mask == 0, 1)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        ours = model.text_model(ids, mask)
    torch.testing.assert_close(ours[mask == 1], expected[mask == 1], atol=2e-6, rtol=1e-5)
    assert len(model.text_model.layer) == count and not model.training


def test_positions_can_be_the_authors(timm_folder, xlmr_folder):
    model = CCRkModel.from_towers(timm_folder, xlmr_folder, position_offset=0)
    assert model.config.position_offset == 0
    assert model.text_model.embeddings.max_length == 40


def test_layers_go_where_they_are_sent(timm_folder, xlmr_folder):
    model = CCRkModel.from_towers(timm_folder, xlmr_folder, text_layers=[3, 0], fusion_layers=[3, 1, 2])
    source = AutoModel.from_pretrained(xlmr_folder)
    assert (model.config.num_text_layers, model.config.num_fusion_layers) == (2, 3)
    for ours, number in zip(model.text_model.layer, [3, 0], strict=True):
        assert_layer(ours, source.encoder.layer[number])
        assert not hasattr(ours, "crossattention")
    for ours, number in zip(model.fusion_model.layer, [3, 1, 2], strict=True):
        assert_layer(ours, source.encoder.layer[number])
        assert ours.crossattention.self.key.in_features == 12
    # a layer in both places is two layers afterwards
    first, second = model.text_model.layer[0], model.fusion_model.layer[0]
    assert first.output.dense.weight.data_ptr() != second.output.dense.weight.data_ptr()
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
        assert_layer(getattr(model.text_model.embeddings, name), getattr(source.embeddings, name))


def test_default_layers():
    assert default_layers(24) == ([1, 3, 5, 7, 9, 11], [13, 15, 17, 19, 21, 23])
    assert default_layers(12) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])
    assert default_layers(5) == ([0, 1], [2, 3, 4])


def test_every_second_layer_of_a_deep_encoder(timm_folder, tmp_path):
    config = XLMRobertaConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=20, max_position_embeddings=12
    )
    config.num_hidden_layers = 24
    torch.manual_seed(0)
    source = XLMRobertaModel(config, add_pooling_layer=False)
    source.save_pretrained(tmp_path)
    model = CCRkModel.from_towers(timm_folder, tmp_path)
    for place, number in enumerate((1, 3, 5, 7, 9, 11)):
        assert_layer(model.text_model.layer[place], source.encoder.layer[number])
        assert_layer(model.fusion_model.layer[place], source.encoder.layer[number + 12])


def test_image_tower_equals_timms(timm_folder, xlmr_folder):
    model = CCRkModel.from_towers(timm_folder, xlmr_folder)
    plain = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0, global_pool="").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.vision_model(pixels)[:, 1:], plain(pixels)[:, 1:], atol=1e-5, rtol=1e-4)
    assert model.config.vision_config.model_args == {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    saved = load_file(timm_folder / "model.safetensors")
    assert torch.equal(model.vision_model.timm_model.pos_embed, saved["pos_embed"])


def test_built_models_can_be_saved_and_loaded(timm_folder, xlmr_folder, tmp_path):
    model = CCRkForPreTraining.from_towers(timm_folder, xlmr_folder)
    model.save_pretrained(tmp_path)
    loaded = CCRkForPreTraining.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("folder", ["xlmr_folder", "bert_folder"])
def test_language_head_is_copied(folder, request, timm_folder):
    source_folder = request.getfixturevalue(folder)
    model = CCRkForPreTraining.from_towers(timm_folder, source_folder)
    saved = load_file(source_folder / "model.safetensors")
    prefix = "lm_head." if folder == "xlmr_folder" else "cls.predictions."
    dense, norm = ("dense", "layer_norm") if folder == "xlmr_folder" else ("transform.dense", "transform.LayerNorm")
    assert torch.equal(model.mlm_head.dense.weight, saved[f"{prefix}{dense}.weight"])
    assert torch.equal(model.mlm_head.layer_norm.weight, saved[f"{prefix}{norm}.weight"])
    assert torch.equal(model.mlm_head.bias, saved[f"{prefix}bias"]) and model.mlm_head.bias.abs().sum() > 0
    assert model.mlm_head.decoder.bias is model.mlm_head.bias
    assert model.mlm_head.decoder.weight is model.ccrk.text_model.embeddings.word_embeddings.weight


def test_a_source_without_a_language_head_leaves_it_new(timm_folder, xlmr_folder, tmp_path):
    AutoModel.from_pretrained(xlmr_folder).save_pretrained(tmp_path)
    model = CCRkForPreTraining.from_towers(timm_folder, tmp_path)
    assert not model.mlm_head.bias.any() and model.mlm_head.dense.weight.std() > 0
    assert model.mlm_head.decoder.weight is model.ccrk.text_model.embeddings.word_embeddings.weight


def test_another_image_size(timm_folder, xlmr_folder):
    from timm.layers import resample_abs_pos_embed

    model = CCRkModel.from_towers(timm_folder, xlmr_folder, image_size=48)
    saved = load_file(timm_folder / "model.safetensors")["pos_embed"]
    assert model.config.image_size == 48
    expected = resample_abs_pos_embed(saved, [6, 6], num_prefix_tokens=1)
    assert torch.equal(model.vision_model.timm_model.pos_embed, expected)
    assert model.vision_model(torch.zeros(1, 3, 48, 48)).shape == (1, 37, 12)


def test_another_image_size_of_a_swin(xlmr_folder, tmp_path):
    """The window grows with the image, as the authors fine-tune."""
    arguments = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 7}
    save_for_hf(timm.create_model("swin_base_patch4_window7_224", **arguments), tmp_path, safe_serialization=True)
    model = CCRkModel.from_towers(tmp_path, xlmr_folder, image_size=384)
    assert (model.config.image_size, model.config.window_size) == (384, 12)
    table = model.vision_model.timm_model.layers[0].blocks[0].attn.relative_position_bias_table
    assert table.shape == (529, 1)


@pytest.mark.parametrize("layers", [{"text_layers": [0, 4]}, {"fusion_layers": [-1]}])
def test_a_layer_that_is_not_there(layers, timm_folder, xlmr_folder):
    (name, numbers), *_ = layers.items()
    with pytest.raises(ValueError, match=f"{name} names layer {numbers[-1]}, but .* has layers 0 to 3"):
        CCRkModel.from_towers(timm_folder, xlmr_folder, **layers)


def test_towers_that_are_not_there(timm_folder, xlmr_folder, tmp_path):
    with pytest.raises(OSError, match="image tower 'no_such_model' cannot be loaded"):
        CCRkModel.from_towers("no_such_model", xlmr_folder)
    with pytest.raises(OSError, match="nowhere"):
        CCRkModel.from_towers(tmp_path / "nowhere", xlmr_folder)
    with pytest.raises(OSError, match="nowhere"):
        CCRkModel.from_towers(timm_folder, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="empty' has no config.json"):
        CCRkModel.from_towers(tmp_path / "empty", xlmr_folder)
    with pytest.raises((OSError, ValueError), match="empty"):
        CCRkModel.from_towers(timm_folder, tmp_path / "empty")


def test_a_timm_folder_without_weights(timm_folder, xlmr_folder, tmp_path):
    (tmp_path / "config.json").write_text((timm_folder / "config.json").read_text())
    with pytest.raises(OSError, match="cannot be loaded"):
        CCRkModel.from_towers(tmp_path, xlmr_folder)


def test_a_text_encoder_of_another_family(timm_folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(Exception, match="type 'gpt2'"):
        CCRkModel.from_towers(timm_folder, tmp_path)


def test_preprocessing_of_a_tower(timm_folder):
    assert tower_preprocessing(load_timm_model(timm_folder)) == {"image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def real_model(shared) -> CCRkForPreTraining:
    weights = shared / "weights"
    return CCRkForPreTraining.from_towers(
        weights / "tf_efficientnet_lite0",
        weights / "multilingual-e5-small-pruned",
        text_layers=list(range(12)),
        fusion_layers=[10, 11],
        text_pooling="mean",
    )


def test_real_text_tower_equals_transformers(real_model, shared):
    from transformers import AutoTokenizer

    folder = shared / "weights" / "multilingual-e5-small-pruned"
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    sentences = [
        "query: Two dogs run in the snow.",
        "query: Zwei Hunde rennen im Schnee.",
        "query: A man sells fruit.",
    ]
    batch = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    with torch.no_grad():
        expected = theirs(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        ours = real_model.ccrk.text_model(batch["input_ids"], mask)
    assert real_model.config.position_offset == 0
    torch.testing.assert_close(ours[mask == 1], expected[mask == 1], atol=2e-5, rtol=1e-4)
    means = torch.nn.functional.normalize((ours * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert means[0] @ means[1] > means[0] @ means[2]


def test_real_image_tower_equals_timm(real_model, shared):
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    state = load_file(shared / "weights" / "tf_efficientnet_lite0" / "model.safetensors")
    plain.load_state_dict({name: value.float() for name, value in state.items()})
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = plain.forward_features(pixels)
        tokens = real_model.ccrk.vision_model(pixels)
    assert tokens.shape == (1, 50, 1280)
    torch.testing.assert_close(tokens[0, 1:], expected[0].flatten(1).t(), atol=1e-4, rtol=1e-4)
