"""Conversion of the authors' checkpoints (`.th`) into Hugging Face models.

Both of their layouts are read: pre-training (`text_encoder.bert.*`, `text_encoder.cls.*`) and fine-tuning
(`text_encoder.embeddings.*`, `text_encoder.encoder.*`), with the weights bare or under `model`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .configuration_ccrk import PAPER_TEXT_CONFIG, CCRkConfig
from .modeling_ccrk import CCRkForPreTraining, CCRkModel
from .pretrained_ccrk import CCRkPreTrainedModel

# buffers that our modules make themselves
DERIVED = re.compile(r"(\.relative_position_index|\.attn_mask|\.position_ids)$")
# heads that some published files carry and that no loss or score of the method uses
UNUSED = re.compile(r"^bbox_head\.")
PAPER_LAYOUT = {
    "image_size": 224,
    "patch_size": 4,
    "swin_embed_dim": 128,
    "swin_depths": [2, 2, 18, 2],
    "swin_num_heads": [4, 8, 16, 32],
    "swin_window_size": 7,
    "text_hidden_size": 1024,
    "text_intermediate_size": 4096,
    "text_num_attention_heads": 16,
    "text_layers": 6,
    "fusion_layers": 6,
    "vocab_size": 250002,
    "max_position_embeddings": 514,
    "projection_dim": 256,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}


@dataclass
class ConversionReport:
    """What became of a checkpoint's tensors.

    Attributes:
        layout: `"pretraining"` or `"finetuning"`.
        converted: number of tensors taken over.
        derived: names of buffers left out because they are computed.
        unused: names of tensors left out because the method does not use them.
    """

    layout: str
    converted: int = 0
    derived: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def read_official_config(path: str | Path) -> dict:
    """Reads a configuration file in the layout of the authors' sizes; missing fields take the paper's values.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not JSON or has a field that is not known.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the configuration '{path}' is not a JSON file: {error}") from error
    # sizes of a reference set that say nothing about the model
    ignored = {"num_images", "num_languages", "mask_token_id", "text_length", "max_masks"}
    unknown = sorted(set(values) - set(PAPER_LAYOUT) - ignored) if isinstance(values, dict) else ["(not an object)"]
    if unknown:
        raise ValueError(
            f"the configuration '{path}' has unknown fields: {', '.join(unknown)}; known are {', '.join(PAPER_LAYOUT)}"
        )
    return {**PAPER_LAYOUT, **{key: value for key, value in values.items() if key in PAPER_LAYOUT}}


def official_config(layout: dict) -> CCRkConfig:
    """The [`CCRkConfig`] of a model with the authors' sizes (fields of `PAPER_LAYOUT`)."""
    text_config = {
        **PAPER_TEXT_CONFIG,
        "model_type": "xlm-roberta",
        "hidden_size": layout["text_hidden_size"],
        "intermediate_size": layout["text_intermediate_size"],
        "num_attention_heads": layout["text_num_attention_heads"],
        "vocab_size": layout["vocab_size"],
        "max_position_embeddings": layout["max_position_embeddings"],
        "layer_norm_eps": layout["layer_norm_eps"],
        "pad_token_id": layout["pad_token_id"],
    }
    model_args = {"window_size": layout["swin_window_size"]}
    paper = all(layout[key] == PAPER_LAYOUT[key] for key in layout if key.startswith("swin_") and "window" not in key)
    if not paper or layout["patch_size"] != 4:
        model_args |= {
            "patch_size": layout["patch_size"],
            "embed_dim": layout["swin_embed_dim"],
            "depths": layout["swin_depths"],
            "num_heads": layout["swin_num_heads"],
        }
    return CCRkConfig(
        vision_config={
            "architecture": "swin_base_patch4_window7_224",
            "image_size": layout["image_size"],
            "model_args": model_args,
        },
        text_config=text_config,
        num_text_layers=layout["text_layers"],
        num_fusion_layers=layout["fusion_layers"],
        projection_dim=layout["projection_dim"],
        contrastive_variant="official",
    )


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a `.th` file without executing anything in it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a torch checkpoint of named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file '{path}'")
    if path.stat().st_size == 0:
        raise ValueError(f"the checkpoint '{path}' is empty (0 bytes)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except PermissionError:
        raise
    except Exception as error:  # torch raises half a dozen kinds for files that are something else
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)  # the format from before torch 1.6
        except Exception:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"'{path}' is not a torch checkpoint that can be read safely (weights_only): {reason}. Is it "
                "truncated, or another kind of file?"
            ) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"'{path}' holds no named tensors, neither bare nor under 'model'")
    return state


def rename(name: str, num_text_layers: int, prefix: str) -> str | None:
    """Our name for a weight of the authors' model, or None where it has none."""
    if match := re.fullmatch(r"vision_encoder\.layers\.(\d+)\.downsample\.(.+)", name):
        # the authors merge patches at the end of a stage, timm at the start of the next
        return f"{prefix}vision_model.timm_model.layers.{int(match[1]) + 1}.downsample.{match[2]}"
    if match := re.fullmatch(r"vision_encoder\.(.+)", name):
        return f"{prefix}vision_model.timm_model.{match[1]}"
    if match := re.fullmatch(r"text_encoder\.cls\.predictions\.(.+)", name):
        tail = match[1].replace("transform.dense", "dense").replace("transform.LayerNorm", "layer_norm")
        return f"mlm_head.{tail}"
    if match := re.fullmatch(r"text_encoder\.(?:bert\.)?embeddings\.(.+)", name):
        return f"{prefix}text_model.embeddings.{match[1]}"
    if match := re.fullmatch(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(.+)", name):
        layer = int(match[1])
        tower = "text_model" if layer < num_text_layers else "fusion_model"
        number = layer if layer < num_text_layers else layer - num_text_layers
        return f"{prefix}{tower}.layer.{number}.{match[2]}"
    if match := re.fullmatch(r"(vision|text)_proj\.(weight|bias)", name):
        return f"{prefix}{'visual' if match[1] == 'vision' else 'text'}_projection.0.{match[2]}"
    if name == "temp":
        return f"{prefix}temperature"
    if re.fullmatch(r"itm_head\.\d+\.(weight|bias)", name):
        return f"{prefix}{name}"
    return None


def convert_state(state: dict[str, torch.Tensor], config: CCRkConfig) -> tuple[CCRkPreTrainedModel, ConversionReport]:
    """Builds a model around the tensors of the authors' checkpoint; none is copied.

    Args:
        state: their state dict.
        config: sizes of the model, see `official_config`.

    Returns:
        [`CCRkForPreTraining`] or, for a fine-tuned checkpoint, [`CCRkModel`]; and the report.

    Raises:
        ValueError: listing what is missing, unexpected, wrong in shape or not finite.
    """
    pretraining = any(name.startswith(("text_encoder.cls.", "text_encoder.bert.")) for name in state)
    model_class = CCRkForPreTraining if pretraining else CCRkModel
    report = ConversionReport("pretraining" if pretraining else "finetuning")
    with torch.device("meta"):
        model = model_class(config)
    targets = model.state_dict()
    converted, problems, seen = {}, [], set()
    for name, tensor in state.items():
        if DERIVED.search(name):
            report.derived.append(name)
        elif UNUSED.match(name):
            report.unused.append(name)
        else:
            new_name = rename(name, config.num_text_layers, "ccrk." if pretraining else "")
            seen.add(new_name)
            if new_name not in targets:
                problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
            elif tensor.shape != targets[new_name].shape:
                expected = tuple(targets[new_name].shape)
                problems.append(f"wrong shape: {name} is {tuple(tensor.shape)}, expected {expected}")
            elif not tensor.is_floating_point():
                problems.append(f"wrong type: {name} is {tensor.dtype}, expected floating point")
            elif not torch.isfinite(tensor).all():
                problems.append(f"not finite: {name} holds NaN or infinite values")
            else:
                converted[new_name] = tensor
    tied = {} if not pretraining else model._tied_weights_keys
    for target, source in tied.items():
        if target in converted and source in converted and not torch.equal(converted[target], converted[source]):
            problems.append(f"not tied: {target} differs from {source}, which it should share")
    problems += [f"missing: {name}" for name in sorted(targets.keys() - seen - tied.keys())]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"the checkpoint does not fit the configuration ({len(problems)} problems):\n  {shown}")
    report.converted = len(converted)
    _assign(model, converted)
    return model.eval(), report


def _assign(model: CCRkPreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Puts tensors in the place of a meta model's weights, ties what is tied, computes the unsaved buffers."""
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    for module in model.modules():
        buffers = {name: torch.empty_like(b, device="cpu") for name, b in module._buffers.items() if b is not None}
        module._buffers.update({name: b for name, b in buffers.items() if module._buffers[name].is_meta})
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()


def guess_layout(state: dict[str, torch.Tensor]) -> dict:
    """The paper's sizes, at the resolution that the checkpoint's bias tables tell: 384 px for window 12, else 224."""
    table = state.get("vision_encoder.layers.0.blocks.0.attn.relative_position_bias_table")
    if table is not None and table.shape[0] == 23**2:
        return {**PAPER_LAYOUT, "image_size": 384, "swin_window_size": 12}
    return dict(PAPER_LAYOUT)


def resolve_checkpoint(reference: str) -> Path:
    """A local path, or the file `REPO:FILE` of the Hub, fetched where it can be reached.

    Raises:
        OSError: if it is neither a local file nor can be fetched.
    """
    path = Path(reference)
    match = re.fullmatch(r"([\w.-]+/[\w.-]+):(.+)", reference)
    if path.exists() or not match:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(match[1], match[2]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise OSError(f"'{match[2]}' cannot be fetched from '{match[1]}' on the Hub: {error}") from error


def converted_processor(config: CCRkConfig, tokenizer: str):
    """The authors' preprocessing: clean-up, 40 words, 40 tokens; square images with CLIP's constants.

    Raises:
        OSError: if the tokenizer cannot be loaded.
        ValueError: if it has more tokens than the model has embeddings.
    """
    from transformers import AutoTokenizer

    from .image_processing_ccrk import CCRkImageProcessor
    from .processing_ccrk import CCRkProcessor

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # hub client, tokenizers and transformers each have errors of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"the tokenizer '{tokenizer}' cannot be loaded ({reason}); name a folder with --tokenizer, or leave it "
            "out with --tokenizer none"
        ) from error
    if len(loaded) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer '{tokenizer}' has {len(loaded)} tokens, but the model {config.text_config.vocab_size}"
        )
    side = {"height": config.image_size, "width": config.image_size}
    return CCRkProcessor(CCRkImageProcessor(size=side), loaded, clean_text=True, max_words=40, max_length=40)


def convert_checkpoint(
    checkpoint: str, out: str | Path, *, config: str | Path | None = None, tokenizer: str | None = None
) -> ConversionReport:
    """Converts a file of the authors' and writes model, configuration and processor.

    Args:
        checkpoint: a local file, or `REPO:FILE` on the Hub.
        out: folder to write; nothing is written unless everything fits.
        config: JSON file of sizes; by default the paper's, at the resolution that the checkpoint tells.
        tokenizer: folder or Hub id; None writes the image processor alone.

    Returns:
        What became of the tensors.

    Raises:
        OSError, ValueError: naming the file and what is wrong with it.
    """
    state = read_checkpoint(resolve_checkpoint(str(checkpoint)))
    layout = guess_layout(state) if config is None else read_official_config(config)
    try:
        model_config = official_config(layout)
    except ValueError as error:
        raise ValueError(f"the configuration '{config}' describes no model: {error}") from error
    model, report = convert_state(state, model_config)
    if tokenizer is not None:
        processor = converted_processor(model_config, tokenizer)
    else:
        from .image_processing_ccrk import CCRkImageProcessor

        processor = CCRkImageProcessor(size={"height": model_config.image_size, "width": model_config.image_size})
    Path(out).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return report
