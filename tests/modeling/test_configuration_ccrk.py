from __future__ import annotations

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, BertConfig, XLMRobertaConfig

from ccrk import CCRkConfig, CCRkModel, CCRkVisionConfig


def test_defaults_are_the_papers():
    config = CCRkConfig()
    assert config.vision_config.architecture == "swin_base_patch4_window7_224"
    assert (config.image_size, config.window_size) == (224, 7)
    text = config.text_config
    assert isinstance(text, XLMRobertaConfig)
    assert (text.hidden_size, text.num_attention_heads, text.intermediate_size) == (1024, 16, 4096)
    assert (text.vocab_size, text.max_position_embeddings, text.type_vocab_size) == (250002, 514, 1)
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id, text.layer_norm_eps) == (1, 0, 2, 1e-5)
    assert (config.num_text_layers, config.num_fusion_layers, config.projection_dim) == (6, 6, 256)
    assert (config.position_offset, config.text_pooling, config.fusion_pooling) == (0, "first", "first")
    assert (config.temperature_init, tuple(config.temperature_range)) == (0.07, (0.001, 0.5))
    assert (config.contrastive_variant, config.positive_choice) == ("balanced", "probability")
    assert (config.contrastive_weight, config.matching_weight, config.mlm_weight) == (1, 1, 1)
    assert config.tie_word_embeddings and config.projection_hidden_size is None


def test_round_trip(tiny_config, tmp_path):
    config = tiny_config(contrastive_variant="official", temperature_range=None, position_offset=2, image_size=64)
    for other in (CCRkConfig.from_dict(config.to_dict()), CCRkConfig(**config.to_dict())):
        assert other.to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "ccrk"
    for loaded in (CCRkConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, CCRkConfig)
        assert (loaded.image_size, loaded.window_size, loaded.contrastive_variant) == (64, 8, "official")
        assert loaded.vision_config.to_dict() == config.vision_config.to_dict()
        assert loaded.text_config.to_dict() == config.text_config.to_dict()
        assert loaded.temperature_range is None and loaded.position_offset == 2


def test_image_size_takes_the_window_along():
    config = CCRkConfig()
    config.image_size = 384
    assert (config.image_size, config.window_size) == (384, 12)
    config.image_size = 224
    assert (config.image_size, config.window_size) == (224, 7)
    config.window_size = 14
    assert (config.image_size, config.window_size) == (224, 14)


@pytest.mark.parametrize("order", [("image_size", "window_size"), ("window_size", "image_size")])
def test_sizes_as_arguments(tmp_path, order):
    assert CCRkConfig(image_size=384).window_size == 12
    sizes = {"image_size": 384, "window_size": 24}
    config = CCRkConfig(**{name: sizes[name] for name in order})
    assert (config.image_size, config.window_size) == (384, 24)
    CCRkConfig().save_pretrained(tmp_path)
    for config_class in (CCRkConfig, AutoConfig):
        config = config_class.from_pretrained(tmp_path, **{name: sizes[name] for name in order})
        assert (config.image_size, config.window_size) == (384, 24)


def test_the_window_of_a_swin_is_read_from_its_name():
    assert CCRkVisionConfig(architecture="swin_tiny_patch4_window7_224").model_args == {"window_size": 7}
    assert CCRkVisionConfig(architecture="swin_base_patch4_window12_384").model_args == {"window_size": 12}
    assert CCRkVisionConfig(architecture="convnext_atto").model_args == {}
    assert CCRkConfig(vision_config={"architecture": "convnext_atto"}, image_size=256).window_size is None


def test_parts_as_none_dict_or_object():
    assert CCRkConfig(vision_config=None, text_config=None).to_dict() == CCRkConfig().to_dict()
    as_dict = CCRkConfig(
        vision_config={"architecture": "resnet18", "image_size": 64},
        text_config={"model_type": "bert", "hidden_size": 24, "num_attention_heads": 3},
    )
    as_object = CCRkConfig(
        vision_config=CCRkVisionConfig(architecture="resnet18", image_size=64),
        text_config=BertConfig(hidden_size=24, num_attention_heads=3),
    )
    for config in (as_dict, as_object):
        assert isinstance(config.vision_config, CCRkVisionConfig) and config.image_size == 64
        assert isinstance(config.text_config, BertConfig) and config.text_config.hidden_size == 24
        assert config.text_config.num_hidden_layers == 6
    assert as_dict.to_dict() == as_object.to_dict()


@pytest.mark.parametrize(
    "fields",
    [
        {"projection_dim": "256"},
        {"projection_dim": 2.5},
        {"num_text_layers": None},
        {"text_pooling": "last"},
        {"fusion_pooling": "max"},
        {"fusion_image_norm": "yes"},
        {"projection_dropout": "0.1"},
        {"contrastive_variant": "k-to-1"},
        {"positive_choice": 1},
        {"temperature_init": "warm"},
        {"mlm_weight": "none"},
    ],
)
def test_wrong_types_and_choices_are_refused(fields):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        CCRkConfig(**fields)


def test_assignment_is_checked_too():
    config = CCRkConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match="projection_dim"):
        config.projection_dim = "wide"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_config": {"model_type": "gpt2"}}, "type 'gpt2'.*xlm-roberta, roberta, bert, camembert"),
        ({"text_config": {"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}}, "10 is not a multiple"),
        ({"num_fusion_layers": 0}, "num_fusion_layers 0"),
        ({"num_text_layers": -1}, "num_text_layers is -1"),
    ],
)
def test_parts_that_do_not_fit(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        CCRkConfig(**fields)


@pytest.mark.parametrize("size", [0, -224])
def test_an_image_has_a_size(size):
    with pytest.raises(StrictDataclassClassValidationError, match=f"image_size is {size}"):
        CCRkVisionConfig(image_size=size)
    with pytest.raises(ValueError, match=f"image_size is {size}"):
        CCRkConfig().image_size = size


def test_unknown_image_tower(tiny_config):
    config = tiny_config(vision_config={"architecture": "resnet_of_dreams"})
    with pytest.raises(ValueError, match="'resnet_of_dreams'.*timm.list_models"):
        CCRkModel(config)


def test_arguments_the_image_tower_refuses(tiny_config):
    config = tiny_config(vision_config={"architecture": "resnet18", "model_args": {"wings": 2}})
    with pytest.raises(ValueError, match="'resnet18' with arguments .*'wings': 2"):
        CCRkModel(config)


def test_pipelines_are_put_aside_and_written_back(tmp_path):
    pipelines = {"ccr-retrieval": {"impl": "ccr_retrieval.Pipeline", "pt": ["AutoModel"]}}
    config = CCRkConfig(custom_pipelines=pipelines)
    assert not hasattr(config, "custom_pipelines")
    assert config.to_dict()["custom_pipelines"] == pipelines
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["custom_pipelines"] == pipelines
    loaded = CCRkConfig.from_pretrained(tmp_path)
    assert not hasattr(loaded, "custom_pipelines")
    loaded.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["custom_pipelines"] == pipelines and "_saved_pipelines" not in saved
    assert "custom_pipelines" not in CCRkConfig().to_dict() and "_saved_pipelines" not in CCRkConfig().to_dict()
