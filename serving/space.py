"""Folders that the Hub runs as Spaces: a model's search page over photos of one's own, and a metric to try out."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from itertools import islice
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any

from huggingface_hub import SpaceCard, SpaceCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

import ccrk
from ccrk import CCRkImageProcessor, metrics
from ccrk.pipelines.ccr_retrieval import folder_source

from .photos import PhotoError, PhotoReader, inside

SIDE = 640
"""Pixels of the longer side of a photo in a Space."""

LIMIT = 200
"""Photos in a Space, if nothing else is asked for: they are embedded at each start."""

PYTHON = "3.11"
"""What the Space is to run on: the oldest that this package takes, which is newer than the Hub's default."""

MAX_PIXELS = 100_000_000
MODEL_FILES = ("*.json", "*.safetensors", "*.py", "*.model", "*.txt", "*.jinja", "README.md")
NOT_THE_MODEL = ("trainer_state.json", "files.json", "skipped.json")
METRICS = ("mrv", "ccr_recall")
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class BuiltSpace:
    """What was made.

    Attributes:
        folder: where the Space is.
        photos: how many photos are in it.
        skipped: (name, cause) of those that could not be taken.
    """

    folder: Path
    photos: int
    skipped: list[tuple[str, str]]


def build_search_space(
    model: str | os.PathLike,
    out: str | os.PathLike,
    *,
    gallery: str | os.PathLike | None = None,
    dataset: str | None = None,
    split: str = "train",
    column: str = "image",
    limit: int = LIMIT,
    title: str | None = None,
    license: str | None = None,
    revision: str | None = None,
    requirement: str | None = None,
) -> BuiltSpace:
    """Makes a folder that runs as a Space: the search page of `ccrk serve` over a small gallery.

    Photos are copied as new JPEG files of at most 640 pixels, without place, time and whatever else was in them.

    Args:
        model: id on the Hub; or a folder, which is then copied into the Space.
        out: folder of the Space; it must not be there, or be empty.
        gallery: folder of photos.
        dataset: in place of a folder, a data set on the Hub or on the disk that `datasets.load_dataset` opens.
        split: of the data set.
        column: of the data set that holds the photos.
        limit: how many photos are taken at most.
        title: of the Space.
        license: of what is in the Space, by its identifier on the Hub.
        revision: of the model: a branch, a tag or a commit. Without it the Space takes what is newest when it starts.
        requirement: how pip gets this package in the Space; `ccrk[serve]` of this version or a later one by default.

    Raises:
        OSError, ValueError: naming what was given and what is wrong with it.
    """
    if (gallery is None) == (dataset is None):
        raise ValueError("a Space shows the photos of a folder or of a data set: give gallery or dataset, one of them")
    if limit < 1:
        raise ValueError(f"limit is {limit}; it is at least 1")
    if Path(model).is_dir() and revision is not None:
        raise ValueError(f"'{model}' is a folder; a revision ('{revision}') is of a model on the Hub")
    named = str(model) if not Path(model).is_dir() else None
    if named is not None:
        _check_id(named)
    folder = _empty(out)
    try:
        if named is None:
            place = _model_place(Path(model))
            _copy_model(Path(model), folder / place)
        photos = _dataset_photos(str(dataset), split, column) if gallery is None else _folder_photos(Path(gallery))
        count, skipped = _copy_photos(photos, folder / "photos", limit)
        if not count:
            causes = "; ".join(f"{name}: {cause}" for name, cause in skipped[:3])
            raise ValueError(f"not one photo of '{gallery or dataset}' can be shown: {causes or 'there is none'}")
        values = {"model": repr(named), "revision": repr(revision)}
        if named is None:
            values["model"] = f'str(HERE / "{place}")'
        _write(folder / "app.py", _template("space_app.txt", values))
        _write(folder / "requirements.txt", f"{requirement or f'ccrk[serve]>={ccrk.__version__}'}\n")
        shown = title or f"Photo search with {(named or Path(model).resolve().name).rpartition('/')[2]}"
        link = f"[{named}](https://huggingface.co/{named})" if named else f"in `{place}/`"
        words = _template("space_readme.txt", {"title": shown, "count": count, "model": link})
        ids = {"models": [named] if named else None, "datasets": [dataset] if _is_id(dataset) else None}
        _write_card(folder, words, title=shown, emoji="🔎", license=license, **ids)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return BuiltSpace(folder, count, skipped)


def build_metric_space(name: str, out: str | os.PathLike) -> BuiltSpace:
    """Makes a folder that `evaluate.load` takes once it is on the Hub, and that runs as a Space to try the metric out.

    Args:
        name: `mrv` or `ccr_recall`.
        out: folder of the Space; it must not be there, or be empty.

    Raises:
        OSError, ValueError: if there is no such metric, or something in the folder.
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric '{name}'; it is one of {', '.join(METRICS)}")
    folder = _empty(out)
    for file in sorted(Path(metrics.__file__).with_name(name).iterdir()):
        if file.suffix in (".py", ".md", ".txt") and file.name != "__init__.py":
            shutil.copyfile(file, folder / file.name)
    return BuiltSpace(folder, 0, [])


# --- parts --------------------------------------------------------------------------------------------------------


def _empty(out: str | os.PathLike) -> Path:
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' is there already; name a folder for the Space that is new or empty")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_id(name: str | None) -> bool:
    if name is None or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _check_id(name: str) -> None:
    if not _is_id(name):
        raise ValueError(f"'{name}' is neither a folder nor the id of a model on the Hub (org/name)")


def _template(name: str, values: dict[str, Any]) -> str:
    return Template((TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_card(folder: Path, words: str, **fields: Any) -> None:
    data = SpaceCardData(
        sdk="gradio",
        sdk_version=_gradio_version(),
        python_version=PYTHON,
        app_file="app.py",
        colorFrom="blue",
        colorTo="green",
        short_description="Photos found by captions in many languages",
        tags=["ccrk", "image-text-retrieval", "multilingual"],
        **{name: value for name, value in fields.items() if value is not None},
    )
    SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{words}").save(folder / "README.md")


def _gradio_version() -> str:
    """The version that the page was tried with: the one that is installed."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio") from None


def _model_place(source: Path) -> str:
    """The folder of a model in the Space: the page shows its name."""
    name = re.sub(r"[^\w.-]+", "_", source.resolve().name).strip("._")
    return "model" if name in ("", "photos") else name


def _copy_model(source: Path, target: Path) -> None:
    files = sorted({file for pattern in MODEL_FILES for file in source.glob(pattern)})
    files = [file for file in files if file.is_file() and file.name not in NOT_THE_MODEL]
    if not (source / "config.json").exists() or not any(file.suffix == ".safetensors" for file in files):
        raise ValueError(f"'{source}' holds no model: config.json and *.safetensors are what one is saved as")
    target.mkdir()
    for file in files:
        shutil.copyfile(file, target / file.name)


def _folder_photos(folder: Path) -> Iterator[tuple[str, Any]]:
    """Names and files; those that links lead to elsewhere are not the user's choice, and left out."""
    listed = folder_source(folder, open_image=Path)  # none is opened here
    for row in range(listed.size):
        path = Path(listed.name(row))
        yield path.relative_to(folder).as_posix(), inside(path, [folder.resolve()])


def _dataset_photos(name: str, split: str, column: str) -> Iterator[tuple[str, Any]]:
    """Names and opened photos of a data set, read as a stream: the rest of it is not downloaded."""
    import datasets

    rows = datasets.load_dataset(name, split=split, streaming=True)
    columns = rows.column_names or []
    if columns and column not in columns:
        raise ValueError(f"the data set '{name}' has no column '{column}'; it has {', '.join(columns)}")
    for number, row in enumerate(rows):
        yield f"{number:05d}", row[column]


def _copy_photos(photos: Iterable[tuple[str, Any]], folder: Path, limit: int) -> tuple[int, list[tuple[str, str]]]:
    reader = PhotoReader(SimpleNamespace(image_processor=CCRkImageProcessor), MAX_PIXELS, MAX_PIXELS)
    skipped: list[tuple[str, str]] = []

    def copied() -> Iterator[str]:
        for name, photo in photos:
            if photo is None:
                skipped.append((name, "it is no file in this folder"))
                continue
            try:
                data = reader.thumbnail(_readable(photo), SIDE, name)
            except PhotoError as error:
                skipped.append((name, str(error)))
                continue
            path = _free(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            yield name

    return sum(1 for _ in islice(copied(), limit)), skipped


def _readable(photo: Any) -> Any:
    """A photo as the reader takes it: what a data set has opened goes through a file once more."""
    if isinstance(photo, Path):
        return photo
    file = BytesIO()
    try:
        photo.convert("RGB").save(file, "PNG")
    except Exception as error:  # no image, or one whose data is damaged
        raise PhotoError(f"it is no photo: {error}") from error
    return file


def _free(folder: Path, name: str) -> Path:
    """A file name that git and the Hub take, and that no other photo has."""
    parts = [re.sub(r"[^\w.-]+", "_", part).strip("._") or "photo" for part in Path(name).with_suffix("").parts]
    path = folder.joinpath(*parts)
    tried, number = path.with_name(f"{path.name}.jpg"), 2
    while tried.exists():
        tried, number = path.with_name(f"{path.name}-{number}.jpg"), number + 1
    return tried


def read_card(folder: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a Space's README.

    Raises:
        ValueError: if it is not what the Hub needs to run it.
    """
    data = SpaceCard.load(Path(folder) / "README.md").data.to_dict()
    wrong = [name for name in ("title", "sdk", "sdk_version", "app_file") if not isinstance(data.get(name), str)]
    if wrong or not (Path(folder) / data["app_file"]).is_file():
        raise ValueError(f"'{folder}/README.md' names no {wrong[0] if wrong else 'file that is there'} for the Hub")
    return data


__all__ = ["BuiltSpace", "build_metric_space", "build_search_space", "read_card"]
