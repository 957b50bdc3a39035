"""Corpora with a file for each language: xFlickr&CO and WIT as IGLUE has them, and Multi30K."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ccrk.data.names import LANGUAGE, choose_split, coco_id
from ccrk.data.references import Base64Line, ImageFolder
from ccrk.data.report import IMAGE_MISSING, OTHER_LANGUAGE
from ccrk.data.rows import CaptionDataset, JsonLine, RowJoiner, passing, read_json, read_lines


def _language_files(
    found: Mapping[str, Path], languages: Sequence[str] | None, joiner: RowJoiner, path: Any
) -> list[tuple[str, Path]]:
    """Files of the wanted languages, in the order of languages; a file that is not read is counted as a whole.

    Raises:
        ValueError: if a wanted language has no file.
    """
    missing = [tag for tag in languages or () if tag not in found]
    if missing:
        raise ValueError(f"'{path}' has no captions in {', '.join(missing)}; it has {', '.join(sorted(found))}")
    for tag in sorted(found):
        if languages is not None and tag not in languages:
            joiner.report.add(f"file in a {OTHER_LANGUAGE}", found[tag].name)
    return [(tag, found[tag]) for tag in (sorted(found) if languages is None else languages)]


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} has no '{key}'")
    return value


# --- xFlickr&CO ---------------------------------------------------------------------------------------------------


def read_xflickrco(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    language: str | None = None,
    check_images: bool = True,
) -> CaptionDataset:
    """Reads xFlickr&CO, or Flickr30K in the same form: `LANGUAGE/SPLIT.jsonl`, joined over languages by image file.

    A line is `{"sentences": [...], "id": ..., "img_path": ...}`; the image id is COCO's number or the name of the
    file without its suffix. Images with `COCO` in their name are looked for in
    `val2014/`, others in `flickr30k-images/`, and all in the image folder itself.

    Args:
        path: the folder with a folder for each language, or one file.
        images: folder with `val2014/` and `flickr30k-images/`; by default the folder of the data.
        languages: languages to read; all by default.
        split: name of the files, `test` or `train_100`; may be left out if there is only one.
        language: language of a single file whose folder is not named by its language.
        check_images: whether to see if the image files are there.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a language or a split is not there, a line is not of this form, or nothing is left.
    """
    path, joiner = Path(path), RowJoiner(languages)
    folder = ImageFolder(images if images is not None else (path if path.is_dir() else path.parent), check_images)
    for tag, file in _xflickrco_files(path, languages, split, language, joiner):
        for _ in read_lines(file, partial(_xflickrco_record, joiner=joiner, folder=folder, tag=tag), joiner.report):
            pass
    return joiner.dataset(path)


def _xflickrco_files(
    path: Path, languages: Sequence[str] | None, split: str | None, language: str | None, joiner: RowJoiner
) -> list[tuple[str, Path]]:
    if not path.is_dir():
        tag = language or path.absolute().parent.name
        if not language and not LANGUAGE.fullmatch(tag):
            raise ValueError(f"'{path}' does not stand in a folder named by its language; language= names it")
        return [(tag, path)]
    files = [f for f in sorted(path.glob("*/*.jsonl")) if LANGUAGE.fullmatch(f.parent.name)]
    split = choose_split([f.stem for f in files], split, path)
    return _language_files({f.parent.name: f for f in files if f.stem == split}, languages, joiner, path)


def _xflickrco_record(line: JsonLine, joiner: RowJoiner, folder: ImageFolder, tag: str) -> None:
    record, sentences = line.record, line.record.get("sentences")
    name = _text(record, "img_path", line.where)
    if not isinstance(sentences, list):
        raise ValueError(f"{line.where} has no list of 'sentences'")
    subfolder = "val2014" if "COCO" in name else "flickr30k-images"
    joiner.add(
        coco_id(name),
        lambda: folder.find(name, joiner.report, [subfolder]),
        [{"language": tag, "text": text} for text in sentences],
        passing(record, "id", "img_path", "sentences"),
    )


# --- Multi30K -----------------------------------------------------------------------------------------------------

_MULTI30K = re.compile(r"(?P<split>.+?)(?:\.(?P<number>\d))?\.(?P<language>[a-z]{2,3})(?:\.gz)?")


def read_multi30k(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    check_images: bool = True,
) -> CaptionDataset:
    """Reads Multi30K: line i of `SPLIT.LANGUAGE.gz` describes the image on line i of `SPLIT.txt`.

    Files may be unpacked. Those of the second task, `SPLIT.1.LANGUAGE.gz` to `SPLIT.5.LANGUAGE.gz`, are read as five
    captions of an image. What follows a `#` in an image's name is left off.

    Args:
        path: the folder.
        images: folder of the images, or with `flickr30k-images/`, `train2014/` and `val2014/`; the same by default.
        languages: languages to read; all by default.
        split: `train`, `val`, `test_2016_flickr`, ...; may be left out if there is only one.
        check_images: whether to see if the image files are there.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a language or a split is not there, files differ in their number of lines, or nothing is left.
    """
    path, joiner = Path(path), RowJoiner(languages)
    folder = ImageFolder(images if images is not None else path, check_images)
    found = [(match, file) for file in sorted(path.iterdir()) if (match := _MULTI30K.fullmatch(file.name))]
    found = [(match, file) for match, file in found if file.suffix != ".txt"]
    split = choose_split([m["split"] for m, _ in found if (path / f"{m['split']}.txt").is_file()], split, path)
    names = [name.split("#")[0].strip() for name in _lines(path / f"{split}.txt")]
    files: dict[str, list[Path]] = {}
    for match, file in found:
        if match["split"] == split:
            files.setdefault(match["language"], []).append(file)
    for tag, _ in _language_files({tag: paths[0] for tag, paths in files.items()}, languages, joiner, path):
        for file in files[tag]:
            texts = _lines(file)
            if len(texts) != len(names):
                raise ValueError(
                    f"'{file}' has {len(texts)} lines, but '{path / split}.txt' names {len(names)} images"
                )
            for name, text in zip(names, texts, strict=True):
                find = partial(folder.find, name, joiner.report, _multi30k_folders(name))
                joiner.add(coco_id(name), find, [{"language": tag, "text": text.strip()}])
    return joiner.dataset(path)


def _multi30k_folders(name: str) -> list[str]:
    coco = re.match(r"COCO_(\w+2014)_", name)
    return [coco[1]] if coco else ["flickr30k-images"]


def _lines(path: Path) -> list[str]:
    """Lines of a text, packed or not; only a line feed ends one, as captions may hold other separators."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not " + ("gzip" if path.suffix == ".gz" else "UTF-8") + f": {error}") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


# --- WIT ----------------------------------------------------------------------------------------------------------


def read_wit(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    names: Mapping[str, str] | str | Path | None = None,
    check_images: bool = True,
) -> CaptionDataset:
    """Reads WIT as IGLUE has it: `SPLIT_LANGUAGE.jsonl`, joined over files by the image's URL, which is the image id.

    A line has `image_url`, `language` and `caption_reference_description`. The image is found, in this order: as
    base64 under `image_content`; by `names`; in the image folder as a file whose name without its suffix is the MD5 or
    SHA-256 of the URL in hexadecimal; there by the last part of the URL, percent-decoded or as it is. Nothing is
    downloaded.

    Args:
        path: the folder, or one file.
        images: folder of the images; by default the folder of the data.
        languages: languages to keep; all by default.
        split: `train`, `test`, ...; may be left out if there is only one.
        names: URL -> file in the image folder, or a JSON file that holds that.
        check_images: whether to see if the image files are there.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a language or a split is not there, a line is not of this form, or nothing is left.
    """
    path, joiner = Path(path), RowJoiner(languages)
    root = Path(images) if images is not None else (path if path.is_dir() else path.parent)
    find = _WitImages(root, names, check_images, joiner)
    if path.is_dir():
        found = {f: f.stem.rsplit("_", 1) for f in sorted(path.glob("*_*.jsonl"))}
        found = {f: parts for f, parts in found.items() if LANGUAGE.fullmatch(parts[1])}
        split = choose_split([parts[0] for parts in found.values()], split, path)
        by_language = {parts[1]: f for f, parts in found.items() if parts[0] == split}
        files = [file for _, file in _language_files(by_language, languages, joiner, path)]
    else:
        files = [path]
    for file in files:
        for _ in read_lines(file, partial(_wit_record, joiner=joiner, find=find), joiner.report):
            pass
    return joiner.dataset(path)


def _wit_record(line: JsonLine, joiner: RowJoiner, find: Callable[[str, JsonLine], Any]) -> None:
    record = line.record
    url = _text(record, "image_url", line.where)
    if "caption_reference_description" not in record:
        raise ValueError(f"{line.where} has no 'caption_reference_description'")
    caption = {"language": record.get("language"), "text": record["caption_reference_description"]}
    metadata = passing(record, "language", "caption_reference_description", "image_content", "page_url")
    joiner.add(url, partial(find, url, line), [caption], metadata)


class _WitImages:
    """Finds the image of a URL; see `read_wit`."""

    def __init__(self, root: Path, names: Any, check: bool, joiner: RowJoiner):
        self.folder, self.joiner, self.check = ImageFolder(root, check), joiner, check
        self.names = read_json(Path(names)) if isinstance(names, (str, os.PathLike)) else (names or {})
        if not isinstance(self.names, Mapping):
            raise ValueError(f"'{names}' holds no object of URL -> file name")
        self.stems: dict[str, str] | None = None

    def __call__(self, url: str, line: JsonLine) -> Any:
        if isinstance(line.record.get("image_content"), str) and line.record["image_content"]:
            return Base64Line(str(line.path), line.offset, line.length, "image_content")
        if url in self.names:
            return self.folder.find(self.names[url], self.joiner.report)
        if self.stems is None:
            listed = sorted(os.listdir(self.folder.root)) if os.path.isdir(self.folder.root) else []
            self.stems = {os.path.splitext(name)[0]: name for name in listed}
        data = url.encode()
        for digest in (hashlib.md5(data, usedforsecurity=False).hexdigest(), hashlib.sha256(data).hexdigest()):
            if digest in self.stems:
                return self.folder.find(self.stems[digest], self.joiner.report)
        last = urlsplit(url).path.rsplit("/", 1)[-1]
        if not last:
            self.joiner.report.add(IMAGE_MISSING, url)
            return None
        return self.folder.find(unquote(last), self.joiner.report, aliases=[last])
