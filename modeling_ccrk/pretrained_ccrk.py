"""What the models of CCRk share: initialisation, loading, saving, building from towers."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import RevisionNotFoundError
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_ccrk import CCRkConfig
from .heads_ccrk import CCRkDefaultLinear, CCRkLMHead
from .towers_ccrk import load_towers, towers_config

# What a saved model can be loaded as where this package is not installed; the files travel with the weights.
AUTO_MAP = {
    "AutoConfig": "configuration_ccrk.CCRkConfig",
    "AutoModel": "modeling_ccrk.CCRkModel",
    "AutoModelForPreTraining": "modeling_ccrk.CCRkForPreTraining",
}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


class CCRkPreTrainedModel(PreTrainedModel):
    """What both models share: initialisation, loading, checkpointing."""

    config: CCRkConfig
    config_class = CCRkConfig
    base_model_prefix = "ccrk"
    _pipelines_there: dict[str, dict] = {}
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["CCRkLayer"]
    # prefixes of weights that a checkpoint may lack, with a warning; any other missing weight is an error
    _optional_weights: tuple[str, ...] = ()

    def __init__(self, config: CCRkConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        # the text layers are plain modules, so nobody else hands the choice of attention down to their configuration
        self.config.text_config._attn_implementation = self.config._attn_implementation

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if getattr(module, "_initialised_by_timm", False):
            # its weights are timm's own; what loading through the meta device loses are the unsaved buffers
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
            return
        super()._init_weights(module)
        if isinstance(module, CCRkDefaultLinear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, CCRkLMHead):
            init.zeros_(module.bias)
        elif isinstance(module, CCRkPreTrainedModel) and "temperature" in module._parameters:
            init.constant_(module.temperature, self.config.temperature_init)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init)

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        self.retriever.vision_model.set_grad_checkpointing(enable)

    @property
    def retriever(self) -> CCRkPreTrainedModel:
        """The [`CCRkModel`] inside, or this model itself."""
        return getattr(self, self.base_model_prefix, self)

    @classmethod
    def from_towers(cls, image: str | os.PathLike, text: str | os.PathLike, **kwargs):
        """Builds a model from a pretrained image tower and a pretrained text encoder.

        What the towers do not have (cross-attention, projections, heads) is newly initialised.

        Args:
            image: a timm model: its name, a Hub id, or a local folder that holds one.
            text: an XLM-R or BERT family encoder: a Hub id or a local folder.
            text_layers, fusion_layers: lists of layers (0-based) of the source encoder that become the text tower
                and the fusion encoder; one layer may serve both. By default every second layer of an encoder with 24
                or more, as the authors take them (1, 3, ...), or all layers of a smaller one; the first half of
                these for the text tower, the second for fusion.
            image_size: side of the input in pixels; the tower's own by default.
            **kwargs: fields of [`CCRkConfig`]. `position_offset` is by default what the source was trained with: 0
                for BERT, `pad_token_id + 1` for XLM-R (the authors use 0 with XLM-R too).

        Returns:
            A model in evaluation mode, in float32.

        Raises:
            OSError, ValueError: if a tower cannot be found or does not fit; the message names it.
        """
        config, plan = towers_config(cls.config_class, image, text, **kwargs)
        model = cls(config)
        load_towers(model, plan)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Loads a model as `PreTrainedModel.from_pretrained` does.

        Two things are added. `image_size=...` (and `window_size=...`) load it for another resolution: position
        tables of the image tower are interpolated. And a weight that the checkpoint lacks is an error, never a
        random one; only the masked-language head may be missing, with a warning.

        Raises:
            ValueError: naming the missing weights.
        """
        report = kwargs.pop("output_loading_info", False)
        path = pretrained_model_name_or_path
        sizes = {name: kwargs.pop(name) for name in ("image_size", "window_size") if name in kwargs}
        target = None
        if path is not None:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
            saved = cls.config_class.from_pretrained(path, **hub)
            # not `cls.config_class`: as remote code in a local folder, AutoConfig has a class of its own of that name
            if not isinstance(config, PreTrainedConfig):
                overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in saved.__dict__}
                attention = {k: v for k, v in overrides.items() if k in ("dtype", "attn_implementation")}
                kwargs.update(attention)
                config = cls.config_class.from_pretrained(config or path, **hub, **overrides)
            config = copy.deepcopy(config)
            if sizes:
                config.vision_config.resize(sizes.get("image_size", config.image_size), sizes.get("window_size"))
            same_tower = saved.vision_config.architecture == config.vision_config.architecture
            if same_tower and config.vision_config.to_dict() != saved.vision_config.to_dict():
                target, config.vision_config = config.vision_config, saved.vision_config
        model, loading = super().from_pretrained(path, *model_args, config=config, output_loading_info=True, **kwargs)
        cls._refuse_missing(path, loading["missing_keys"])
        if target is not None:
            model.retriever.vision_model.resize(target)
            model.config.vision_config = target
        return (model, loading) if report else model

    @classmethod
    def _refuse_missing(cls, path, missing_keys) -> None:
        missing = sorted(key for key in missing_keys if not key.startswith(cls._optional_weights or ("\0",)))
        if missing:
            shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise ValueError(
                f"the checkpoint '{path}' lacks {len(missing)} weight(s) of {cls.__name__}: {shown}. "
                "They would be random; is the file complete and of this model?"
            )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Saves as `PreTrainedModel.save_pretrained` does; the configuration names every class that can load it."""
        self.config.auto_map = dict(AUTO_MAP)
        if self._pipelines_there:
            self.config.custom_pipelines = self._pipelines_there
        # a model that was published with its pipeline still names it; without the pipeline's file the name is a trap
        aside = {}
        for name in ("custom_pipelines", "_saved_pipelines"):
            tasks = self.config.__dict__.get(name) or {}
            files = [f"{task['impl'].split('.')[0]}.py" for task in tasks.values()]
            if tasks == self._pipelines_there:
                continue
            if not all(os.path.isfile(os.path.join(save_directory, file)) for file in files):
                aside[name] = self.config.__dict__.pop(name)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config.__dict__.update(aside)

    def push_to_hub(self, repo_id: str, **kwargs) -> Any:
        """Pushes as `PreTrainedModel.push_to_hub` does; a repository that has the pipeline goes on naming it.

        Args:
            repo_id: of the repository; made if it is not there.
            **kwargs: of `PreTrainedModel.push_to_hub`.
        """
        self._pipelines_there = _pipelines_in(repo_id, kwargs.get("revision"), kwargs.get("token"))
        named = self.config.__dict__.get("custom_pipelines")
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            if self._pipelines_there:
                self.config.__dict__.pop("custom_pipelines", None)
            if named is not None:
                self.config.custom_pipelines = named
            self._pipelines_there = {}

    def resize_images(self, image_size: int, window_size: int | None = None) -> None:
        """Takes the model to another input resolution, interpolating the image tower's position tables.

        Args:
            image_size: new side in pixels.
            window_size: new attention window; scaled with the image by default.
        """
        config = copy.deepcopy(self.config.vision_config)
        config.resize(image_size, window_size)
        self.retriever.vision_model.resize(config)
        self.config.vision_config = config

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings of the text tower."""
        return self.retriever.text_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the word embeddings of the text tower."""
        self.retriever.text_model.embeddings.word_embeddings = value


def _pipelines_in(repo_id: str, revision: str | None, token: Any) -> dict[str, dict]:
    """The pipelines that the configuration in a repository names; none if there is no such repository yet."""
    try:
        name = repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"
        try:
            file = hf_hub_download(name, "config.json", revision=revision, token=token)
        except RevisionNotFoundError:  # a branch that the push makes begins as the main one
            file = hf_hub_download(name, "config.json", token=token)
        with open(file, encoding="utf-8") as config:
            return json.load(config).get("custom_pipelines") or {}
    except (OSError, ValueError):
        return {}  # what is wrong with the repository, the push itself will say


__all__ = ["CCRkPreTrainedModel"]
