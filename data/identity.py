"""What tells an image from another without decoding it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from PIL import Image


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
