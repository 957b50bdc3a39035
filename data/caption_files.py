"""Photos with captions in several languages, as JSON Lines, one photo a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ccrk.data.names import list_files
from ccrk.data.references import Base64Line, ImageFolder
from ccrk.data.report import NO_CAPTIONS, SkipReport
from ccrk.data.rows import (
    CaptionDataset,
    JsonLine,
    Row,
    caption_items,
    checked,
    kept_captions,
    passing,
    read_lines,
)

__all__ = ["CaptionDataset", "iter_captions", "iter_pretraining", "read_captions", "read_pretraining"]


def read_captions(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    sources: Sequence[str] = (),
    check_images: bool = True,
) -> CaptionDataset:
    """Reads a JSON Lines file, one image a line.

    Each line is an object with the image's path under `image` (or `image_path`), an optional `id` (or `image_id`),
    and `captions` (or `caption`): either language -> text or list of texts, or a list of objects with `language`,
    `text` and, if wanted, `source` and `weight`. Further captions may stand under `extra_captions`, as names -> list
    of texts. Other fields pass through.

    Args:
        path: the file.
        images: folder that image paths start from and may not leave; the file's own folder by default.
        languages: languages to keep; all by default.
        sources: names under `extra_captions` to take as well, as `LANGUAGE=NAME`; `zh=zh_human` takes the texts of
            `zh_human` as Chinese captions.
        check_images: whether to see if the image files are there.

    Returns:
        The rows. Records without an image file, empty captions and those in other languages are left out and counted.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line is not such an object, a source is malformed, or nothing is left.
    """
    report = SkipReport()
    rows = iter_captions(path, report, images=images, languages=languages, sources=sources, check_images=check_images)
    return checked(CaptionDataset(list(rows), report), path, languages)


def iter_captions(
    path: str | Path,
    report: SkipReport,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    sources: Sequence[str] = (),
    check_images: bool = True,
    strict: bool = True,
) -> Iterator[Row]:
    """The rows of such a file one by one; see `read_captions`, and `read_lines` for `strict`."""
    folder = ImageFolder(images if images is not None else Path(path).parent, check_images)
    extra = [_parse_source(source) for source in sources]
    to_row = partial(_caption_row, folder=folder, extra=extra, languages=languages, report=report)
    return read_lines(path, to_row, report, strict)


def _parse_source(source: str) -> tuple[str, str]:
    language, separator, name = source.partition("=")
    if not separator or not language or not name:
        raise ValueError(f"the caption source '{source}' is not of the form LANGUAGE=NAME, such as zh=zh_human")
    return language, name


def _caption_row(
    line: JsonLine,
    folder: ImageFolder,
    extra: list[tuple[str, str]],
    languages: Sequence[str] | None,
    report: SkipReport,
) -> Row | None:
    record = line.record
    name = record.get("image", record.get("image_path"))
    if not isinstance(name, str):
        raise ValueError(f"{line.where} names no image (a path under 'image' or 'image_path')")
    image = folder.find(name, report)
    if image is None:
        return None
    items = [
        {"source": "captions", **item}
        for item in caption_items(record.get("captions", record.get("caption", {})), line.where)
    ]
    named = record.get("extra_captions", {})
    if not isinstance(named, dict):
        raise ValueError(f"{line.where}: extra_captions are not names -> texts")
    for language, source in extra:
        texts = named.get(source, [])
        texts = texts if isinstance(texts, list) else [texts]
        items += [{"language": language, "text": text, "source": source} for text in texts]
    image_id = str(record.get("id", record.get("image_id", name)))
    captions = kept_captions(items, languages, report, image_id)
    if not captions:
        report.add(NO_CAPTIONS, image_id)
        return None
    metadata = passing(record, "id", "image_path", "caption", "extra_captions")
    return {"image": image, "image_id": image_id, "captions": captions, **metadata}


# --- what the authors pretrain on ---------------------------------------------------------------------------------


def read_pretraining(
    path: str | Path | Iterable[str | Path],
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    check_images: bool = True,
) -> CaptionDataset:
    """Reads the authors' pretraining data: a folder of files (or one), a JSON object a line.

    An object has `caption`, language -> text, and its image: as base64 under `image`, or else as a path under
    `image_path`. (The authors' setting `is_image_rpath` says the opposite of its name; here nothing has to be set.) A
    record lacking a language is kept with those it has. Lines that hold no such object are counted, but for the first
    line of a file.

    Args:
        path: a folder, a file, or what else `list_files` takes.
        images: folder that image paths start from and may not leave; the folder of the file by default.
        languages: languages to keep; all by default.
        check_images: whether to see if image files are there.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not of this format, or nothing is left.
    """
    report = SkipReport()
    rows: list[Row] = []
    for file in list_files(path):
        rows += iter_pretraining(file, report, images=images, languages=languages, check_images=check_images)
    return checked(CaptionDataset(rows, report), path, languages)


def iter_pretraining(
    path: str | Path,
    report: SkipReport,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    check_images: bool = True,
) -> Iterator[Row]:
    """The rows of one such file; see `read_pretraining`."""
    folder = ImageFolder(images if images is not None else Path(path).parent, check_images)
    to_row = partial(_pretraining_row, folder=folder, languages=languages, report=report)
    return read_lines(path, to_row, report, strict=False)


def _pretraining_row(
    line: JsonLine, folder: ImageFolder, languages: Sequence[str] | None, report: SkipReport
) -> Row | None:
    record = line.record
    texts = record.get("caption")
    if not isinstance(texts, dict):
        raise ValueError(f"{line.where} has no 'caption' with language -> text")
    name, embedded = record.get("image_path"), record.get("image")
    if isinstance(embedded, str) and embedded:
        image = Base64Line(str(line.path), line.offset, line.length, "image")
        name = name if isinstance(name, str) and name else f"{line.path.name}:{line.number}"
    elif isinstance(name, str) and name:
        image = folder.find(name, report)
        if image is None:
            return None
    else:
        raise ValueError(f"{line.where} names no image (base64 under 'image', or a path under 'image_path')")
    image_id = str(record.get("image_id", record.get("id", name)))
    captions = kept_captions(caption_items(texts, line.where), languages, report, image_id)
    if not captions:
        report.add(NO_CAPTIONS, image_id)
        return None
    return {"image": image, "image_id": image_id, "captions": captions, **passing(record, "id", "caption")}
