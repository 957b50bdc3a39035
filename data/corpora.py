"""One front door to every corpus: `read_corpus` for what fits into memory as texts, `stream_corpus` for what does not.

Rows are in one schema, see `ccrk.data.rows`; images are never opened here.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ccrk.data.benchmark_corpora import read_multi30k, read_wit, read_xflickrco
from ccrk.data.caption_files import iter_captions, iter_pretraining, read_captions, read_pretraining
from ccrk.data.coco_corpora import read_coco_captions, read_coco_cn, read_karpathy
from ccrk.data.names import list_files
from ccrk.data.rows import CaptionDataset, first_record, read_json
from ccrk.data.streams import CaptionStream
from ccrk.data.tables import read_table
from ccrk.data.web_tars import iter_tar, read_tars


def _read_hub(
    source: Any,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    language: str | None = None,
    columns: Mapping[str, str] | None = None,
    check_images: bool = True,
) -> CaptionDataset:
    from ccrk.data.hub_datasets import load_hub_dataset, read_hub_dataset
    from ccrk.data.references import ImageFolder

    name = str(source) if isinstance(source, (str, os.PathLike)) else "the data set"
    dataset = load_hub_dataset(os.fspath(source), split) if isinstance(source, (str, os.PathLike)) else source
    if not hasattr(dataset, "select_columns") or not hasattr(dataset, "__len__"):
        raise ValueError(f"a {type(dataset).__name__} cannot be indexed; stream_corpus reads it")
    folder = ImageFolder(images, check_images) if images is not None else None
    options: dict[str, Any] = {"languages": languages, "language": language, "columns": columns, "folder": folder}
    return read_hub_dataset(dataset, name=name, **options)


def _japanese(path: str | Path, *, language: str = "ja", **options: Any) -> CaptionDataset:
    return read_coco_captions(path, language=language, **options)


READERS: dict[str, Callable[..., CaptionDataset]] = {
    "ccrk": read_captions,
    "xflickrco": read_xflickrco,
    "wit": read_wit,
    "multi30k": read_multi30k,
    "karpathy": read_karpathy,
    "coco": read_coco_captions,
    "yjcaptions": _japanese,
    "stair": _japanese,
    "coco-cn": read_coco_cn,
    "pretraining": read_pretraining,
    "csv": read_table,
    "webdataset": read_tars,
    "datasets": _read_hub,
}
SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tar", ".tsv", ".gz", ".txt")
"""How files of captions end; a name that ends so is not taken for one of the Hub."""
STREAMS = ("ccrk", "pretraining", "webdataset", "datasets")


def read_corpus(
    source: Any,
    *,
    format: str | None = None,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: Any = None,
    **options: Any,
) -> CaptionDataset:
    """Reads a corpus into rows of images with captions; images stay where they are.

    Args:
        source: a file or a folder; for `webdataset` also a pattern or a list; for `datasets` a name on the Hub, a
            folder of `save_to_disk`, or a `datasets.Dataset`.
        format: `ccrk`, `xflickrco`, `wit`, `multi30k`, `karpathy`, `coco`, `yjcaptions`, `stair`, `coco-cn`,
            `pretraining`, `csv` (also TSV, JSON Lines and Parquet), `webdataset` or `datasets`. Without it the format
            is seen from the files, where that is safe.
        images: folder of the images.
        languages: languages to keep; all by default.
        split: which part of a corpus that has several.
        options: further options of the format's reader in `READERS`: `language`, `columns`, `sources`, `names`,
            `check_images`.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if the format cannot be told or has no such option, files are not of it, or nothing is left.
    """
    format = _known(format or detect_format(source), READERS, "read_corpus")
    given = {"images": images, "languages": languages, "split": split, **options}
    given = {name: value for name, value in given.items() if value is not None}
    reader = read_coco_captions if READERS[format] is _japanese else READERS[format]
    takes = [p.name for p in inspect.signature(reader).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in given:
        if name not in takes:
            raise ValueError(f"the format '{format}' has no option '{name}'; it has {', '.join(takes)}")
    return READERS[format](source, **given)


def _known(format: str, formats: Iterable[str], function: str) -> str:
    if format not in formats:
        raise ValueError(f"{function} knows no format '{format}', but {', '.join(formats)}")
    return format


def stream_corpus(
    source: Any,
    *,
    format: str | None = None,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    language: str | None = None,
    columns: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
    check_images: bool = False,
    seed: int = 0,
    shuffle: bool = True,
    buffer_size: int | None = None,
) -> CaptionStream:
    """A corpus as a stream of rows, for one that is too large to be held; each record is a row of its own.

    After the first record of a file, those that are not of the format are counted and left out, so that a cut-off line
    need not end a long training.

    Args:
        source: a file, a folder, a pattern such as `train-{000..012}.tar`, or a list of these; for `datasets` a name
            on the Hub, a folder of `save_to_disk`, a `datasets.Dataset` or `datasets.IterableDataset`.
        format: `ccrk`, `pretraining`, `webdataset` or `datasets`; without it the format is seen from the files.
        images: folder that image paths start from; each file's own folder by default (`ccrk`, `pretraining`).
        languages: languages to keep; all by default.
        split: which split (`datasets`).
        language: language of captions that do not say (`webdataset`, `datasets`).
        columns: role -> column (`datasets`).
        sources: extra captions to take, as `LANGUAGE=NAME` (`ccrk`).
        check_images: whether to see if image files are there while reading; a look at every file, in every process
            and every worker. Without it a missing file shows when the image is opened (`ccrk`, `pretraining`).
        seed: seed of the order.
        shuffle: whether to shuffle.
        buffer_size: rows to draw from; 10,000 by default, and 1,000 for `datasets`, where they hold their images.

    Raises:
        ValueError: if the format cannot be told or streamed or has no such option, or there are no files.
    """
    format = _known(format or detect_format(source), STREAMS, "stream_corpus")
    paths = {"images": images, "check_images": check_images or None}
    own: dict[str, dict[str, Any]] = {
        "ccrk": {**paths, "sources": sources or None},
        "pretraining": paths,
        "webdataset": {"language": language},
        "datasets": {"language": language, "columns": columns, "split": split},
    }
    for option in {name: value for given in own.values() for name, value in given.items() if value is not None}:
        if option not in own[format]:
            known = ", ".join(own[format])
            raise ValueError(f"a stream of the format '{format}' has no option '{option}'; it has {known}")
    order: dict[str, Any] = {"seed": seed, "shuffle": shuffle, "name": f"'{source}'"}
    if buffer_size is not None:
        order["buffer_size"] = buffer_size
    if format == "datasets":
        return _stream_hub(source, split, {"languages": languages, "language": language, "columns": columns}, order)
    suffix = {"ccrk": ".jsonl", "webdataset": ".tar"}.get(format, "")
    parts = partial(list_files, source, suffix)
    parts()  # what is not there is told now
    by_path: dict[str, Any] = {"images": images, "languages": languages, "check_images": check_images}
    read = {
        "ccrk": partial(iter_captions, **by_path, sources=sources, strict=False),
        "pretraining": partial(iter_pretraining, **by_path),
        "webdataset": partial(iter_tar, languages=languages, language=language),
    }[format]
    return CaptionStream(parts, read, **order)


def _stream_hub(source: Any, split: str | None, reading: dict[str, Any], order: dict[str, Any]) -> CaptionStream:
    from ccrk.data.hub_datasets import iter_hub_shard, load_hub_dataset, undecoded_stream

    name = str(source) if isinstance(source, (str, os.PathLike)) else "the data set"
    dataset = source
    if isinstance(source, (str, os.PathLike)):
        dataset = load_hub_dataset(os.fspath(source), split, streaming=True)
    if hasattr(dataset, "to_iterable_dataset"):
        dataset = dataset.to_iterable_dataset()
    read = partial(iter_hub_shard, dataset=undecoded_stream(dataset), name=name, **reading)
    return CaptionStream(
        partial(range, dataset.num_shards), read, **{"buffer_size": 1000, **order, "name": f"'{name}'"}
    )


# --- which format -------------------------------------------------------------------------------------------------


def detect_format(source: Any) -> str:
    """The format of a corpus, seen from its files where that is safe.

    Raises:
        OSError: if there is no such file.
        ValueError: if it cannot be told; with what was seen, and the formats that there are.
    """
    if not isinstance(source, (str, os.PathLike)):
        if hasattr(source, "column_names"):
            return "datasets"
        files = list_files(source)
        return detect_format(files[0])
    path = Path(source)
    if not path.exists():
        pattern = any(character in str(source) for character in "*?{")
        if _is_hub_name(str(source)):
            return "datasets"
        if not pattern:
            raise FileNotFoundError(
                f"there is no file or folder '{source}' (a data set of the Hub is read with format=\"datasets\")"
            )
        return detect_format(list_files(os.fspath(source))[0])
    found = _folder_format(path) if path.is_dir() else _file_format(path)
    if found is None:
        raise ValueError(f"it cannot be seen which format '{source}' has; format= names it: {', '.join(READERS)}")
    return found


def _is_hub_name(source: str) -> bool:
    """Whether what is no local path is named as data sets of the Hub are; not so if half of it is a local folder."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None
    return named and not os.path.exists(source.split("/")[0]) and not source.endswith(SUFFIXES)


def _folder_format(path: Path) -> str | None:
    names = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    if {"state.json", "dataset_dict.json"} & set(names):
        return "datasets"
    if any(name.startswith("imageid.") and name.endswith("-caption.txt") for name in names):
        return "coco-cn"
    texts = {name.removesuffix(".txt") for name in names if name.endswith(".txt")}
    if any(name.endswith(".gz") and name.split(".")[0] in texts for name in names):
        return "multi30k"
    if any(name.endswith(".tar") for name in names):
        return "webdataset"
    inner = next((file for file in sorted(path.glob("*/*.jsonl"))), None)
    files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    if not files and inner is not None:
        return "xflickrco" if _record_format(inner) == "xflickrco" else None
    records = [file for file in files if file.suffix == ".jsonl"]
    if records and _record_format(records[0]) == "wit":
        return "wit"
    record_format = _record_format(files[0]) if files else None
    return "pretraining" if record_format in ("pretraining", "ccrk") and _has_caption_object(files[0]) else None


def _has_caption_object(path: Path) -> bool:
    record = first_record(path)
    return record is not None and isinstance(record.get("caption"), dict)


def _file_format(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".parquet"):
        return "csv"
    if suffix == ".tar":
        return "webdataset"
    if suffix == ".json":
        return _json_format(path)
    return _record_format(path)


def _json_format(path: Path) -> str | None:
    try:
        data = read_json(path)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    images = data.get("images")
    if isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0]:
        return "karpathy"
    if isinstance(data.get("annotations"), list):
        # the form is the same and the language is not in it, so only a name can tell
        name = path.name.lower()
        return "yjcaptions" if "yjcaptions" in name else "stair" if "stair" in name else "coco"
    return None


def _record_format(path: Path) -> str | None:
    """The format of a file of JSON lines, seen from its first record."""
    record = first_record(path)
    if record is None:
        return None
    if "caption_reference_description" in record:
        return "wit"
    if "sentences" in record and "img_path" in record:
        return "xflickrco"
    captions, image = record.get("captions", record.get("caption")), record.get("image")
    if isinstance(captions, dict) or (isinstance(captions, list) and captions and isinstance(captions[0], dict)):
        embedded = isinstance(image, str) and len(image) > 256 and "." not in image[-8:]
        return "pretraining" if embedded else "ccrk"
    return "csv" if isinstance(captions, str) or any(key.startswith("caption_") for key in record) else None
