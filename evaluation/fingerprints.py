"""A name for what the features of a data set depend on: weights, processor, rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from PIL import Image

from ccrk.data.images import CAUSES
from ccrk.fingerprints_ccrk import NAME_LENGTH, weights_name

TOWERS = {"images": "vision_model", "texts": "text_model"}
"""What is read -> the part of the model that reads it."""


def data_fingerprint(model, processor, dataset, towers: Sequence[str]) -> str:
    """Names what the output of towers depends on: their weights, the processor and the data set's rows.

    Args:
        model: a CCRk model.
        processor: its processor.
        dataset: map-style rows.
        towers: `vision_model`, `text_model`, and further parts whose weights count; images count with the first.
    """
    digest = hashlib.sha256()
    digest.update(weights_name(model.retriever, towers).encode())
    digest.update(json.dumps([processor.to_dict(), CAUSES], sort_keys=True, default=str).encode())
    for row in dataset:
        texts = [str(text) for text in texts_of(row)]
        languages = [str(caption.get("language")) for caption in row["captions"] or [] if isinstance(caption, Mapping)]
        digest.update(json.dumps([str(row.get("image_id")), texts, languages]).encode())
        if TOWERS["images"] in towers:
            digest.update(image_identity(row["image"]))
    return digest.hexdigest()[:NAME_LENGTH]


def texts_of(row: Mapping[str, Any]) -> list[Any]:
    """What stands in the place of each caption's text; None where nothing does."""
    return [caption.get("text") if isinstance(caption, Mapping) else None for caption in row["captions"] or []]


def image_identity(image: Any) -> bytes:
    """Bytes that change when an image does: its bytes or pixels, or the path, size and time of its file."""
    if isinstance(image, Mapping):
        data = image.get("bytes")
        image = image.get("path") if data is None else data
    if isinstance(image, (bytes, bytearray, memoryview)):
        return hashlib.sha256(image).digest()
    if isinstance(image, str) and image.lower().startswith("data:"):
        return hashlib.sha256(image.encode()).digest()
    if isinstance(image, (str, os.PathLike)):
        return f"{os.fspath(image)} {_stamp(image)}".encode()
    path = getattr(image, "path", None)
    if is_dataclass(image) and isinstance(path, (str, os.PathLike)):
        return f"{image!r} {_stamp(path)}".encode()  # a part of a file
    try:
        if image is not None and hasattr(image, "read"):
            data = image.read()
            if hasattr(image, "seek"):
                image.seek(0)
            return hashlib.sha256(data).digest()
        if isinstance(image, Image.Image):
            return f"{image.mode} {image.size}".encode() + image.tobytes()
        return np.ascontiguousarray(image).tobytes() if isinstance(image, np.ndarray) else repr(image).encode()
    except Exception as error:  # whatever an image that cannot be read raises; it is broken, and that is what it is
        return f"unreadable {type(error).__name__}".encode()


def _stamp(path: str | os.PathLike) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        return type(error).__name__
    return f"{status.st_size} {status.st_mtime_ns}"
