"""Encoders that are only to be run: compiled, and fed with texts of like lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ccrk.inference_ccrk import ENCODERS

COMPILED = ("vision_model", "text_model")
TOWERS = {"image": ENCODERS[:2], "text": ENCODERS[2:4]}
"""Modality -> what embeds it."""


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


__all__ = ["TOWERS", "compile_encoders", "length_batches", "token_lengths"]
