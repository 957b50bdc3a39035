"""Indexes by their URI: the scheme says which back end makes or opens it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .index import IndexFingerprint, VectorIndex, check_columns, without_secrets

BACK_ENDS = {
    "memory": ("memory_index", "MemoryIndex", None),
    "lance": ("lance_index", "LanceIndex", "lance"),
    "milvus": ("milvus_index", "MilvusIndex", "milvus"),
}
"""Scheme -> module and class of its back end, and the extra that brings its library."""

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def create_index(uri: str, fingerprint: IndexFingerprint, columns: Mapping[str, str] | None = None) -> VectorIndex:
    """Makes an empty index.

    Args:
        uri: `memory:` (a new one each time), `memory:NAME`, `lance://PATH` or `milvus://...`; docs/indexes.md has all
            forms.
        fingerprint: whose vectors it will hold.
        columns: name -> type of its metadata, see `COLUMN_TYPES`. The id is no column.

    Returns:
        The index, open.

    Raises:
        FileExistsError: if there is one already.
        ImportError: if the back end's library is not installed; the message says what to install.
        OSError: if it cannot be made.
        ValueError: if the URI, the fingerprint or a column is none.
    """
    if not isinstance(fingerprint.dimension, int) or fingerprint.dimension < 1:
        raise ValueError(f"an index of {fingerprint.dimension!r}-dimensional vectors: the dimension is at least 1")
    return _back_end(uri).create(uri, fingerprint, check_columns(columns or {}))


def open_index(uri: str) -> VectorIndex:
    """Opens an index that was made before.

    Args:
        uri: as it was given to [`create_index`].

    Raises:
        FileNotFoundError: if there is none.
        ImportError: if the back end's library is not installed; the message says what to install.
        OSError: if it cannot be read or reached.
        ValueError: if the URI is none, or what is there is no index of this package.
    """
    return _back_end(uri).open(uri)


def drop_index(uri: str) -> None:
    """Deletes an index with all its rows; nothing else that may lie beside it.

    Raises:
        FileNotFoundError: if there is none.
        OSError, ValueError: as `open_index`.
    """
    _back_end(uri).drop(uri)


def _back_end(uri: str) -> Any:
    """The class that serves a URI."""
    found = SCHEME.match(uri) if isinstance(uri, str) else None
    scheme = found[1].lower() if found else ""
    if scheme not in BACK_ENDS:
        raise ValueError(
            f"'{without_secrets(str(uri))}' names no index: an index is memory:, memory:NAME, lance://PATH or milvus://HOST:PORT/COLLECTION"
        )
    module, name, extra = BACK_ENDS[scheme]
    try:
        return getattr(import_module(f".{module}", __package__), name)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("ccrk"):
            raise
        raise ImportError(f"the index '{scheme}:' needs '{error.name}': pip install 'ccrk[{extra}]'") from error


__all__ = ["BACK_ENDS", "create_index", "drop_index", "open_index"]
