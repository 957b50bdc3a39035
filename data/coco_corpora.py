"""Captions of COCO's photos: Karpathy's splits, YJCaptions and STAIR in Japanese, COCO-CN in Chinese.

The image id is COCO's number in all of them, so `join_corpora` makes them one multilingual corpus.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ccrk.data.names import COCO_NAME, choose_split, coco_id
from ccrk.data.references import ImageFolder
from ccrk.data.report import OTHER_SPLIT
from ccrk.data.rows import CaptionDataset, RowJoiner, passing, read_json

_COCO_FOLDERS = ("train2014", "val2014", "train2017", "val2017")


def _coco_files(number: str) -> list[str]:
    """Where the image of a number may be: in the folders of 2014 or 2017."""
    padded = number.zfill(12)
    files = [f"{folder}/COCO_{folder}_{padded}.jpg" for folder in ("train2014", "val2014")]
    return [*files, f"train2017/{padded}.jpg", f"val2017/{padded}.jpg"]


def _find(folder: ImageFolder, name: str | None, number: str, joiner: RowJoiner) -> str | None:
    """The file of an image: by its name, in its folder or at the root, or where COCO has the image of that number."""
    aliases = _coco_files(number) if number.isdecimal() else []
    if name is None:
        return folder.find(aliases[0], joiner.report, aliases=aliases[1:])
    match = COCO_NAME.fullmatch(Path(name).stem)
    subfolders = [match["folder"]] if match and match["folder"] else _COCO_FOLDERS if match else ["flickr30k-images"]
    return folder.find(name, joiner.report, subfolders, aliases)


def _of_split(split: str | Sequence[str], found: Collection[str], path: Any) -> list[str]:
    """Names of the splits that are asked for.

    Raises:
        ValueError: if one is not there.
    """
    wanted = [split] if isinstance(split, str) else list(split)
    return [choose_split(found, name, path) for name in wanted]


def _objects(data: Any, key: str, path: Any) -> list[dict[str, Any]]:
    found = data.get(key) if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"'{path}' has no list of objects under '{key}'")
    return found


def read_karpathy(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: str | Sequence[str] | None = None,
    language: str = "en",
    check_images: bool = True,
) -> CaptionDataset:
    """Reads a JSON of Karpathy's splits: `dataset_coco.json`, or those of Flickr30K and Flickr8K.

    Args:
        path: the file.
        images: folder with `train2014/` and `val2014/`, or of the images; by default the folder of the file.
        languages: as elsewhere: without the file's language in it, nothing is left.
        split: `train`, `val`, `test`, `restval`, or several as a list, such as `["train", "restval"]`.
        language: language of the file.
        check_images: whether to see if the image files are there.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not of this form, a split is not in it, or nothing is left.
    """
    path, joiner = Path(path), RowJoiner(languages)
    folder = ImageFolder(images if images is not None else path.parent, check_images)
    records = _objects(read_json(path), "images", path)
    found = {str(record.get("split")) for record in records}
    wanted = [choose_split(found, None, path)] if split is None else _of_split(split, found, path)
    for place, record in enumerate(records):
        where, name = f"{path}, image {place}", record.get("filename")
        sentences = record.get("sentences")
        if not isinstance(name, str) or not isinstance(sentences, list):
            raise ValueError(f"{where} lacks its 'filename' or its 'sentences'")
        image_id = str(record["cocoid"]) if "cocoid" in record else coco_id(name)
        if str(record.get("split")) not in wanted:
            joiner.report.add(OTHER_SPLIT, image_id)
            continue
        if not all(isinstance(sentence, dict) for sentence in sentences):
            raise ValueError(f"{where}: its sentences are not objects with 'raw'")
        captions = [{"language": language, "text": sentence.get("raw")} for sentence in sentences]
        if record.get("filepath"):
            name = f"{record['filepath']}/{name}"
        metadata = passing(record, "filename", "filepath", "sentences", "sentids", "cocoid", "imgid")
        joiner.add(image_id, partial(_find_in, folder, name, image_id, joiner), captions, metadata)
    return joiner.dataset(path)


def _find_in(folder: ImageFolder, name: str, number: str, joiner: RowJoiner) -> str | None:
    """As `_find`, for a name that may begin with its folder: there, or without that folder."""
    if "/" not in name:
        return _find(folder, name, number, joiner)
    aliases = [Path(name).name, *(_coco_files(number) if number.isdecimal() else [])]
    return folder.find(name, joiner.report, aliases=aliases)


def read_coco_captions(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: str | Path | Collection[str] | None = None,
    language: str | None = None,
    check_images: bool = True,
) -> CaptionDataset:
    """Reads captions in COCO's own form: YJCaptions, STAIR Captions, `captions_val2014.json`.

    The file has `annotations` of `image_id` and `caption`, and may have `images` of `id` and `file_name`. Without a
    file's name an image is looked for where COCO has it, in `train2014/`, `val2014/`, `train2017/`, `val2017/`.

    Args:
        path: the file.
        images: folder with these folders, or of the images; by default the folder of the file.
        languages: languages to keep; all by default.
        split: a text file that names the images to keep, one a line, or their ids; all by default.
        language: language of the file; `ja` for YJCaptions and STAIR.
        check_images: whether to see if the image files are there.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if it is not of this form, its language is not known, or nothing is left.
    """
    if language is None:
        raise ValueError(f"'{path}' does not say its language; language= names it")
    path, joiner = Path(path), RowJoiner(languages)
    folder = ImageFolder(images if images is not None else path.parent, check_images)
    data = read_json(path)
    annotations = _objects(data, "annotations", path)
    listed = _objects(data, "images", path) if "images" in data else []
    names = {str(item.get("id")): item.get("file_name") for item in listed}
    if isinstance(split, (str, os.PathLike)):
        split = image_ids_of_list(Path(split))
    wanted = None if split is None else set(split)
    for place, item in enumerate(annotations):
        image_id = str(item.get("image_id", ""))
        if not image_id.isdecimal() and image_id not in names:
            raise ValueError(f"{path}, annotation {place} has no 'image_id' that names an image")
        if wanted is not None and image_id not in wanted:
            joiner.report.add(OTHER_SPLIT, image_id)
            continue
        caption = {"language": language, "text": item.get("caption")}
        joiner.add(image_id, partial(_find, folder, names.get(image_id), image_id, joiner), [caption])
    return joiner.dataset(path)


def image_ids_of_list(path: str | Path) -> list[str]:
    """Image ids of a text file that names an image a line, in its order."""
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    return list(dict.fromkeys(coco_id(line.split()[0]) for line in lines if line.strip()))


_COCO_CN_SOURCES = {
    "human-written": "imageid.human-written-caption.txt",
    "manually-translated": "imageid.manually-translated-caption.txt",
}


def read_coco_cn(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: str | Path | None = None,
    sources: Sequence[str] = ("human-written",),
    language: str = "zh",
    check_images: bool = True,
) -> CaptionDataset:
    """Reads COCO-CN: lines of an image with a number, as `COCO_val2014_000000391895#0`, a tab and a caption.

    Args:
        path: the folder, with `imageid.human-written-caption.txt` and `coco-cn_SPLIT.txt`; or one file of captions.
        images: folder with `train2014/` and `val2014/`, or of the images; by default the folder of the data.
        languages: languages to keep; all by default.
        split: `train`, `val` or `test`, or a text file that names images; all images by default.
        sources: which captions of a folder: `human-written`, `manually-translated`, or both.
        language: language of the captions.
        check_images: whether to see if the image files are there.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a line is not of this form, with file and line; a source or split is not known; nothing is left.
    """
    path, joiner = Path(path), RowJoiner(languages)
    root = path if path.is_dir() else path.parent
    folder = ImageFolder(images if images is not None else root, check_images)
    unknown = [source for source in sources if source not in _COCO_CN_SOURCES]
    if unknown:
        raise ValueError(f"COCO-CN has no captions '{unknown[0]}', but {', '.join(_COCO_CN_SOURCES)}")
    files = [(source, path / _COCO_CN_SOURCES[source]) for source in sources] if path.is_dir() else [(None, path)]
    wanted = None
    if split is not None:
        listed = Path(split) if Path(split).is_file() else root / f"coco-cn_{split}.txt"
        if not listed.is_file():
            raise ValueError(f"'{root}' has no list of images for the split '{split}' ('{listed.name}')")
        wanted = set(image_ids_of_list(listed))
    for source, file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
            if not line.strip():
                continue
            key, tab, text = line.partition("\t")
            if not tab or not key.strip():
                raise ValueError(f"{file}, line {number} is not an image, a tab and a caption")
            image_id, name = coco_id(key), f"{Path(key.split('#')[0].strip()).stem}.jpg"
            if wanted is not None and image_id not in wanted:
                joiner.report.add(OTHER_SPLIT, key)
                continue
            caption = {"language": language, "text": text.strip(), **({"source": source} if source else {})}
            joiner.add(image_id, partial(_find, folder, name, image_id, joiner), [caption])
    return joiner.dataset(path)
