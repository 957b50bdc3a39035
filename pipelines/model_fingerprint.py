"""Whose vectors a model makes: names for its weights, and for what turns photos and texts into its input."""

from __future__ import annotations

import json
from typing import Any

import torch

from ccrk.fingerprints_ccrk import name_of, weights_name
from ccrk.inference_ccrk import ENCODERS

from .index import IndexFingerprint

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


def embedding_fingerprint(model: Any, processor: Any) -> IndexFingerprint:
    """The fingerprint of an index that holds a model's embeddings.

    Args:
        model: a CCRk model.
        processor: its processor.
    """
    retriever = model.retriever
    return IndexFingerprint(
        model=str(model.config.name_or_path or type(model).__name__),
        revision=weights_name(retriever, ENCODERS[:4], torch.bfloat16),
        dimension=int(retriever.config.projection_dim),
        normalised=True,
        preprocessing=name_of([image_options(processor), text_options(processor)]),
    )


def states_name(model: Any, processor: Any) -> str:
    """Names what the hidden states of photos depend on: the image tower and the image processor."""
    return name_of([weights_name(model.retriever, ENCODERS[:1], torch.bfloat16), image_options(processor)])


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


__all__ = ["embedding_fingerprint", "states_name"]
