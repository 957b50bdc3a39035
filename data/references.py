"""Where the bytes of an image are, when they are no file of their own: light, picklable, read when they are needed."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ccrk.data.report import IMAGE_MISSING, IMAGE_OUTSIDE, SkipReport


@runtime_checkable
class ImageReference(Protocol):
    """Anything that can give the bytes of an encoded image (JPEG, PNG, ...)."""

    def read(self) -> bytes:
        """The bytes of the image file.

        Raises:
            OSError: if the file that holds them cannot be read.
            ValueError: if what is there is no image bytes.
        """


def _read_range(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) < length:
        raise ValueError(f"'{path}' ends {length - len(data)} bytes before the image at byte {offset} does")
    return data


@dataclass(frozen=True)
class TarMember:
    """An image in an uncompressed tar.

    Attributes:
        path: the tar.
        offset: where the image begins, in bytes.
        size: how long it is, in bytes.
    """

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes of the image; see [`ImageReference`]."""
        return _read_range(self.path, self.offset, self.size)


@dataclass(frozen=True)
class Base64Line:
    """An image that stands as base64 in a line of JSON.

    Attributes:
        path: the file of JSON lines.
        offset: where the line begins, in bytes.
        length: how long it is, in bytes.
        key: the field of the object that holds the image.
    """

    path: str
    offset: int
    length: int
    key: str

    def read(self) -> bytes:
        """The bytes of the image; see [`ImageReference`]."""
        where = f"'{self.path}' at byte {self.offset}"
        try:
            text = json.loads(_read_range(self.path, self.offset, self.length))[self.key]
            return base64.b64decode("".join(text.split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"{where}: '{self.key}' is not base64: {error}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: no object with an image under '{self.key}'; has the file changed?") from error


@dataclass(frozen=True)
class DatasetCell:
    """An image in a table of `datasets`, which keeps it on disk.

    Attributes:
        table: a `datasets.Dataset` that does not decode its images.
        row: the row.
        column: the column.
    """

    table: Any = field(repr=False)
    row: int
    column: str

    def read(self) -> bytes:
        """The bytes of the image; see [`ImageReference`]."""
        cell = self.table[self.row][self.column]
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            return Path(cell).read_bytes()
        if not isinstance(cell, bytes):
            raise ValueError(f"row {self.row} has no image in its column '{self.column}'")
        return cell


class ImageFolder:
    """Finds the image files that a corpus names, within one folder.

    Args:
        root: the folder. Names that lead out of it, by `..` or as absolute paths, are refused; links within it are
            followed.
        check: whether to see if a file is there. Without it a path is taken as it is named, and a missing file shows
            when the image is opened.
    """

    def __init__(self, root: str | Path, check: bool = True):
        self.root = os.path.abspath(root)
        self.check = check

    def find(
        self, name: str, report: SkipReport, subfolders: Sequence[str] = (), aliases: Sequence[str] = ()
    ) -> str | None:
        """The path of an image.

        Args:
            name: path of the file as the corpus has it.
            report: takes the count if there is no such file, or it is outside.
            subfolders: folders within the root where it may be, first of all; the root itself is the last to be tried.
            aliases: other names that it may have.

        Returns:
            The path, or `None` if the image is to be left out. Without `check` the first possibility.
        """
        inside = False
        for alias in (name, *aliases):
            for folder in (*subfolders, ""):
                path = os.path.normpath(os.path.join(self.root, folder, alias))
                if not path.startswith(self.root.rstrip(os.sep) + os.sep):
                    continue
                inside = True
                if not self.check or os.path.isfile(path):
                    return path
        report.add(IMAGE_MISSING if inside else IMAGE_OUTSIDE, name)
        return None
