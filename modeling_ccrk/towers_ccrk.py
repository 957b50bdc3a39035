"""Building a CCRk model from pretrained towers: a timm image model and an XLM-R or BERT family encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .configuration_ccrk import CCRkVisionConfig

# a sub-configuration of these types was trained with positions that start after the padding id
OFFSET_MODEL_TYPES = ("xlm-roberta", "roberta", "camembert")


@dataclass
class TowerPlan:
    """Where the weights come from, decided before the model is built.

    Attributes:
        text_source: Hub id or folder of the text encoder.
        text_layers, fusion_layers: its layers that become the text tower and the fusion encoder.
        image_state: weights of the timm model.
        vision_config: the tower as it was trained; the model is resized afterwards if `image_size` differs.
        image_size: side of the input that was asked for.
    """

    text_source: str
    text_layers: list[int]
    fusion_layers: list[int]
    image_state: dict[str, torch.Tensor]
    image_size: int


def load_timm_model(image: str | os.PathLike) -> nn.Module:
    """Loads a pretrained timm model without classifier and pooling from its name, a Hub id or a local folder.

    Raises:
        OSError: if the folder or the model cannot be found or read.
    """
    import timm

    name = str(image)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise OSError(f"the image tower '{name}' has no config.json, so it is not a timm model folder")
        name = f"local-dir:{name}"
    elif "/" in name and ":" not in name:
        name = f"hf-hub:{name}"
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, global_pool="")
    except Exception as error:  # timm, hub client and safetensors each have errors of their own
        raise OSError(f"the image tower '{image}' cannot be loaded: {error}") from error


def tower_preprocessing(model: nn.Module) -> dict:
    """`image_size`, `mean` and `std` that a timm model was trained with."""
    config = model.pretrained_cfg
    return {
        "image_size": int(config["input_size"][-1]),
        "mean": [float(value) for value in config["mean"]],
        "std": [float(value) for value in config["std"]],
    }


def tower_arguments(model: nn.Module) -> dict:
    """Arguments that a saved timm model was built with beyond its name, such as its depth or its window."""
    ours = ("num_classes", "global_pool", "img_size", "in_chans")
    return {name: value for name, value in getattr(model, "_model_args", {}).items() if name not in ours}


def language_head(source: nn.Module) -> tuple[nn.Module, nn.Module, nn.Parameter, str] | None:
    """Dense layer, layer norm and bias of an encoder's masked-language head, and the prefix of their names."""
    if hasattr(source, "lm_head"):
        return source.lm_head.dense, source.lm_head.layer_norm, source.lm_head.bias, "lm_head."
    if hasattr(source, "cls"):
        head = source.cls.predictions
        return head.transform.dense, head.transform.LayerNorm, head.bias, "cls.predictions."
    return None


def default_layers(num_layers: int) -> tuple[list[int], list[int]]:
    """Text and fusion layers of a source encoder: every second one from 24 layers on, halved between the two."""
    kept = list(range(1, num_layers, 2)) if num_layers >= 24 else list(range(num_layers))
    half = len(kept) // 2
    return kept[:half], kept[half:]


def towers_config(
    config_class: type,
    image: str | os.PathLike,
    text: str | os.PathLike,
    *,
    text_layers: list[int] | None = None,
    fusion_layers: list[int] | None = None,
    image_size: int | None = None,
    **fields,
):
    """Plans a model from towers; see `CCRkPreTrainedModel.from_towers` for the arguments.

    Returns:
        The configuration, and the plan for `load_towers`.

    Raises:
        ValueError: if a layer is named that the source does not have.
    """
    timm_model = load_timm_model(image)
    text_config = AutoConfig.from_pretrained(text)
    defaults = default_layers(text_config.num_hidden_layers)
    text_layers = defaults[0] if text_layers is None else list(text_layers)
    fusion_layers = defaults[1] if fusion_layers is None else list(fusion_layers)
    for name, layers in (("text_layers", text_layers), ("fusion_layers", fusion_layers)):
        wrong = [layer for layer in layers if not 0 <= layer < text_config.num_hidden_layers]
        if wrong:
            raise ValueError(
                f"{name} names layer {wrong[0]}, but '{text}' has layers 0 to {text_config.num_hidden_layers - 1}"
            )
    if "position_offset" not in fields and text_config.model_type in OFFSET_MODEL_TYPES:
        fields["position_offset"] = text_config.pad_token_id + 1
    native_size = tower_preprocessing(timm_model)["image_size"]
    vision_config = CCRkVisionConfig(
        architecture=timm_model.pretrained_cfg["architecture"],
        image_size=native_size,
        model_args=tower_arguments(timm_model) or None,
    )
    text_config.dtype = None
    config = config_class(
        vision_config=vision_config,
        text_config=text_config,
        num_text_layers=len(text_layers),
        num_fusion_layers=len(fusion_layers),
        **fields,
    )
    plan = TowerPlan(str(text), text_layers, fusion_layers, timm_model.state_dict(), image_size or native_size)
    return config, plan


@torch.no_grad()
def load_towers(model: nn.Module, plan: TowerPlan) -> None:
    """Copies the weights of the towers into a freshly built model.

    Raises:
        ValueError: if a weight of a tower does not fit.
    """
    retriever = model.retriever
    retriever.vision_model.timm_model.load_state_dict({k: v.float() for k, v in plan.image_state.items()})
    wants_head = hasattr(model, "mlm_head")
    source, loading = (AutoModelForMaskedLM if wants_head else AutoModel).from_pretrained(
        plan.text_source, dtype=torch.float32, output_loading_info=True
    )
    encoder = source.base_model
    words = retriever.text_model.embeddings
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
        getattr(words, name).load_state_dict(getattr(encoder.embeddings, name).state_dict())
    for target, number in zip(retriever.text_model.layer, plan.text_layers, strict=True):
        target.load_state_dict(encoder.encoder.layer[number].state_dict())
    for target, number in zip(retriever.fusion_model.layer, plan.fusion_layers, strict=True):
        result = target.load_state_dict(encoder.encoder.layer[number].state_dict(), strict=False)
        missing = [key for key in result.missing_keys if not key.startswith("crossattention.")]
        if missing or result.unexpected_keys:
            raise ValueError(
                f"layer {number} of '{plan.text_source}' does not fit: {missing or result.unexpected_keys}"
            )
    head = language_head(source) if wants_head else None
    if head is not None and not any(key.startswith(head[3]) for key in loading["missing_keys"]):
        model.mlm_head.dense.load_state_dict(head[0].state_dict())
        model.mlm_head.layer_norm.load_state_dict(head[1].state_dict())
        model.mlm_head.bias.copy_(head[2])
    if plan.image_size != model.config.image_size:
        model.resize_images(plan.image_size)
