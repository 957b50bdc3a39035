"""Faster passes through the encoders of a model, where they are only to be run: oneDNN, bfloat16, compiled, sorted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ccrk.inference_ccrk import fast_linear_layers

ENCODERS = ("vision_model", "visual_projection", "text_model", "text_projection", "fusion_model", "itm_head")
COMPILED = ("vision_model", "text_model")
TOWERS = {"image": ENCODERS[:2], "text": ENCODERS[2:4]}
"""Modality -> what embeds it."""


@contextmanager
def fast_passes(model: Any, *, bf16: bool = False, parts: Sequence[str] = ENCODERS) -> Iterator[None]:
    """Within it, passes without gradients take the fastest plain way that the model's device has.

    On a CPU linear layers go through oneDNN; elsewhere this is autocast alone.

    Args:
        model: a CCRk model, whose weights must not change meanwhile.
        bf16: compute in bfloat16, by autocast.
        parts: names of the retriever's modules.
    """
    modules = [getattr(model.retriever, part) for part in parts]
    dtype = torch.bfloat16 if bf16 else torch.float32
    with fast_linear_layers(*modules, dtype=dtype), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        yield


def compile_encoders(model: Any, parts: Sequence[str] = COMPILED) -> Any:
    """Compiles encoders in place, by `torch.compile`; names of weights stay what they are.

    The first pass takes a minute or more, and so does the first of another number of photos or texts; from then on
    numbers and lengths may be any.

    Args:
        model: a CCRk model, which is put into evaluation mode.
        parts: names of the retriever's modules: the two towers, the fusion encoder ("fusion_model") if it is called
            by itself.

    Returns:
        The model.

    Raises:
        ValueError: if the retriever has no part of a name.
    """
    for part in parts:
        if part not in ENCODERS:
            raise ValueError(f"a model has no encoder '{part}' to compile; it has: {', '.join(ENCODERS)}")
    model.eval()
    for part in parts:
        getattr(model.retriever, part).compile()
    return model


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Rows in batches of like lengths, so that little of a batch is padding.

    Args:
        lengths: of the rows.
        batch_size: rows in a batch; the last one may have fewer.

    Returns:
        Every row once, shortest first; equal lengths stay in their order, so it is the same every time.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def token_lengths(processor: Any, texts: Sequence[str]) -> list[int]:
    """How many tokens the texts have, truncated as the processor does."""
    return [len(ids) for ids in processor(text=list(texts), padding=False, truncation=True)["input_ids"]]


__all__ = ["compile_encoders", "fast_passes", "length_batches", "token_lengths"]
