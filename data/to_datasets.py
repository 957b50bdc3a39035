"""Rows as a `datasets.Dataset`: what is shared on the Hub, and what tools outside of this package read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from ccrk.data.identity import image_identity
from ccrk.data.references import ImageReference

if TYPE_CHECKING:
    import datasets

    from ccrk.data.rows import CaptionDataset, Row

ROWS_AT_ONCE = 64
"""Rows that are held in memory while they are written, with their photos where these become bytes."""


def to_datasets(dataset: CaptionDataset, *, embed: bool = False, split: str = "train") -> datasets.Dataset:
    """The rows as a table on disk, in the cache of `datasets`.

    Columns are `image` (`datasets.Image`), `image_id` and `captions`, a list of `language`, `text`, `source` and
    `weight`, of which the last two may be None; and those further columns that hold texts, numbers or truth values of
    one kind. Captions and the places of photos are written anew when they have changed, and found in the cache when
    they have not.

    Args:
        dataset: the rows.
        embed: put the bytes of photo files into the table. Without it the table holds their paths, and is of use where
            these files are. Photos without a file of their own (in a tar, in a line of JSON) are always put into it.
        split: its name, for `load_dataset`.

    Raises:
        OSError, ValueError: if a photo that is to be put into the table cannot be read; the message names it.
    """
    import datasets

    extra = _extra_columns(dataset.rows)
    caption = {name: datasets.Value("string") for name in ("language", "text", "source")}
    features = {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "captions": datasets.List({**caption, "weight": datasets.Value("float64")}),
        **{name: datasets.Value(kind) for name, kind in extra.items()},
    }
    return datasets.Dataset.from_generator(
        # bound, as a list among gen_kwargs would be taken for shards, each of which gives all rows
        partial(_records, dataset, tuple(extra), embed),
        features=datasets.Features(features),
        split=datasets.NamedSplit(split),
        fingerprint=_fingerprint(dataset.rows, list(extra), embed, split),
        writer_batch_size=ROWS_AT_ONCE,
    )


def push_to_hub(
    dataset: CaptionDataset, repo_id: str, *, split: str = "train", private: bool | None = None, **options: Any
) -> str:
    """Publishes rows with their photos; `datasets.load_dataset(repo_id)` and `ccrk train --data repo_id` read them.

    Args:
        dataset: the rows. Only publish photos and captions whose terms allow it.
        repo_id: `organisation/name`.
        split: what part of the data set they are; other parts of the repository stay.
        private: whether a new repository is private.
        **options: of `datasets.Dataset.push_to_hub`, such as `commit_message`, `token` and `revision`.

    Returns:
        The address of the commit.

    Raises:
        OSError, ValueError: if a photo cannot be read.
    """
    # it puts the bytes of files into the shards that it uploads, and leaves out where they were
    return to_datasets(dataset, split=split).push_to_hub(repo_id, split=split, private=private, **options).commit_url


def _extra_columns(rows: Sequence[Row]) -> dict[str, str]:
    """Further columns and their types; those that hold something else are left out, with a warning."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("image", "image_id", "captions"):
                kinds.setdefault(name, set()).update({type(value)} - {type(None)})
    names = {str: "string", bool: "bool", int: "int64", float: "float64"}
    found, left_out = {}, []
    for name, types in kinds.items():
        (kind,) = types if len(types) == 1 else (float if types == {int, float} else None,)
        if kind in names:
            found[name] = names[kind]
        else:
            left_out.append(name)
    if left_out:
        warnings.warn(
            f"columns left out, as they do not hold texts, numbers or truth values of one kind: {', '.join(left_out)}",
            stacklevel=3,
        )
    return found


def _records(dataset: CaptionDataset, columns: Sequence[str], embed: bool) -> Iterator[dict[str, Any]]:
    for row in dataset.rows:
        captions = [{"source": None, "weight": None, **caption} for caption in row["captions"]]
        image = _image(row["image"], embed, row["image_id"])
        yield {"image": image, "image_id": row["image_id"], "captions": captions} | {n: row.get(n) for n in columns}


def _image(image: Any, embed: bool, image_id: str) -> dict[str, Any]:
    """A photo as `datasets` keeps it, `bytes` or `path`."""
    try:
        if isinstance(image, dict):
            if image.get("bytes"):
                return {"bytes": image["bytes"], "path": _name(image.get("path"))}
            image = image.get("path")
        if isinstance(image, (str, os.PathLike)):
            path = os.path.abspath(image)
            return {"bytes": Path(path).read_bytes(), "path": _name(path)} if embed else {"bytes": None, "path": path}
        if isinstance(image, PIL.Image.Image):
            file = io.BytesIO()
            image.save(file, "PNG")
            return {"bytes": file.getvalue(), "path": None}
        data = image.read() if isinstance(image, ImageReference) else image
    except (OSError, ValueError) as error:
        raise type(error)(f"the photo of row '{image_id}' cannot be put into the table: {error}") from error
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"row '{image_id}' has an image of type {type(image).__name__}, which is no photo")
    return {"bytes": bytes(data), "path": None}


def _name(path: str | None) -> str | None:
    """The name of a file, without where it was on this machine."""
    return None if path is None else os.path.basename(path)


def _fingerprint(rows: Sequence[Row], columns: Sequence[str], embed: bool, split: str) -> str:
    """A name for all that the table depends on."""
    digest = hashlib.sha256(json.dumps([list(columns), embed, split]).encode())
    for row in rows:
        about = [row["image_id"], row["captions"], [row.get(name) for name in columns]]
        digest.update(json.dumps(about, sort_keys=True).encode() + image_identity(row["image"]))
    return digest.hexdigest()[:32]


__all__ = ["push_to_hub", "to_datasets"]
