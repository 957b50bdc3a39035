"""Low-rank adapters (LoRA, Hu et al. 2021) in the towers and the fusion encoder, by peft, with what is new in full.

A CCRk built from pretrained towers has parts that no tower had: projections, temperature, matching head,
cross-attention. Adapters on weights that mean nothing yet would be of no use, so these learn in full. The temperature
is a bare parameter, which peft's `modules_to_save` cannot name; here all parameters that learn in full stay where they
are in the model, and are saved beside the adapters under their own names. peft loads them back from there, with or
without this package.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ccrk.trainer.parameters import is_new

logger = logging.getLogger(__name__)

LORA_PRESETS = ("attention", "all-linear")
CROSSATTENTION = ("full", "lora")
WEIGHTS = "adapter_model.safetensors"
HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
_ATTENTION = re.compile(r"(^|\.)(attention|crossattention|attn\w*)\.")


class CCRkPeftModel(PeftModel):
    """A CCRk with adapters; saves what learns in full beside them.

    `CCRkPeftModel.from_pretrained(model, folder)` loads both, as `PeftModel.from_pretrained` does;
    `merge_and_unload()` gives back a plain CCRk with the same output.
    """

    full_names: tuple[str, ...] = ()
    """Names of the parameters that learn in full."""

    def __init__(self, *args, **kwargs):
        with warnings.catch_warnings():  # peft asks the model by a name that transformers is about to drop
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            super().__init__(*args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Saves adapters, and what learned in full beside them; see `PeftModel.save_pretrained`."""
        if not kwargs.get("safe_serialization", True):
            raise ValueError("adapters are saved as safetensors; leave safe_serialization on")
        super().save_pretrained(str(save_directory), **{**kwargs, "save_embedding_layers": False})
        if not kwargs.get("is_main_process", True):
            return
        parameters = dict(self.named_parameters())
        full = {name: parameters[name].detach().cpu().contiguous() for name in self.full_names}
        file = Path(save_directory) / WEIGHTS
        save_file({**load_file(file), **full}, file, metadata={"format": "pt", "full": json.dumps(self.full_names)})

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, model_id: str | os.PathLike, *args, is_trainable: bool = False, **kwargs
    ):
        """Loads adapters onto a CCRk; see `PeftModel.from_pretrained`.

        Raises:
            ValueError: if the folder has adapters of another model.
        """
        loaded = super().from_pretrained(model, str(model_id), *args, is_trainable=is_trainable, **kwargs)
        file = _weights_file(model_id, kwargs)
        if file is not None:
            with safe_open(file, "pt") as tensors:
                loaded.full_names = tuple(json.loads((tensors.metadata() or {}).get("full", "[]")))
        parameters = dict(loaded.named_parameters())
        unknown = [name for name in loaded.full_names if name not in parameters]
        if unknown:
            raise ValueError(f"'{model_id}' has adapters of another model: there is no '{unknown[0]}' in this one")
        for name in loaded.full_names:
            parameters[name].requires_grad_(is_trainable)
        return loaded


def _weights_file(model_id: str | os.PathLike, options: dict) -> Path | None:
    """The file of weights in a folder, if it has one, or in the cache of the Hub, where peft has just put it."""
    if Path(model_id).is_dir():
        file = Path(model_id) / (options.get("subfolder") or "") / WEIGHTS
        return file if file.is_file() else None
    hub = {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}
    return Path(hf_hub_download(str(model_id), WEIGHTS, **hub))


def adapted_layers(model: nn.Module, kind: str, crossattention: str = "full") -> list[str]:
    """Names of the linear layers that get adapters: of those that learn, and that are not new.

    Args:
        model: a CCRk model, frozen as it will train.
        kind: `attention` (queries, keys, values and outputs) or `all-linear`.
        crossattention: `full`, if it is new and learns in full; `lora` for a model that was trained before.
    """
    names = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not module.weight.requires_grad:
            continue
        if not learns_in_full(f"{name}.weight", crossattention) and (kind == "all-linear" or _ATTENTION.search(name)):
            names.append(name)
    return names


def learns_in_full(name: str, crossattention: str = "full") -> bool:
    """Whether a parameter belongs to a part that learns in full beside adapters."""
    if "crossattention." in name:
        return crossattention == "full"
    return is_new(name) or name.startswith("mlm_head.")


def add_adapters(
    model: nn.Module,
    kind: str = "attention",
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    crossattention: str = "full",
) -> CCRkPeftModel:
    """Puts adapters into the towers and the fusion encoder of a CCRk, wherever these are not frozen.

    Args:
        model: a CCRk model. What is frozen stays so, and gets no adapters.
        kind: of `LORA_PRESETS`; see `adapted_layers`.
        rank: of the adapters.
        alpha: they are scaled by alpha / rank.
        dropout: before the adapters. It is drawn from the global generator, not by key: a step that is split over
            processes is then no longer the same one.
        crossattention: `full` or `lora`.

    Raises:
        ValueError: for an unknown kind, or if there is no layer to adapt.
    """
    for name, value, allowed in (
        ("lora", kind, LORA_PRESETS),
        ("lora_crossattention", crossattention, CROSSATTENTION),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is '{value}'; it is one of {', '.join(allowed)}")
    targets = adapted_layers(model, kind, crossattention)
    if not targets:
        raise ValueError(f"lora='{kind}' finds no layer to adapt: both towers and the fusion encoder are frozen")
    for part in ("vision_model", "text_model", "fusion_model"):
        learns = any(parameter.requires_grad for parameter in getattr(model.retriever, part).parameters())
        if learns and not any(part in name for name in targets):
            logger.warning(f"lora='{kind}' finds no layer to adapt in {part}, so nothing that was there learns in it")
    full = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and learns_in_full(name, crossattention)
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")
    adapted = CCRkPeftModel(model, config)
    adapted.full_names = tuple(f"base_model.model.{name}" for name in full)
    parameters = dict(adapted.named_parameters())
    for name in adapted.full_names:
        parameters[name].requires_grad_(True)
    return adapted


def plain_model(model: nn.Module) -> nn.Module:
    """A model with its adapters merged into the weights; one without adapters as it is."""
    with torch.no_grad():
        return model.merge_and_unload() if isinstance(model, PeftModel) else model
