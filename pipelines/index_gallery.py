"""An index as the gallery of a retrieval pipeline: what its rows are, and states of photos that it keeps."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .gallery_update import gallery_modality
from .image_states import MAX_BYTES, ImageStateStore
from .index import Hits, VectorIndex
from .model_fingerprint import embedding_fingerprint, states_name

logger = logging.getLogger(__name__)

INTERNAL = ("hash", "changed")
"""Columns that updates need and results do not show."""

ENOUGH_STATES = 0.9
"""Share of the rows of which states have to be kept for `has_states`."""


def states_folder(uri: str) -> Path | None:
    """Where the image states of an index are kept by default: beside one on the disk; None for others."""
    scheme, _, path = uri.partition("://")
    if scheme.lower() != "lance" or not path.strip("/"):
        return None
    return Path(f"{path.rstrip('/')}-states")


class IndexGallery:
    """A [`VectorIndex`] that `ccrk index` made, as a gallery.

    Args:
        index: open; it is closed with the gallery.
        states: folder of the image states; by default the one beside the index, if there is one.
        load: gives the photos (PIL images or paths) or texts of ids; by default photos are read from their `path`.
        max_states: room in bytes for states that searches compute.
    """

    def __init__(
        self,
        index: VectorIndex,
        states: str | os.PathLike | None = None,
        load: Callable[[Sequence[str]], list[Any]] | None = None,
        max_states: int = MAX_BYTES,
    ):
        self.index, self.uri, self.columns = index, index.uri, index.columns
        self.modality = gallery_modality(index.columns)
        beside = states_folder(index.uri)
        self._folder = states if states is not None else beside if beside is not None and beside.is_dir() else None
        self._load, self._max_states = load, max_states
        self._store: ImageStateStore | None = None
        self._seen: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return self.index.count()

    def attach(self, model: Any, processor: Any) -> None:
        """Makes sure that a model's vectors can be compared with those of the index, and opens its states.

        Raises:
            ValueError: if they cannot, saying what differs.
        """
        self.index.fingerprint.require(embedding_fingerprint(model, processor), self.uri)
        if self.modality == "image" and self._folder is not None:
            self._store = ImageStateStore(self._folder, states_name(model, processor), self._max_states)

    def search(self, vectors: torch.Tensor, k: int, where: Mapping[str, Any] | None = None) -> Hits:
        """See [`VectorIndex.search`]."""
        self._seen = {}
        return self.index.search(vectors, k, where)

    def _rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """All columns of rows; of one that another process has just deleted, the id alone."""
        seen = self._seen  # rows change with time, so they are remembered from one search to the next only
        missing = [i for i in dict.fromkeys(ids) if i not in seen]
        if missing:
            try:
                rows = self.index.entries(missing)
            except KeyError:
                rows = list(self.index.scan(list(self.columns), where={"id": missing}))
            seen |= {row["id"]: row for row in rows}
        return [seen.get(i, {"id": i}) for i in ids]

    def entries(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Descriptions of rows: `id`, `path` or `text`, and metadata."""
        return [{name: value for name, value in row.items() if name not in INTERNAL} for row in self._rows(ids)]

    def load(self, ids: Sequence[str]) -> list[Any]:
        """The photos or texts of rows; a photo as its path, or None if it has none."""
        if self._load is not None:
            return self._load(ids)
        if self.modality == "text":
            return [row.get("text") or "" for row in self._rows(ids)]
        return [Path(row["path"]) if row.get("path") else None for row in self._rows(ids)]

    @property
    def has_states(self) -> bool:
        """Whether states are kept for nearly all photos, so that re-ranking does not have to compute them."""
        return self._store is not None and len(self._store) >= ENOUGH_STATES * max(1, len(self))

    def state_keys(self, ids: Sequence[str]) -> list[str]:
        """What tells the states of photos apart: their content, which may change under an id."""
        return [row.get("hash") or row["id"] for row in self._rows(ids)]

    def hidden_states(self, ids: Sequence[str]) -> list[torch.Tensor | None]:
        """Tokens (1 + P, width) of photos, where they are kept."""
        return [None] * len(ids) if self._store is None else self._store.get(self.state_keys(ids))

    def keep_states(self, ids: Sequence[str], states: torch.Tensor) -> None:
        """Keeps tokens (N, 1 + P, width) that a search had to compute, if there is a store and room in it."""
        if self._store is None:
            return
        try:
            self._store.put(self.state_keys(ids), states)
            self._store.flush()
        except OSError as error:  # a search can do without
            logger.warning(f"{error}")
            self._store.max_bytes = 0

    def close(self) -> None:
        """Closes the index."""
        if self._store is not None:
            self._store.close()
        self.index.close()


__all__ = ["IndexGallery", "states_folder"]
