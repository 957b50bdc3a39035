"""WebDataset tars: an image and its captions as files of the same name, one after the other in a tar.

The tars are read by `tarfile` and not by the `webdataset` package. That one deals whole shards out to processes and
workers, so that the batches of a step depend on how many there are, and skips what it cannot read in a handler; here
every process must see the same records, cheaply, and everything left out must be counted. Uncompressed tars have an
offset for each image, so only headers and texts are read, and an image when a batch needs it.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ccrk.data.names import LANGUAGE, list_files
from ccrk.data.references import TarMember
from ccrk.data.report import NO_CAPTIONS, NO_IMAGE, NOT_A_RECORD, NOT_JSON, SkipReport
from ccrk.data.rows import CaptionDataset, Row, caption_items, checked, kept_captions, passing

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
UNUSED = "file in a tar that is neither image nor captions"


def read_tars(
    pattern: str | Path | Iterable[str | Path],
    *,
    languages: Sequence[str] | None = None,
    language: str | None = None,
) -> CaptionDataset:
    """Reads WebDataset tars: `key.jpg` with `key.json`, `key.txt` or `key.de.txt`.

    `key.LANGUAGE.txt` is a caption, `key.txt` is one in `language`. Where there are none, captions are those of
    `key.json`, under `captions` or `caption`, in the forms that `read_captions` takes, or a text in `language`. Other
    fields of the JSON pass through. The image id is `image_id` or `id` of the JSON, or else the key.

    Args:
        pattern: see `list_files`.
        languages: languages to keep; all by default.
        language: language of captions that do not say.

    Raises:
        OSError: if a tar cannot be read.
        ValueError: if a file is no uncompressed tar or is cut off, its first record is not of this form or has a
            caption without language (later ones are counted), or nothing is left.
    """
    report, rows = SkipReport(), list[Row]()
    for path in list_files(pattern, ".tar"):
        rows += iter_tar(path, report, languages=languages, language=language)
    return checked(CaptionDataset(rows, report), pattern, languages)


def iter_tar(
    path: str | Path,
    report: SkipReport,
    *,
    languages: Sequence[str] | None = None,
    language: str | None = None,
) -> Iterator[Row]:
    """The rows of one tar; see `read_tars`."""
    path = os.fspath(path)
    size, good = os.path.getsize(path), False
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in itertools.groupby(_members(tar), key=lambda member: _split_name(member.name)[0]):
                try:
                    row = _tar_row(path, size, tar, key, list(members), languages, language, report, first=not good)
                except ValueError:
                    if not good:
                        raise
                    report.add(NOT_A_RECORD, f"{path}, '{key}'")
                    continue
                good = True
                if row is not None:
                    yield row
    except tarfile.TarError as error:
        raise ValueError(f"'{path}' is not an uncompressed tar, or is cut off: {error}") from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of a tar; the list that tarfile keeps of them is emptied, as a tar may have millions."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # the stubs know it only as getmembers()
        if member.isfile() and not member.issparse() and not os.path.basename(member.name).startswith("."):
            yield member


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a file: at the first dot of its name, as WebDataset has it."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix


def _tar_row(
    path: str,
    size: int,
    tar: tarfile.TarFile,
    key: str,
    members: list[tarfile.TarInfo],
    languages: Sequence[str] | None,
    language: str | None,
    report: SkipReport,
    first: bool,
) -> Row | None:
    where = f"{path}, '{key}'"
    image: TarMember | None = None
    texts: list[dict[str, Any]] = []
    record: dict[str, Any] | None = {}
    for member in members:
        if member.offset_data + member.size > size:
            raise tarfile.ReadError(f"'{member.name}' goes on behind its end")
        suffix = _split_name(member.name)[1]
        if suffix.lower() in IMAGE_SUFFIXES:
            image = TarMember(path, member.offset_data, member.size)
        elif suffix == "json":
            record = _json(tar, member)
        elif suffix == "txt" or (suffix.endswith(".txt") and LANGUAGE.fullmatch(suffix[:-4])):
            text = _content(tar, member).decode("utf-8", errors="replace").strip()
            texts.append({"language": suffix[:-4] or language, "text": text})
        else:
            report.add(UNUSED, f"{path}, '{member.name}'")
    if image is None:
        report.add(NO_IMAGE, where)
        return None
    if record is None:
        if first:
            raise ValueError(f"{where} is not JSON in its file .json, or not an object")
        report.add(NOT_JSON, where)
        return None
    items = texts or _json_captions(record, language, where)
    if first and any(item["language"] is None for item in items):
        raise ValueError(f"{where} has a caption without its language; language= names it")
    image_id = str(record.get("image_id", record.get("id", key)))
    captions = kept_captions(items, languages, report, image_id)
    if not captions:
        report.add(NO_CAPTIONS, image_id)
        return None
    return {"image": image, "image_id": image_id, "captions": captions, **passing(record, "id", "caption")}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    if stream is None:
        raise tarfile.ReadError(f"'{member.name}' is no file")
    return stream.read()


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any] | None:
    """The object of a JSON file; `None` for something else."""
    try:
        record = json.loads(_content(tar, member))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) else None


def _json_captions(record: dict[str, Any], language: str | None, where: str) -> list[dict[str, Any]]:
    captions = record.get("captions", record.get("caption"))
    if captions is None:
        return []
    if isinstance(captions, str):
        return [{"language": language, "text": captions}]
    if isinstance(captions, list) and all(isinstance(text, str) for text in captions):
        return [{"language": language, "text": text} for text in captions]
    return list(caption_items(captions, where))
