"""Whose vectors a model makes: names for its weights, and for what turns photos and texts into its input."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from .index import IndexFingerprint

EMBEDDING_PARTS = ("vision_model", "visual_projection", "text_model", "text_projection")
"""Parts of a model that an embedding depends on; the fusion encoder and the heads are none of them."""

IMAGE_OPTIONS = (
    "size",
    "resample",
    "do_resize",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)
TEXT_OPTIONS = ("clean_text", "max_words", "max_length", "text_prefix")
LENGTH = 16
"""Hexadecimal digits of a name."""


def embedding_fingerprint(model: Any, processor: Any) -> IndexFingerprint:
    """The fingerprint of an index that holds a model's embeddings.

    Args:
        model: a CCRk model.
        processor: its processor.
    """
    retriever = model.retriever
    return IndexFingerprint(
        model=str(model.config.name_or_path or type(model).__name__),
        revision=weights_name(retriever, EMBEDDING_PARTS),
        dimension=int(retriever.config.projection_dim),
        normalised=True,
        preprocessing=_name([image_options(processor), text_options(processor)]),
    )


def states_name(model: Any, processor: Any) -> str:
    """Names what the hidden states of photos depend on: the image tower and the image processor."""
    return _name([weights_name(model.retriever, EMBEDDING_PARTS[:1]), image_options(processor)])


def weights_name(model: Any, parts: tuple[str, ...]) -> str:
    """Names the weights of parts of a model.

    They are rounded to bfloat16 first, so that a model has one name whether it was loaded in float32 or in bfloat16:
    its embeddings can be compared either way. Two models that are apart by less than that rounding in every single
    weight would have one name as well.
    """
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in sorted(getattr(model, part).state_dict().items()):
            digest.update(f"{part}.{name} {tuple(tensor.shape)}".encode())
            tensor = tensor.detach().cpu()
            if tensor.is_floating_point():
                tensor = tensor.to(torch.bfloat16)
            digest.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:LENGTH]


def image_options(processor: Any) -> dict[str, Any]:
    """What the image processor does to a photo, as plain values."""
    options = processor.image_processor.to_dict()
    return {name: options.get(name) for name in IMAGE_OPTIONS}


def text_options(processor: Any) -> dict[str, Any]:
    """What the processor and its tokenizer do to a text, as plain values."""
    tokenizer = processor.tokenizer
    options = {name: getattr(processor, name) for name in TEXT_OPTIONS}
    options["tokenizer"] = [tokenizer.model_max_length, tokenizer.bos_token_id, tokenizer.pad_token_id]
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        options["vocabulary"] = sorted(tokenizer.get_vocab().items())
    else:
        rules = json.loads(fast.to_str())
        # these two are what the call before this one asked for, not what the tokenizer is
        options["vocabulary"] = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return options


def _name(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:LENGTH]


__all__ = ["EMBEDDING_PARTS", "embedding_fingerprint", "states_name", "weights_name"]
