"""Configuration of CCRk: an image tower, a text tower and a fusion encoder. The defaults are the paper's sizes."""

# No `from __future__ import annotations` here: it turns types into strings, and `@strict` does not check those.
import re
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

# XLM-R large as the authors use it: twelve of its layers, shared out between the text tower and the fusion encoder.
PAPER_TEXT_CONFIG = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

TEXT_MODEL_TYPES = ("xlm-roberta", "roberta", "bert", "camembert")


@strict
class CCRkVisionConfig(PreTrainedConfig):
    r"""The image tower: the name of a timm model and how it is built.

    Args:
        architecture (`str`): name of any timm model whose unpooled output is a grid of tokens.
        image_size (`int`): side of the square input in pixels.
        model_args (`dict`, *optional*): further arguments of `timm.create_model`, such as `window_size`,
            `drop_path_rate`, `depths` or `dims`. A Swin's window is taken from its name by default.
    """

    model_type = "ccrk_vision"
    base_config_key = "vision_config"

    architecture: str = "swin_base_patch4_window7_224"
    image_size: int = 224
    model_args: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        if self.model_args is None:
            # the window that a Swin's name tells is written down, so that it grows with the image
            window = re.match(r"swin.*_window(\d+)_", self.architecture)
            self.model_args = {"window_size": int(window[1])} if window else {}
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: refuses sizes that no image can have."""
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it is the side of the input in pixels and at least 1")

    def resize(self, image_size: int, window_size: int | None = None) -> None:
        """Sets another input size.

        Args:
            image_size: new side in pixels.
            window_size: new attention window. Without it, a window named in `model_args` is scaled with the image
                and rounded down (224 px and window 7 give 384 px and window 12, as the authors have it).

        Raises:
            ValueError: if the side is less than 1.
        """
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}; it is the side of the input in pixels and at least 1")
        window = self.model_args.get("window_size")
        if window_size is None and isinstance(window, int):
            window_size = max(1, window * image_size // self.image_size)
        if window_size is not None:
            self.model_args = {**self.model_args, "window_size": window_size}
        self.image_size = image_size


@strict
class CCRkConfig(PreTrainedConfig):
    r"""Configuration of [`CCRkModel`] and [`CCRkForPreTraining`].

    Args:
        vision_config (`CCRkVisionConfig` or `dict`, *optional*): the image tower; Swin-B at 224 px by default.
        text_config (`PreTrainedConfig` or `dict`, *optional*): an XLM-R or BERT family configuration that gives the
            widths of both the text tower and the fusion encoder; XLM-R large by default.
        num_text_layers (`int`): layers of the text tower.
        num_fusion_layers (`int`): layers of the fusion encoder, each with cross-attention to the image.
        projection_dim (`int`): D, length of the embeddings that are compared.
        projection_hidden_size (`int`, *optional*): width of a hidden layer in both projections. Without it they are
            linear, as the authors' are.
        projection_dropout (`float`): dropout in training before each linear layer of both projections. None in the
            authors' model; with frozen towers and some thousand photos, heads without it overfit.
        position_offset (`int`): id of the first position. 0 for the authors' checkpoints and BERT, `pad_token_id + 1`
            for towers that were trained as XLM-R.
        text_pooling (`"first"` or `"mean"`): what summarises a text: its first token, or the mean over its tokens.
        fusion_pooling (`"first"` or `"mean"`): the same for the fusion encoder's output.
        fusion_image_norm (`bool`): image tokens are layer-normalised (without weights) before the fusion encoder turns
            them into keys and values. Off for towers that end in a norm, as Swin and ViT do; one that does not, such
            as a ResNet, may give tokens so small or so sparse that matching hardly sees the image.
        temperature_init (`float`): initial value of the learnable temperature that divides the logits.
        temperature_range (list of two `float`, *optional*): the temperature is clamped to it at every training step
            of `CCRkForPreTraining`, as the authors do; `CCRkModel` leaves it free.
        contrastive_variant (`"official"`, `"balanced"`, `"one-to-one"` or `"sigmoid"`): see `losses_ccrk.one_to_k`
            and `losses_ccrk.sigmoid_one_to_k`. `"official"` has the authors' weights; `"balanced"`, the default,
            finds more photos by text in our comparison of objectives (docs/studies/10-objectives.md).
        english_guidance (`float`): share of the text-to-image target that is what the English text of the image sees;
            see `losses_ccrk.contrastive_share`. 0 leaves it out.
        logit_bias_init (`float`): initial value of the bias that `"sigmoid"` adds to the logits (SigLIP's).
        positive_choice (`"probability"`, `"similarity"` or `"uniform"`): which text of an image is its positive pair
            in matching; see `sampling_ccrk.positive_text_weights`.
        negative_strategy (`"hard"`, `"hardest"` or `"random"`): how negatives for matching are chosen; see
            `sampling_ccrk.SamplingRules`.
        contrastive_weight, matching_weight, mlm_weight (`float`): weights of the three losses; 0 leaves one out.
    """

    model_type = "ccrk"
    sub_configs_defaults = {
        "vision_config": CCRkVisionConfig,
        "text_config": SubConfigSpec(AutoConfig, model_type="xlm-roberta", init_kwargs=PAPER_TEXT_CONFIG),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_text_layers: int = 6
    num_fusion_layers: int = 6
    projection_dim: int = 256
    projection_hidden_size: int | None = None
    projection_dropout: float | int = 0.0
    position_offset: int = 0
    text_pooling: Literal["first", "mean"] = "first"
    fusion_pooling: Literal["first", "mean"] = "first"
    fusion_image_norm: bool = False
    temperature_init: float | int = 0.07
    temperature_range: list[float | int] | tuple[float | int, ...] | None = (0.001, 0.5)
    contrastive_variant: Literal["official", "balanced", "one-to-one", "sigmoid"] = "balanced"
    english_guidance: float | int = 0.0
    logit_bias_init: float | int = -10.0
    positive_choice: Literal["probability", "similarity", "uniform"] = "probability"
    negative_strategy: Literal["hard", "hardest", "random"] = "hard"
    contrastive_weight: float | int = 1.0
    matching_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        # With `custom_pipelines` in a local config, `pipeline()` would ask for trust although the installed package
        # has the pipeline registered. The key is put aside here and written back by `to_dict`; only the copy of this
        # file that the Hub loads as remote code leaves it where `pipeline()` looks for it.
        self._saved_pipelines = kwargs.get("custom_pipelines")
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
        sizes = {name: kwargs.pop(name, None) for name in ("image_size", "window_size")}
        super().__post_init__(**kwargs)
        self.text_config.num_hidden_layers = self.num_text_layers
        if sizes["image_size"] is not None or sizes["window_size"] is not None:
            self.vision_config.resize(sizes["image_size"] or self.image_size, sizes["window_size"])

    def validate_architecture(self):
        """Part of `@strict` validation: the parts must fit one another.

        Raises:
            ValueError: naming the field, its value and what would fit.
        """
        text = self.text_config
        if text is None or isinstance(text, dict):
            return
        if text.model_type not in TEXT_MODEL_TYPES:
            raise ValueError(
                f"text_config is of type '{text.model_type}'; the text tower is built from one of "
                f"{', '.join(TEXT_MODEL_TYPES)}"
            )
        if text.hidden_size % text.num_attention_heads:
            raise ValueError(
                f"text_config: hidden_size {text.hidden_size} is not a multiple of num_attention_heads "
                f"{text.num_attention_heads}"
            )
        if self.num_text_layers < 0 or self.num_fusion_layers < 1:
            raise ValueError(
                f"num_text_layers is {self.num_text_layers} and num_fusion_layers {self.num_fusion_layers}; "
                "at least 0 and 1 are needed"
            )
        if not 0 <= self.projection_dropout < 1:
            raise ValueError(f"projection_dropout is {self.projection_dropout}; it is a share from 0 to below 1")
        if not 0 <= self.english_guidance <= 1:
            raise ValueError(f"english_guidance is {self.english_guidance}; it is a share between 0 and 1")
        if self.english_guidance and self.contrastive_variant == "sigmoid":
            raise ValueError("english_guidance softens the targets of softmaxes; the variant 'sigmoid' has none")

    @property
    def image_size(self) -> int:
        """Side of the square input image in pixels. Setting it scales the attention window too."""
        return self.vision_config.image_size

    @image_size.setter
    def image_size(self, value: int) -> None:
        self.vision_config.resize(value)

    @property
    def window_size(self) -> int | None:
        """Attention window of the image tower, where it has one."""
        return self.vision_config.model_args.get("window_size")

    @window_size.setter
    def window_size(self, value: int) -> None:
        self.vision_config.resize(self.image_size, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As `PreTrainedConfig.from_dict`; of two sizes given, the image comes first, because it moves the window."""
        sizes = {name: kwargs.pop(name) for name in ("image_size", "window_size") if name in kwargs}
        return super().from_dict(config_dict, **sizes, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, with the `custom_pipelines` that were put aside."""
        output = super().to_dict()
        pipelines = output.pop("_saved_pipelines", None)
        if pipelines and "custom_pipelines" not in output:
            output["custom_pipelines"] = pipelines
        return output


__all__ = ["CCRkConfig", "CCRkVisionConfig"]
