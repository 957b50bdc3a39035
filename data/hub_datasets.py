"""Corpora of the Hugging Face Hub, or saved by `datasets`; their images are not decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccrk.data.names import choose_split
from ccrk.data.references import DatasetCell, ImageFolder
from ccrk.data.report import NO_CAPTIONS, NO_IMAGE, SkipReport
from ccrk.data.rows import CaptionDataset, Row, RowJoiner, kept_captions, passing
from ccrk.data.tables import ColumnPlan, add_record, plan_columns

if TYPE_CHECKING:
    import datasets


def load_hub_dataset(name: str | Path, split: str | None = None, streaming: bool = False) -> Any:
    """A data set by its name on the Hub, or from a folder written by `save_to_disk`.

    Args:
        name: name or folder.
        split: which split; may be left out if there is only one.
        streaming: read it over the network as it is needed, for a name on the Hub.

    Returns:
        A `datasets.Dataset`, or with `streaming` a `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: if there is no such data set, or the Hub cannot be reached.
        ValueError: if the split is not there, or none is named and there are several.
    """
    import datasets

    on_disk = Path(name).is_dir() and any((Path(name) / f).is_file() for f in ("state.json", "dataset_dict.json"))
    if on_disk:
        found = datasets.load_from_disk(str(name))
    else:
        try:
            found = datasets.load_dataset(str(name), split=split, streaming=streaming)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(f"'{name}' is no local file or folder, and on the Hub: {error}") from error
    if isinstance(found, dict):
        found = found[choose_split(found, split, name)]
    if streaming and on_disk:
        return found.to_iterable_dataset()
    return found


def table_of_parquet(path: str | Path) -> datasets.Dataset:
    """A Parquet file as a table on disk.

    Raises:
        ValueError: if the file is no Parquet.
    """
    import datasets
    import pyarrow.parquet

    try:
        pyarrow.parquet.ParquetFile(path).close()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"'{path}' is not Parquet: {error}") from error
    return datasets.Dataset.from_parquet(str(path))


def _is_heavy(feature: Any) -> bool:
    """Whether a column holds images, sounds or bytes, which rows leave where they are."""
    import datasets

    if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
        return True
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and "binary" in feature.dtype


def _undecoded(dataset: Any) -> Any:
    """The data set, with images as `{"bytes", "path"}` and without a format."""
    import datasets

    dataset = dataset.with_format(None)
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


def read_hub_dataset(
    dataset: datasets.Dataset,
    *,
    name: str = "the data set",
    languages: Sequence[str] | None = None,
    language: str | None = None,
    columns: Mapping[str, str] | None = None,
    folder: ImageFolder | None = None,
) -> CaptionDataset:
    """Rows of a `datasets.Dataset`; the texts are read at once, the images stay where they are.

    Columns are those of a table, see `plan_columns`. Records are joined by the image id, or by the image's path where
    that is what the column holds; images that stand in the data set without an id are an image each.

    Args:
        dataset: the data set; an image column of any kind that `datasets` has, bytes, or paths.
        name: what messages call it.
        languages: languages to keep; all by default.
        language: language of the captions, where no column has it.
        columns: role -> column.
        folder: where image paths start from, for a column of paths; without it they are taken as they are.

    Raises:
        ValueError: if it cannot be seen what the columns are, or nothing is left.
    """
    dataset, joiner = _undecoded(dataset), RowJoiner(languages)
    plan = plan_columns(dataset.column_names, columns, language, name)
    embedded = _is_heavy(dataset.features[plan.image])
    light = [column for column, feature in dataset.features.items() if not _is_heavy(feature)]
    images = dataset.select_columns([plan.image])

    def find(place: int, value: Any) -> Any:
        if embedded:
            return DatasetCell(images, place, plan.image)
        return value if folder is None else folder.find(value, joiner.report)

    for place, record in enumerate(dataset.select_columns(light)):
        where = f"{name}, row {place}"
        if embedded:
            # the id must be light: an image that stands in the table is known by its row
            record = {**record, plan.image: str(place)}
        add_record(joiner, plan, record, where, partial(find, place))
    return joiner.dataset(name)


def iter_hub_shard(
    shard: int,
    report: SkipReport,
    *,
    dataset: datasets.IterableDataset,
    name: str = "the data set",
    languages: Sequence[str] | None = None,
    language: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """The rows of one shard of a stream, a row for each record.

    Args:
        shard: which of the data set's shards.
        report: takes the counts.
        dataset: the stream, undecoded.
        name: what messages call it.
        languages: languages to keep; all by default.
        language: language of the captions, where no column has it.
        columns: role -> column.
    """
    part = dataset.shard(num_shards=dataset.num_shards, index=shard)
    place, plan = 0, None
    # `iter` gives all records in every worker; `__iter__` would deal them out to the workers of a DataLoader by itself
    for batch in part.iter(batch_size=16):
        for values in zip(*batch.values(), strict=True):
            record = dict(zip(batch, values, strict=True))
            where = f"{name}, shard {shard}, record {place}"
            place += 1
            if plan is None:
                plan = plan_columns(list(record), columns, language, name)
            row = _stream_row(record, plan, where, languages, report)
            if row is not None:
                yield row


def _stream_row(
    record: dict[str, Any], plan: ColumnPlan, where: str, languages: Sequence[str] | None, report: SkipReport
) -> Row | None:
    image = record[plan.image]
    if image is None or image == "" or (isinstance(image, dict) and not (image.get("bytes") or image.get("path"))):
        report.add(NO_IMAGE, where)
        return None
    image_id = record[plan.image_id] if plan.image_id is not None else None
    if image_id is None:
        image_id = image if isinstance(image, str) else where
    captions = kept_captions(plan.items(record, where), languages, report, str(image_id))
    if not captions:
        report.add(NO_CAPTIONS, str(image_id))
        return None
    heavy = [key for key, value in record.items() if isinstance(value, (bytes, dict))]
    return {"image": image, "image_id": str(image_id), "captions": captions, **passing(record, *plan.used, *heavy)}


def undecoded_stream(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """A stream that gives images as they stand in the files; without known features nothing is decoded anyway."""
    return _undecoded(dataset)
