"""Names for what results depend on: what has the same name need not be computed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

NAME_LENGTH = 16
"""Hexadecimal digits of a name."""


def name_of(values: Any, *arrays: np.ndarray) -> str:
    """A name for what JSON can hold, and for arrays."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:NAME_LENGTH]


def weights_name(retriever: Any, parts: Sequence[str], dtype: torch.dtype = torch.float32) -> str:
    """A name for the weights of parts of a model.

    Args:
        retriever: a `CCRkModel`.
        parts: names of its modules, such as `vision_model`, or of single parameters.
        dtype: that weights are taken to first. In bfloat16 a model has one name whether it was loaded in float32 or in
            bfloat16, and so have two models that are apart by less than that rounding in every single weight.
    """
    digest = hashlib.sha256()
    for part in parts:
        of_part = getattr(retriever, part)
        tensors = {"": of_part} if isinstance(of_part, torch.Tensor) else of_part.state_dict()
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{part}.{name} {tuple(tensor.shape)}".encode())
            tensor = tensor.detach().cpu()
            if tensor.is_floating_point():
                tensor = tensor.to(dtype)
            digest.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:NAME_LENGTH]


__all__ = ["name_of", "weights_name"]
