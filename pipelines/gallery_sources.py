"""What a gallery is made of: photos in a folder or a table, captions in a file, rows of a data set.

[`GalleryItems`] lists the items with their stable ids and what is known of them without opening them; an item is
hashed and opened only when it is asked for. [`gallery_items`] makes one of whatever the user names.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image

from .ccr_retrieval import folder_source
from .gallery_tables import TABLE_SUFFIXES, StoredPhoto, Table, read_dataset, read_table
from .index import check_ids

PHOTO_COLUMNS = {
    "path": "string",
    "size": "int64",
    "width": "int64",
    "height": "int64",
    "taken": "string",
    "hash": "string",
    "changed": "int64",
}
"""Of a photo: its file, bytes, pixels when upright, `2024-05-31T18:20:00` from EXIF, content, time of change (ns)."""

TEXT_COLUMNS = {"text": "string", "hash": "string"}
"""Metadata of a text; a column `language` is one of the user's own."""

OPENED = ("width", "height", "taken")
"""What is known of a photo only once it has been opened; it changes with the content alone."""

MAX_FILE_BYTES = 2**30
"""Larger files are no photos, and reading them would take minutes."""

SETTLED = 2.0
"""Seconds that a change has to be old before its time is trusted to tell the next one: clocks of disks are coarse."""

HASH_DIGITS = 32


class GalleryError(ValueError):
    """An item that cannot be taken into a gallery; the message says why.

    Args:
        message: the cause.
        gone: whether what an index has of the item is out of date; if not, the item may only be out of reach now.
    """

    def __init__(self, message: str, gone: bool = False):
        super().__init__(message)
        self.gone = gone


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One photo or text.

    Attributes:
        id: stable from run to run.
        known: metadata that takes no opening: path or text, and the user's own columns.
        content: a path, a photo inside a data set, or the text itself.
    """

    id: str
    known: dict[str, Any]
    content: Path | StoredPhoto | str

    def stamp(self) -> tuple[int, int] | None:
        """Size in bytes and time of the last change (ns) of a file; None for what is no file.

        The time is the one that the system keeps by itself and no program sets back, where there is such a time.

        Raises:
            GalleryError: if it is no file that can be read.
        """
        if not isinstance(self.content, Path):
            return None
        try:
            status = self.content.stat()
        except FileNotFoundError:
            raise GalleryError(f"there is no file '{self.content}'", gone=True) from None
        except OSError as error:
            raise GalleryError(str(error.strerror or error)) from error
        if not stat.S_ISREG(status.st_mode):
            raise GalleryError("it is no regular file", gone=True)
        if status.st_size > MAX_FILE_BYTES:
            raise GalleryError(f"it has {status.st_size} bytes; a photo has at most {MAX_FILE_BYTES}", gone=True)
        return status.st_size, status.st_mtime_ns if os.name == "nt" else status.st_ctime_ns

    def digest(self) -> str:
        """Hash of the content: equal for equal bytes, whatever their name.

        Raises:
            GalleryError: if the file cannot be read.
        """
        if isinstance(self.content, Path):
            try:
                with self.content.open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]
            except OSError as error:
                raise GalleryError(str(error.strerror or error)) from error
        data = self.content.encode(errors="surrogatepass") if isinstance(self.content, str) else self.content.read()
        return hashlib.sha256(data).hexdigest()[:HASH_DIGITS]

    def open(self, processor: Any) -> tuple[Any, dict[str, Any]]:
        """The photo (PIL, RGB and upright) or text, and the metadata that `OPENED` names.

        Args:
            processor: a CCRk processor: its limits are those of the gallery.

        Raises:
            GalleryError: if it cannot be opened.
        """
        try:
            if isinstance(self.content, str):
                processor.prepare_text(self.content)  # refuses an empty one
                return self.content, {}
            stored = None if isinstance(self.content, Path) else self.content.read()
            photo = self.content if stored is None else PIL.Image.open(BytesIO(stored))
            image = processor.image_processor.open_image(photo)
        except PermissionError as error:
            raise GalleryError(str(error.strerror or error)) from error
        except Exception as error:  # Pillow's decoders raise whatever they meet
            raise GalleryError(str(error) or type(error).__name__, gone=True) from error
        taken = date_taken(self.content if stored is None else stored)
        return image, {"width": image.width, "height": image.height, "taken": taken}


def date_taken(photo: Path | bytes) -> str | None:
    """When a photo was taken, by its EXIF block, as `2024-05-31T18:20:00`; None if it does not say."""
    try:
        with PIL.Image.open(BytesIO(photo) if isinstance(photo, bytes) else photo) as image:
            exif = image.getexif()
            said = exif.get_ifd(0x8769).get(0x9003) or exif.get(0x0132)
        moment = time.strptime(str(said).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except Exception:  # a damaged block is no reason to leave the photo out
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment)


def trusted_time(stamp: tuple[int, int] | None) -> int | None:
    """The time of change of a file that a later run may rely on; None if it changed only just now."""
    if stamp is None or time.time() - stamp[1] / 1e9 < SETTLED:
        return None
    return stamp[1]


@dataclass
class GalleryItems:
    """All items of a gallery.

    Attributes:
        modality: "image" or "text".
        columns: name -> type of their metadata.
        items: the items, each id once.
        skipped: (name, cause) of what could not be listed.
        unlisted: prefixes of ids that may be there but could not be listed, such as those of a locked folder.
        name: of the source, for messages.
    """

    modality: str
    columns: dict[str, str]
    items: list[GalleryItem]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unlisted: tuple[str, ...] = ()
    name: str = "the gallery"

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[GalleryItem]:
        return iter(self.items)


def gallery_items(
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    photos: str | os.PathLike | None = None,
) -> GalleryItems:
    """Lists what a user names.

    Args:
        source: a folder of photos; a folder written by `datasets.Dataset.save_to_disk`; a table (.parquet, .csv,
            .jsonl) with a column of paths or of texts; a .txt file with a text a line; or a `datasets.Dataset`.
        columns: the table's own columns to keep as metadata; all that hold plain values by default.
        photos: folder that the paths of a table are relative to; that of the table by default.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        TypeError, ValueError: if it is none of these, or holds nothing.
    """
    if hasattr(source, "column_names"):
        return _table_items(read_dataset(source, columns), Path(photos or ""), columns)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"the source is of type {type(source).__name__}; it is a path or a datasets.Dataset")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder '{path}' to index")
    if path.is_dir() and (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        from datasets import load_from_disk

        table = read_dataset(load_from_disk(str(path)), columns, f"the data set '{path}'")
        return _table_items(table, Path(photos or ""), columns)
    suffix = path.suffix.lower()
    if not path.is_dir() and suffix in TABLE_SUFFIXES:
        return _table_items(read_table(path, columns), Path(photos or path.parent), columns)
    if columns is not None or photos is not None:
        raise ValueError(f"'{path}' is no table, so it has no columns to choose and no paths in it")
    if path.is_dir():
        return folder_items(path)
    if suffix == ".txt":
        return text_items(path)
    raise ValueError(
        f"'{path}' cannot be indexed: a source is a folder of photos, a table ({', '.join(TABLE_SUFFIXES)}) or a "
        ".txt file with a text a line"
    )


def folder_items(folder: Path) -> GalleryItems:
    """The photos of a folder and below it, known by their relative paths. Linked files are followed, folders not.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: as `folder_source`.
    """
    folder = Path(os.path.abspath(folder))
    listed = folder_source(folder, open_image=None)
    skipped, unlisted = [], []
    for name, cause in listed.skipped:
        skipped.append((name, cause))
        unlisted.append(Path(name).relative_to(folder).as_posix() + "/")
    paths = [Path(listed.name(row)) for row in range(listed.size)]
    rows = ((path.relative_to(folder).as_posix(), {"path": str(path)}, path) for path in paths)
    items = _checked(rows, skipped)
    prefixes = tuple("" if prefix == "./" else prefix for prefix in unlisted)
    return GalleryItems("image", dict(PHOTO_COLUMNS), items, skipped, prefixes, f"the folder '{folder}'")


def text_items(file: Path) -> GalleryItems:
    """The lines of a text file that are not blank, known by their hash: moving a line changes no id.

    Raises:
        ValueError: if there is none, or the file is not UTF-8.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' is not UTF-8: {error}") from error
    rows = [(None, {"text": line}, line) for line in lines if line.strip()]
    skipped: list[tuple[str, str]] = []
    items = _checked(_with_hashes(rows), skipped)
    if not items:
        raise ValueError(f"the file '{file}' holds no text")
    return GalleryItems("text", dict(TEXT_COLUMNS), items, skipped, (), f"the file '{file}'")


def _table_items(table: Table, folder: Path, columns: Sequence[str] | None) -> GalleryItems:
    """Items of a table's rows; paths are relative to a folder, and `columns` those that were asked for."""
    own = set(table.columns)
    builtin = PHOTO_COLUMNS if table.modality == "image" else {**TEXT_COLUMNS, "width": "int64"}
    taken = own & set(builtin)
    if taken and columns is None:  # not asked for: the gallery measures its own
        for column in taken:
            del table.columns[column]
    elif taken:
        raise ValueError(
            f"{table.name} has a column '{min(taken)}', as a gallery of {table.modality}s has itself: rename it, or "
            "choose others by `columns`"
        )
    skipped = list(table.skipped)

    def rows() -> Iterator[tuple[str | None, dict, Any]]:
        for identity, content, values in table.rows:
            metadata = {name: value for name, value in values.items() if name in table.columns}
            if table.modality == "text":
                yield identity, {"text": content, **metadata}, content
                continue
            if isinstance(content, StoredPhoto):
                yield identity, {"path": None, **metadata}, content
                continue
            if "://" in content:
                skipped.append((identity or content, "it is an address; photos are fetched to files before"))
                continue
            path = Path(os.path.abspath(folder / content))
            yield identity or content, {"path": str(path), **metadata}, path

    kinds = dict(PHOTO_COLUMNS if table.modality == "image" else TEXT_COLUMNS) | table.columns
    items = _checked(_with_hashes(rows()), skipped)
    if not items:
        raise ValueError(f"{table.name} holds no {'photo' if table.modality == 'image' else 'text'} to index")
    return GalleryItems(table.modality, kinds, items, skipped, (), table.name)


def _with_hashes(rows) -> Iterator[tuple[str, dict, Any]]:
    """Rows without an id get the hash of their content for one; the second of equal ones ends in -2, and so on."""
    seen: dict[str, int] = {}
    for identity, known, content in rows:
        if identity is None:
            name = GalleryItem("", known, content).digest()[:16]
            seen[name] = seen.get(name, 0) + 1
            identity = name if seen[name] == 1 else f"{name}-{seen[name]}"
        yield identity, known, content


def _checked(rows, skipped: list[tuple[str, str]]) -> list[GalleryItem]:
    """Items of rows whose id an index can hold, each once; the others are added to `skipped`."""
    items: dict[str, GalleryItem] = {}
    for identity, known, content in rows:
        try:
            check_ids([identity])
            if identity in items:
                raise ValueError(f"the id '{identity}' is that of an earlier row")
        except ValueError as error:
            skipped.append((ascii(identity) if not identity.isprintable() else identity, str(error)))
        else:
            items[identity] = GalleryItem(identity, known, content)
    return list(items.values())


__all__ = ["GalleryError", "GalleryItem", "GalleryItems", "folder_items", "gallery_items", "text_items"]
