"""The gallery as the service shows it: items by id, with what may be seen of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from ccrk.pipelines.index import check_ids, parse_where
from ccrk.pipelines.index_gallery import INTERNAL, IndexGallery

from .photos import inside

HIDDEN = ("path", *INTERNAL)
"""Columns that are not shown and cannot be filtered by: where files lie on this machine is nobody's business."""

FIELDS = ("id", "text", "score", "similarity", "match")
"""Keys of a result that are no metadata."""


class ShownGallery:
    """Looks items up by their id as a text, in any gallery that a pipeline has.

    Args:
        gallery: of a pipeline, in memory or an index.
        folder: the folder of photos that it was made of, if it is one.
        photos: folders in which shown photos may lie, in the place of the one that was indexed.
    """

    def __init__(self, gallery: Any, folder: Path | None = None, photos: tuple[str, ...] = ()):
        self.gallery = gallery
        self.modality: str | None = getattr(gallery, "modality", None)
        self._index = gallery.index if isinstance(gallery, IndexGallery) else None
        columns = self._index.columns if self._index is not None else {}
        self.filters = self._index is not None
        self.columns = {name: kind for name, kind in columns.items() if name not in HIDDEN}
        self._rows: dict[str, int] = {}
        if self._index is None and hasattr(gallery, "vectors"):
            entries = gallery.entries(range(len(gallery)))
            self._rows = {str(entry["id"]): row for row, entry in enumerate(entries)}
        self.folders = [Path(name).resolve() for name in photos]
        if not self.folders and folder is not None:
            self.folders = [folder.resolve()]
        elif not self.folders and self.modality == "image" and self._index is not None:
            self.folders = self._indexed_folder()

    def _indexed_folder(self) -> list[Path]:
        """The folder that an index was made of: its ids are paths relative to it. Empty if they are not."""
        for row in self._index.scan(["path"]) if self._index is not None else ():
            path, end = row["path"] or "", "/" + row["id"]
            return [Path(path.removesuffix(end)).resolve()] if path.endswith(end) and path != end else []
        return []

    def __len__(self) -> int:
        return len(self.gallery)

    def check_where(self, where: Mapping[str, Any] | None) -> None:
        """Refuses a filter that the gallery cannot take.

        Raises:
            ValueError: saying what is wrong with it.
        """
        if where is None:
            return
        if not self.filters:
            raise ValueError("this gallery has no columns to filter by; an index that `ccrk index` made has")
        for value in _texts(where):
            if "\0" in value:
                raise ValueError("the filter holds a NUL character")
        parse_where(where, self.columns)

    def entry(self, item: str) -> dict[str, Any]:
        """What is known of an item: `id`, `path` or `text`, and metadata.

        Raises:
            KeyError: if there is none of this id.
        """
        if self._index is None:
            return self.gallery.entries([self._rows[item]])[0]
        _check_id(item)
        for row in self._index.scan(list(self._index.columns), where={"id": item}):
            return row
        raise KeyError(item)

    def vector(self, item: str) -> torch.Tensor:
        """The vector (D,) of an item.

        Raises:
            KeyError: if there is none of this id.
        """
        if self._index is None:
            return self.gallery.vectors[self._rows[item]]
        _check_id(item)
        for row in self._index.scan(["vector"], where={"id": item}):
            return row["vector"]
        raise KeyError(item)

    def photo(self, item: str) -> Path:
        """The file of an item's photo, links followed.

        Raises:
            KeyError: if there is no such item.
            LookupError: if it has no file, or one that lies outside of the gallery's folders.
        """
        path = self.entry(item).get("path")
        real = inside(path, self.folders) if path else None
        if real is None:
            raise LookupError(
                f"there is no photo of '{item}' to show: it has no file in the gallery's folder. `ccrk serve --photos "
                "FOLDER` names further folders"
            )
        return real

    def similar(self, item: str, k: int, where: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Rows nearest to an item, itself left out, as results of a search.

        Raises:
            KeyError: if there is none of this id.
        """
        vector = self.vector(item)[None]
        if self._index is None:
            ((ids, scores),) = self.gallery.search(vector, k + 1)
            rows = self.gallery.entries(ids)
        else:  # past the gallery, whose notes on rows belong to the thread that searches by the model
            ((ids, scores),) = self._index.search(vector, k + 1, where)
            known = {row["id"]: row for row in self._index.scan(list(self._index.columns), {"id": ids})} if ids else {}
            rows = [known.get(i, {"id": i}) for i in ids]
        found = [{**row, "score": float(score)} for row, score in zip(rows, scores, strict=True)]
        return [row for row in found if str(row["id"]) != item][:k]

    def shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row as the service answers with it: where its photo is in the place of a path, columns by themselves."""
        item = str(row["id"])
        metadata = {name: value for name, value in row.items() if name not in (*FIELDS, *HIDDEN)}
        fields = {name: row[name] for name in FIELDS[1:] if name in row}
        path = row.get("path")
        image = image_address(item) if path and inside(path, self.folders) else None
        return {**fields, "id": item, "image": image, "metadata": metadata}


def image_address(item: str) -> str:
    """Where the photo of an item is, on the service."""
    plain = not {"", ".", ".."} & set(item.split("/"))  # browsers and proxies would tidy up such paths
    return f"/images/{quote(item, safe='/' if plain else '')}"


def _check_id(item: str) -> None:
    try:
        check_ids([item])
    except ValueError:
        raise KeyError(item) from None  # what cannot be an id is the id of nothing


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, (list, tuple)) else []


__all__ = ["ShownGallery", "image_address"]
