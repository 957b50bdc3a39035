"""Galleries that are tables: parquet, CSV and JSON Lines files, and data sets of `datasets`.

A row has a photo or a text, an id if there is a column for it, and metadata: whatever else it holds of plain values.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .index import RESERVED, check_columns

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")
ID_COLUMNS = ("image_id", "id")
PHOTO_NAMES = ("image", "path", "file_name", "file")
TEXT_NAMES = ("text", "caption")
BATCH_ROWS = 1024


@dataclass(frozen=True)
class StoredPhoto:
    """A photo inside a data set, read when it is asked for."""

    dataset: Any
    column: str
    row: int

    def read(self) -> bytes:
        """The bytes of its file.

        Raises:
            ValueError: if the row has none.
        """
        value = self.dataset[self.row][self.column]
        data = value.get("bytes") if isinstance(value, dict) else None
        if not data:
            raise ValueError("there is no image")
        return data


@dataclass
class Table:
    """What a table holds.

    Attributes:
        modality: "image" or "text".
        columns: name -> type of its metadata.
        rows: of each row the id (None without a column for it), the photo (a path, or inside the data set) or text,
            and the metadata.
        skipped: (row, cause) of those without a photo or text.
        name: for messages.
    """

    modality: str
    columns: dict[str, str]
    rows: list[tuple[str | None, str | StoredPhoto, dict[str, Any]]]
    skipped: list[tuple[str, str]]
    name: str


def read_table(file: Path, columns: Sequence[str] | None = None) -> Table:
    """Reads a parquet, CSV or JSON Lines file.

    Args:
        file: its suffix says what it is.
        columns: those to keep as metadata; all that hold plain values by default.

    Raises:
        ValueError: if it cannot be read, or has no column of photos or texts.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    try:
        if file.suffix.lower() == ".parquet":
            schema = pa.parquet.read_schema(file)
            photo = next((name for name in PHOTO_NAMES if name in schema.names), None)
            if photo is not None and pa.types.is_struct(schema.field(photo).type):
                from datasets import Dataset  # the photos themselves are inside; it maps them from the disk

                return read_dataset(Dataset.from_parquet(str(file)), columns, f"the table '{file}'")
            table = pa.parquet.read_table(file)
        elif file.suffix.lower() == ".csv":
            texts = dict.fromkeys((*ID_COLUMNS, *PHOTO_NAMES, *TEXT_NAMES), pa.string())  # "007" is no number
            options = pa.csv.ConvertOptions(column_types=texts, null_values=[""], strings_can_be_null=True)
            parsing = pa.csv.ParseOptions(newlines_in_values=True)
            table = pa.csv.read_csv(file, parse_options=parsing, convert_options=options)
        else:
            table = pa.json.read_json(file)
    except pa.ArrowException as error:
        raise ValueError(f"the table '{file}' cannot be read: {error}") from error
    return _read(table.schema, table.to_batches(max_chunksize=BATCH_ROWS), columns, f"the table '{file}'", None)


def read_dataset(dataset: Any, columns: Sequence[str] | None = None, name: str = "the data set") -> Table:
    """Reads a `datasets.Dataset`; photos are not decoded.

    Args:
        dataset: with a column of photos (or their paths) or of texts.
        columns: those to keep as metadata; all that hold plain values by default.
        name: for messages.

    Raises:
        TypeError: if it is a stream.
        ValueError: if it has no column of photos or texts.
    """
    if not hasattr(dataset, "__len__"):
        raise TypeError("the source is a streaming data set, and an update has to list it again: load it in full")
    from datasets import Image

    dataset = dataset.with_format(None)
    for column, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    tables = dataset.with_format("arrow").iter(BATCH_ROWS)
    batches = (batch for table in tables for batch in table.to_batches())
    return _read(dataset.features.arrow_schema, batches, columns, name, dataset)


def _read(schema: Any, batches: Iterable, columns: Sequence[str] | None, name: str, dataset: Any) -> Table:
    """A table of record batches; `dataset` is where photos are read again, if they are inside."""
    names = schema.names
    content = next((one for one in (*PHOTO_NAMES, *TEXT_NAMES) if one in names), None)
    if content is None:
        raise ValueError(
            f"{name} has no column of photos ({', '.join(PHOTO_NAMES)}) or texts ({', '.join(TEXT_NAMES)}); it has: "
            f"{', '.join(names) or 'none'}"
        )
    modality = "image" if content in PHOTO_NAMES else "text"
    identity = next((one for one in ID_COLUMNS if one in names), None)
    own = _own_columns(schema, columns, {content, identity}, name)
    found, skipped = [], []
    needed = [one for one in (content, identity, *own) if one is not None]
    rows = (row for batch in batches for row in _without_bytes(batch.select(needed), content).to_pylist())
    for number, row in enumerate(rows):
        value = row[content]
        key = None if identity is None or row[identity] is None else str(row[identity])
        if isinstance(value, dict):  # of a data set: bytes, a path, or both
            value = StoredPhoto(dataset, content, number) if value["bytes"] else value["path"]
            key = str(number) if key is None else key
        if not isinstance(value, (str, StoredPhoto)) or value == "" or (isinstance(value, str) and not value.strip()):
            skipped.append((key or f"row {number}", f"there is no {content} in row {number}"))
            continue
        found.append((key, value, {column: _plain(row[column], kind) for column, kind in own.items()}))
    return Table(modality, own, found, skipped, name)


def _without_bytes(batch: Any, content: str) -> Any:
    """A record batch in which photos are replaced by whether there are any bytes, so that listing reads none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = batch.column(content)
    if not pa.types.is_struct(column.type):
        return batch
    there = pc.is_valid(pc.struct_field(column, "bytes"))
    marks = pa.StructArray.from_arrays([there, pc.struct_field(column, "path")], names=["bytes", "path"])
    return batch.set_column(batch.schema.get_field_index(content), content, marks)


def _own_columns(schema: Any, wanted: Sequence[str] | None, used: set, name: str) -> dict[str, str]:
    """Name -> type of the columns to keep as metadata.

    Raises:
        ValueError: if one that was asked for is not there or holds no plain values, or cannot be a column's name.
    """
    kinds = {field.name: _kind(field.type) for field in schema}
    for column in wanted or ():
        if kinds.get(column) is None:
            there = "holds no plain values" if column in kinds else f"is not there (there are: {', '.join(kinds)})"
            raise ValueError(f"the column '{column}' of {name} {there}")
    chosen = wanted if wanted is not None else [one for one in kinds if one not in (*used, *ID_COLUMNS)]
    own = {column: kind for column in chosen if (kind := kinds[column]) is not None}
    try:
        return check_columns(own)
    except ValueError as error:
        raise ValueError(
            f"{name}: {error}. Rename it (reserved: {', '.join(RESERVED)}), or choose others by `columns`"
        ) from error


def _kind(kind: Any) -> str | None:
    """The type that an index gives a column of an arrow type; None if it holds no plain values."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind):
        return "int64"
    if types.is_floating(kind):
        return "float64"
    as_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_temporal, types.is_decimal)
    return "string" if any(test(kind) for test in as_text) else None


def _plain(value: Any, kind: str) -> Any:
    """A value of an arrow table as an index takes it; dates become `2024-05-31T18:20:00`, NaN becomes None."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "string" and not isinstance(value, str):
        return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)
    return value


__all__ = ["TABLE_SUFFIXES", "StoredPhoto", "Table", "read_dataset", "read_table"]
