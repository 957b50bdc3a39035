"""Caption sets as a `datasets.Dataset`, by the names under which the readers know them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccrk.data.corpora import read_corpus
from ccrk.data.to_datasets import to_datasets

if TYPE_CHECKING:
    import datasets

CAPTION_SETS = {
    "ccrk": "lines of JSON with an image and its captions",
    "xflickrco": "xFlickr&CO, as in IGLUE",
    "wit": "the test sets of WIT, as in IGLUE",
    "multi30k": "Multi30K",
    "karpathy": "COCO or Flickr in Karpathy's splits",
    "coco": "COCO's own annotation files",
    "yjcaptions": "YJ Captions, Japanese",
    "stair": "STAIR Captions, Japanese",
    "coco-cn": "COCO-CN, Chinese",
    "pretraining": "the authors' lines of JSON for pre-training",
    "csv": "a table: CSV, TSV, lines of JSON or Parquet",
    "webdataset": "tars of photos and captions",
    "datasets": "a data set of the Hub, or a folder written by `datasets`",
}
"""Name -> what it is; the same names as `format` of `read_corpus` and `--format` of the commands."""


def load_captions(
    name: str,
    *,
    captions: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    split: str | Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    embed: bool = False,
    **options: Any,
) -> datasets.Dataset:
    """Loads a caption set as a `datasets.Dataset`, whatever files it comes in.

    Nothing is downloaded but data sets of the Hub.

    ```python
    load_captions("xflickrco", captions="annotations", images="photos", split="test", languages=["en", "de"])
    load_captions("org/my-captions", split="train")
    ```

    Args:
        name: one of `CAPTION_SETS`, or the name of a data set on the Hub (`organisation/name`).
        captions: file or folder of the captions; that of the images by default.
        images: folder of the images; that of the captions by default.
        split: which part, of a set that has several.
        languages: languages to keep; all by default.
        embed: see `to_datasets`.
        **options: further options of `read_corpus`, such as `language`, `columns` and `check_images`.

    Returns:
        A table of `image`, `image_id`, `captions`, and metadata; see `to_datasets`. How much was left out is in its
        description, `table.info.description`.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if there is no set of that name, files are not of it, or nothing is left.
    """
    if name not in CAPTION_SETS:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or captions is not None:
            near = difflib.get_close_matches(name.lower(), CAPTION_SETS, 1, 0.5)
            meant = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(
                f"there is no caption set '{name}'{meant}; there are {', '.join(CAPTION_SETS)}, and data sets of the "
                "Hub as 'organisation/name'"
            )
        name, captions = "datasets", name
    source = captions if captions is not None else images
    if source is None:
        raise ValueError(f"{name}: neither captions= nor images= says where its files are")
    source = source if isinstance(source, str) else Path(source)
    given = {"images": images, "split": split, "languages": languages, **options}
    dataset = read_corpus(source, format=name, **given)
    named = split if isinstance(split, str) and re.fullmatch(r"\w+(\.\w+)*", split) else "train"  # no slice of one
    table = to_datasets(dataset, embed=embed, split=named)
    table.info.description = dataset.describe()
    return table


__all__ = ["CAPTION_SETS", "load_captions"]
