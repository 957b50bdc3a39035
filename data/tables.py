"""Captions of one's own in a table: CSV, TSV, JSON Lines or Parquet, and what its columns mean."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ccrk.data.references import ImageFolder
from ccrk.data.report import NO_IMAGE, SkipReport
from ccrk.data.rows import CaptionDataset, RowJoiner, caption_items, passing, read_lines

IMAGE_NAMES = ("image", "image_path", "img_path", "filepath", "file_path", "file_name", "filename", "file", "path")
ID_NAMES = ("image_id", "id")
CAPTION_NAMES = ("caption", "text", "sentence")
LANGUAGE_NAMES = ("language", "lang")
ROLES = ("image", "image_id", "captions", "caption", "language")

# caption_de or captions_pt-BR; three letters may be anything (caption_raw), and have to be named
_CAPTION_COLUMN = re.compile(r"captions?_(?P<language>[a-z]{2}(-[A-Za-z0-9]{2,8})*)")
_CAPTION_ROLE = re.compile(r"caption_(?P<language>[a-z]{2,3}(-[A-Za-z0-9]{2,8})*)")


@dataclass(frozen=True)
class ColumnPlan:
    """What the columns of a table mean.

    Attributes:
        image: column of the image.
        image_id: column of its id; without it the image's path is the id.
        captions: column with captions in the schema of a row, or `None`.
        caption: column with one caption, or `None`.
        caption_language: column with the language of that caption, or `None`.
        language: language of that caption where no column has it.
        by_language: language -> column with a caption in it.
    """

    image: str
    image_id: str | None = None
    captions: str | None = None
    caption: str | None = None
    caption_language: str | None = None
    language: str | None = None
    by_language: Mapping[str, str] | None = None

    @property
    def used(self) -> list[str]:
        """All columns that mean something; the others pass through."""
        single = [self.image, self.image_id, self.captions, self.caption, self.caption_language]
        return [column for column in (*single, *(self.by_language or {}).values()) if column is not None]

    def items(self, record: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """The captions of a record."""
        if self.captions is not None:
            return list(caption_items(_as_list(record[self.captions]), where))
        if self.caption is not None:
            language = self.language if self.caption_language is None else record[self.caption_language]
            pairs = [(language, record[self.caption])]
        else:
            pairs = [(language, record[column]) for language, column in (self.by_language or {}).items()]
        found = []
        for language, texts in pairs:
            texts = texts if isinstance(texts, (list, tuple)) else [texts]
            found += [{"language": language, "text": text} for text in texts]
        return found


def _as_list(captions: Any) -> Any:
    """Captions as a list of objects, where `datasets` keeps an object of lists."""
    if isinstance(captions, Mapping) and isinstance(captions.get("language"), list):
        keys = list(captions)
        return [dict(zip(keys, values, strict=True)) for values in zip(*captions.values(), strict=True)]
    return captions


def plan_columns(
    names: Sequence[str], columns: Mapping[str, str] | None, language: str | None, where: Any
) -> ColumnPlan:
    """Finds out what the columns of a table mean, by their names or as told.

    Args:
        names: names of the columns.
        columns: role -> column, for what is named otherwise: `image`, `image_id`, `captions`, `caption`, `language`,
            and `caption_de` and the like. If it names captions, no other columns are taken for captions.
        language: language of all captions, for a table that does not say.
        where: the table, for messages.

    Raises:
        ValueError: if a column is not there, or the image or the captions and their language are not to be found, or
            there is more than one reading.
    """
    roles = dict(columns or {})
    has = f"'{where}' has the columns {', '.join(map(repr, names))}"
    for role, column in roles.items():
        if role not in ROLES and not _CAPTION_ROLE.fullmatch(role):
            raise ValueError(f"columns= names '{role}', but the roles are {', '.join(ROLES)} and caption_LANGUAGE")
        if column not in names:
            raise ValueError(f"{has}, but not '{column}', which columns= names as the {role}")

    def find(role: str, usual: Sequence[str]) -> str | None:
        return roles.get(role) or next((name for name in usual if name in names), None)

    image = find("image", IMAGE_NAMES)
    if image is None:
        raise ValueError(f"{has}, none of which is the image by its name; columns={{'image': ...}} names it")
    plan: dict[str, Any] = {"image": image, "image_id": find("image_id", ID_NAMES)}
    told = {m["language"]: column for role, column in roles.items() if (m := _CAPTION_ROLE.fullmatch(role))}
    if told:
        return ColumnPlan(**plan, by_language=told)
    caption, captions = roles.get("caption"), roles.get("captions")
    if captions is None and caption is None:
        captions = "captions" if "captions" in names else None
        caption = next((name for name in CAPTION_NAMES if name in names), None) if captions is None else None
    if captions is not None:
        return ColumnPlan(**plan, captions=captions)
    wide = {m["language"]: name for name in names if (m := _CAPTION_COLUMN.fullmatch(name))}
    if caption is not None and "caption" not in roles:
        wide.pop("id", None)  # beside a caption, caption_id is its number and not its Indonesian translation
        if wide:
            raise ValueError(f"{has}: '{caption}' and columns by language; columns= must name those to take")
    if caption is None:
        if not wide:
            raise ValueError(
                f"{has}, none of which is a caption by its name; columns={{'caption': ...}} or "
                "columns={'caption_de': ...} names it"
            )
        return ColumnPlan(**plan, by_language=wide)
    column = find("language", LANGUAGE_NAMES) if language is None else None
    if column is None and language is None:
        raise ValueError(
            f"{has}, none of which is the language of '{caption}'; language= names the language of all captions, or "
            "columns={'language': ...} the column"
        )
    return ColumnPlan(**plan, caption=caption, caption_language=column, language=language)


def read_table(
    path: str | Path,
    *,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    language: str | None = None,
    columns: Mapping[str, str] | None = None,
    check_images: bool = True,
) -> CaptionDataset:
    """Reads a table of images and captions: `.csv`, `.tsv`, `.jsonl` or `.parquet`.

    A record has one caption (and its language), or a column for each language such as `caption_de`. Records of the
    same image are joined, by the column `image_id` or `id` or else by the image's path. A CSV may be separated by
    semicolons if its header is. Parquet may hold the images themselves, as bytes or as `datasets` does.

    Args:
        path: the file.
        images: folder that image paths start from and may not leave; the file's own folder by default.
        languages: languages to keep; all by default.
        language: language of the captions, where no column has it.
        columns: role -> column; see `plan_columns`.
        check_images: whether to see if image files are there.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such table, with the line; if it cannot be seen what its columns are; nothing is left.
    """
    path, joiner = Path(path), RowJoiner(languages)
    folder = ImageFolder(images if images is not None else path.parent, check_images)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from ccrk.data.hub_datasets import read_hub_dataset, table_of_parquet  # needs `datasets`, as nothing else here

        options: dict[str, Any] = dict(languages=languages, language=language, columns=columns, folder=folder)
        return read_hub_dataset(table_of_parquet(path), name=str(path), **options)
    if suffix not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise ValueError(f"'{path}' is no table by its name; .csv, .tsv, .jsonl and .parquet are read")
    records = _json_records(path) if suffix in (".jsonl", ".ndjson") else _separated_records(path)
    plan: ColumnPlan | None = None
    for where, record in records:
        if plan is None:
            plan = plan_columns(list(record), columns, language, path)
        lacking = [column for column in plan.used if column not in record]
        if lacking:
            raise ValueError(f"{where} has no '{lacking[0]}'")
        add_record(joiner, plan, record, where, lambda name: folder.find(str(name), joiner.report))
    return joiner.dataset(path)


def add_record(
    joiner: RowJoiner, plan: ColumnPlan, record: Mapping[str, Any], where: str, find: Callable[..., Any]
) -> None:
    """Adds a record to the rows; one without an image is counted.

    Args:
        joiner: takes the captions.
        plan: what the columns mean.
        record: the record.
        where: the record's place, for messages.
        find: gives the reference of an image from what stands in its column, or counts why there is none.
    """
    image = record[plan.image]
    if image is None or image == "":
        joiner.report.add(NO_IMAGE, where)
        return
    image_id = record[plan.image_id] if plan.image_id is not None else image
    if image_id is None or image_id == "":
        image_id = image
    joiner.add(str(image_id), partial(find, image), plan.items(record, where), passing(record, *plan.used))


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in read_lines(path, lambda line: {"where": line.where, "record": line.record}, SkipReport()):
        yield row["where"], row["record"]


def _separated_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = "\t" if path.suffix.lower() == ".tsv" or "\t" in header else ","
            if delimiter == "," and "," not in header and ";" in header:
                delimiter = ";"
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            names = reader.fieldnames or []
            if len(set(names)) < len(names):
                raise ValueError(f"'{path}' has two columns of the same name: {', '.join(names)}")
            for record in reader:
                where = f"{path}, line {reader.line_num}"
                if None in record or None in record.values():
                    cells = sum(v is not None for k, v in record.items() if k) + len(record.get(None) or [])
                    raise ValueError(f"{where} has {cells} cells, but the header has {len(names)}")
                yield where, record
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num} is not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8: {error}") from error
