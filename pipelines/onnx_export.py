"""Encoders as ONNX files: image tower, text tower, fusion encoder with the matching head; by transformers' exporters.

Each file takes any number of photos, texts or pairs, and texts of any length. [`OnnxEncoders`] runs them.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ccrk.heads_ccrk import summarise

from .model_fingerprint import embedding_fingerprint
from .onnx_encoders import MANIFEST, VERSION, OnnxEncoders, file_digest

PARTS = ("image", "text", "fusion")
LARGEST_DIFFERENCE = 1e-3
"""Of a float32 export from the model, relative to the largest value: what rounding could never do."""

QUANTIZED = ["MatMul", "Gemm"]
"""Operators of linear layers; convolutions, norms, attention and word embeddings stay float32."""


class ImagePart(nn.Module):
    """Photos (B, 3, H, W) -> tokens of the image tower (B, 1 + P, width) and unit vectors (B, D)."""

    def __init__(self, retriever: nn.Module):
        super().__init__()
        self.retriever = retriever

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """See the class."""
        output = self.retriever.get_image_features(pixel_values)
        return {"image_hidden_states": output.last_hidden_state, "image_embeds": output.pooler_output}


class TextPart(nn.Module):
    """Token ids and mask (T, L) -> tokens of the text tower (T, L, hidden), zero at padding, and unit vectors."""

    def __init__(self, retriever: nn.Module):
        super().__init__()
        self.retriever = retriever

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """See the class."""
        output = self.retriever.get_text_features(input_ids, attention_mask)
        real = attention_mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
        return {"text_hidden_states": output.last_hidden_state * real, "text_embeds": output.pooler_output}


class FusionPart(nn.Module):
    """Tokens of B images and T texts, and N pairs of their rows -> matching logits (N, 2).

    Keys and values of an image are computed once, however many pairs look at it.
    """

    def __init__(self, retriever: nn.Module):
        super().__init__()
        self.retriever = retriever

    def forward(
        self,
        image_hidden_states: torch.Tensor,
        text_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rows: torch.Tensor,
        text_rows: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """See the class."""
        pooling = self.retriever.config.fusion_pooling
        fusion, mask = self.retriever.fusion_model, attention_mask[text_rows]
        states = fusion.image_states(image_hidden_states)
        fused = fusion(text_hidden_states[text_rows], mask, states, image_rows, first_only=pooling == "first")
        return {"itm_logits": self.retriever.itm_head(summarise(fused, mask, pooling))}


def export_encoders(
    model: Any, processor: Any | None, folder: str | os.PathLike, *, int8: bool = False
) -> dict[str, Any]:
    """Writes the encoders of a model, checks them against it, and says how far apart they are.

    Args:
        model: a CCRk model in float32; it is put into evaluation mode.
        processor: its processor, which is saved with it; without one the files do not say whose vectors they make.
        folder: to write; an earlier export in it is replaced.
        int8: linear layers with weights in 8 bits, and inputs rounded to 8 bits as they come.

    Returns:
        What `ccrk_onnx.json` holds; `differences` has, by output, `max` (largest absolute difference from the model
        on random input of other sizes than it was traced with) and for vectors `cosine` (the lowest).

    Raises:
        FileExistsError: if the folder holds something else.
        ImportError: if the libraries are not installed.
        ValueError: if the model is not in float32, or an exported file does not compute what the model does.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file())):
        raise FileExistsError(f"'{folder}' is there and is no export of this package: name another folder")
    retriever = model.retriever
    if next(retriever.parameters()).dtype != torch.float32:
        raise ValueError(f"the model is in {next(retriever.parameters()).dtype}: load it in float32 to export it")
    model.eval()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
        _export_parts(retriever, int8).save_pretrained(staging)
        if processor is not None:
            processor.save_pretrained(staging)
        files = {path.name: file_digest(path) for path in sorted(Path(staging).iterdir())}
        manifest = {
            "version": VERSION,
            "int8": int8,
            "image_size": retriever.config.image_size,
            "fingerprint": None if processor is None else asdict(embedding_fingerprint(model, processor)),
            "files": files,
        }
        _write_manifest(Path(staging), manifest)
        manifest["differences"] = _differences(retriever, OnnxEncoders(staging, check=False), int8)
        _write_manifest(Path(staging), manifest)
        _move(Path(staging), folder)
    return manifest


def _export_parts(retriever: nn.Module, int8: bool) -> Any:
    """All parts, exported and in memory.

    Raises:
        ImportError: if a library is not installed.
    """
    try:
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ModuleNotFoundError as error:
        raise ImportError(f"exporting needs '{error.name}': pip install 'ccrk[onnx]'") from error
    from transformers.exporters import (
        ExportedModel,
        OnnxConfig,
        OnnxExporter,
        OnnxRuntimeDynamicConfig,
        OnnxRuntimeQuantizer,
    )

    components = {}
    quantizer = None
    if int8:
        quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(op_types_to_quantize=QUANTIZED, per_channel=True))
    many = torch.export.Dim.DYNAMIC
    for name, (part, inputs, shapes) in _traced(retriever).items():
        axes = {key: dict.fromkeys(range(count), many) for key, count in shapes.items()}
        with _quiet():
            exported = OnnxExporter().export(part, inputs, OnnxConfig(dynamic_shapes=axes, quantizer=quantizer))
        components[name] = exported.components["model"]
        # where each node came from: paths and lines of this machine, and most of a small file
        ClearMetadataAndDocStringPass()(components[name].program)
    return ExportedModel(components, "onnx", config=retriever.config)


def _traced(retriever: nn.Module) -> dict[str, tuple[nn.Module, dict[str, torch.Tensor], dict[str, int]]]:
    """Of each part the module, inputs to trace it with, and how many of an input's axes (the first ones) vary."""
    inputs = sample_inputs(retriever, images=2, texts=3, length=6)
    parts: tuple[nn.Module, ...] = (ImagePart(retriever), TextPart(retriever), FusionPart(retriever))
    shapes = (
        {"pixel_values": 1},
        {"input_ids": 2, "attention_mask": 2},
        {
            "image_hidden_states": 1,
            "text_hidden_states": 2,
            "attention_mask": 2,
            "image_rows": 1,
            "text_rows": 1,
        },
    )
    return {
        name: (part.eval(), {key: inputs[key] for key in axes}, axes)
        for name, part, axes in zip(PARTS, parts, shapes, strict=True)
    }


@torch.no_grad()
def sample_inputs(
    retriever: nn.Module, images: int, texts: int, length: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random photos, texts of different lengths up to `length`, their states, and every pair of them.

    Args:
        retriever: a `CCRkModel`.
        images: how many photos.
        texts: how many texts.
        length: tokens of the longest one.
        seed: of the random numbers.

    Returns:
        All inputs of all parts by name.
    """
    random = torch.Generator().manual_seed(seed)
    config, size = retriever.config, retriever.config.image_size
    pixels = torch.randn(images, 3, size, size, generator=random)
    ids = torch.randint(5, config.text_config.vocab_size, (texts, length), generator=random)
    lengths = torch.randint(1, length + 1, (texts,), generator=random)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    rows = torch.cartesian_prod(torch.arange(images), torch.arange(texts)).reshape(-1, 2)
    ids = ids.masked_fill(mask == 0, config.text_config.pad_token_id or 0)
    return {
        "pixel_values": pixels,
        "input_ids": ids,
        "attention_mask": mask,
        "image_hidden_states": retriever.get_image_features(pixels).last_hidden_state,
        "text_hidden_states": retriever.get_text_features(ids, mask).last_hidden_state,
        "image_rows": rows[:, 0].contiguous(),
        "text_rows": rows[:, 1].contiguous(),
    }


@torch.no_grad()
def _differences(retriever: nn.Module, encoders: OnnxEncoders, int8: bool) -> dict[str, dict[str, float]]:
    """How far the files are from the model, for one photo and text of one token, and for several.

    Raises:
        ValueError: if a float32 file is further away than rounding explains, or an output is not finite.
    """
    found: dict[str, dict[str, float]] = {}
    limit = min(24, retriever.text_model.embeddings.max_length)
    for images, texts, length in ((1, 1, 1), (3, 5, limit)):
        inputs = sample_inputs(retriever, images, texts, length, seed=1)
        pixels, ids, mask = inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"]
        states = {name: inputs[name] for name in ("image_hidden_states", "text_hidden_states")}
        pairs = {
            "image_embeds": (retriever.get_image_features(pixels), encoders.get_image_features(pixels)),
            "text_embeds": (retriever.get_text_features(ids, mask), encoders.get_text_features(ids, mask)),
        }
        values = {name: (ours.pooler_output, theirs.pooler_output) for name, (ours, theirs) in pairs.items()}
        values["image_hidden_states"] = tuple(output.last_hidden_state for output in pairs["image_embeds"])
        values["text_hidden_states"] = tuple(output.last_hidden_state for output in pairs["text_embeds"])
        values["itm_logits"] = tuple(one.match(attention_mask=mask, **states) for one in (retriever, encoders))
        for name, (ours, theirs) in values.items():
            largest = float((ours - theirs).abs().max())
            allowed = LARGEST_DIFFERENCE * max(1.0, float(ours.abs().max()))
            if not torch.isfinite(theirs).all() or (largest > allowed and not int8):
                raise ValueError(
                    f"the exported '{name}' is {largest:.3g} away from the model's for {images} photos and {texts} "
                    f"texts of {length} tokens (allowed: {allowed:.3g}), so nothing was written"
                )
            one = found.setdefault(name, {"max": 0.0})
            one["max"] = max(one["max"], largest)
            if name.endswith("_embeds"):
                one["cosine"] = min(one.get("cosine", 1.0), float((ours * theirs).sum(-1).min()))
    return found


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _move(staging: Path, folder: Path) -> None:
    """Puts finished files into their place, the list of them last: a folder without it is refused."""
    folder.mkdir(exist_ok=True)
    old: list[str] = []
    if (folder / MANIFEST).is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            old = list(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
        (folder / MANIFEST).unlink()
    new = sorted(path.name for path in staging.iterdir() if path.name != MANIFEST)
    for name in set(old) - set(new):
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    for name in [*new, MANIFEST]:
        os.replace(staging / name, folder / name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' progress and their notes on versions to themselves; errors are raised all the same."""
    names = ("torch.onnx", "torch.export", "transformers.exporters", "onnxscript", "onnx_ir", "root")
    loggers = [logging.getLogger(None if name == "root" else name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = ["export_encoders", "sample_inputs"]
