"""Embeddings of a large corpus as Parquet files: a shard has the rows of a fixed slice of the corpus.

A shard is named by all that it depends on: the model, the ids, the contents, the metadata. So one that is there is
never computed again, and one that is out of date is never mistaken for another. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .gallery_sources import GalleryItem, GalleryItems
from .index import IndexFingerprint

CORPUS_FILE = "corpus.json"
VERSION = 1
KEY = b"ccrk"
SHARD_SIZE = 1000
NAME_DIGITS = 32


@dataclass
class ShardReport:
    """What became of one slice.

    Attributes:
        name: of its shard.
        rows: embedded items in it.
        skipped: (id, cause) of items without an embedding.
        computed: whether it was embedded just now; if not, it was there.
        process: who saw to it, as `HOST:PID`.
    """

    name: str
    rows: int
    skipped: list[tuple[str, str]] = field(default_factory=list)
    computed: bool = False
    process: str = ""


@dataclass(frozen=True)
class Corpus:
    """What a folder of shards holds, once all of them are finished; in `corpus.json`.

    Attributes:
        fingerprint: whose vectors they are.
        modality: "image" or "text".
        columns: name -> type of the metadata.
        source: what was embedded, for messages.
        shards: names, in the order of the corpus.
        rows: in all of them together.
        skipped: (name, cause) of every item that has no row.
    """

    fingerprint: IndexFingerprint
    modality: str
    columns: dict[str, str]
    source: str
    shards: list[str]
    rows: int
    skipped: list[tuple[str, str]]

    def write(self, folder: Path) -> None:
        """Writes the description, whole or not at all."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n"
        write_whole(folder / CORPUS_FILE, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Corpus:
        """The description in a folder.

        Raises:
            FileNotFoundError: if there is none: no run over the folder has come to its end.
            ValueError: if it cannot be read.
        """
        path = Path(folder) / CORPUS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"'{folder}' holds no finished embeddings (no {CORPUS_FILE}): run ccrk embed, which goes on from what "
                "is there"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("version") if isinstance(values, dict) else None
            if version != VERSION:
                raise ValueError(f"it has version {version}, and this package reads {VERSION}")
            values["fingerprint"] = IndexFingerprint(**values["fingerprint"])
            values["skipped"] = [tuple(pair) for pair in values["skipped"]]
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' is no description of embeddings: {error}") from error

    def items(self) -> GalleryItems:
        """An empty list of items with the columns and the modality of the corpus, to make an index by."""
        return GalleryItems(self.modality, self.columns, [], name=self.source)


def slices(items: Sequence[GalleryItem], size: int) -> list[list[GalleryItem]]:
    """Cuts a corpus, by the order of its ids, into slices of `size` items; the last may have fewer.

    Raises:
        ValueError: if the size is below 1.
    """
    if size < 1:
        raise ValueError(f"a shard of {size} items: it has at least 1")
    ordered = sorted(items, key=lambda item: item.id)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def shard_name(fingerprint: IndexFingerprint, settings: str, described: Sequence[tuple[str, str, dict]]) -> str:
    """Names a shard by all that its rows depend on.

    Args:
        fingerprint: of the model; what it is called does not count.
        settings: how it computes.
        described: of each item the id, the hash of its content (or why there is none), and its metadata.
    """
    digest = hashlib.sha256()
    whose = {name: value for name, value in asdict(fingerprint).items() if name != "model"}
    for part in ([VERSION, whose, settings], *described):
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:NAME_DIGITS]


def shard_path(folder: Path, name: str) -> Path:
    """The file of a shard.

    Raises:
        ValueError: if it is no name of a shard.
    """
    if len(name) != NAME_DIGITS or not set(name) <= set("0123456789abcdef"):
        raise ValueError(f"'{name}' is no name of a shard")
    return folder / f"{name}.parquet"


def write_shard(
    path: Path,
    vectors: np.ndarray,
    rows: Sequence[dict[str, Any]],
    columns: dict[str, str],
    skipped: Sequence[tuple[str, str]],
) -> None:
    """Writes a shard, whole or not at all.

    Args:
        path: from `shard_path`.
        vectors: (N, D) float32.
        rows: `id` and metadata of each.
        columns: name -> type of the metadata.
        skipped: (id, cause) of items that have no row.

    Raises:
        OSError: if it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    fields = [pa.field("id", pa.string()), *(pa.field(name, kinds[kind]) for name, kind in columns.items())]
    arrays = [pa.array([row.get(one.name) for row in rows], one.type) for one in fields]
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
    fields.append(pa.field("vector", arrays[-1].type))
    about = {KEY: json.dumps({"version": VERSION, "skipped": list(skipped)}).encode()}
    table = pa.table(arrays, schema=pa.schema(fields, metadata=about))
    # numbers of an embedding do not repeat: dictionaries and compression would cost time and save nothing
    plain = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    write_whole(path, lambda file: pq.write_table(table, file, **plain))


def finished_shard(path: Path) -> tuple[int, list[tuple[str, str]]] | None:
    """Number of rows and skipped items of a shard; None if there is none, or it is no whole file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        metadata = pq.read_metadata(path)
        about = json.loads((metadata.metadata or {})[KEY])
        return metadata.num_rows, [tuple(pair) for pair in about["skipped"]]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def read_shard(path: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Vectors (N, D) of a shard, and `id` and metadata of each row.

    Raises:
        OSError: if it is not there or broken; pages have checksums.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"the shard '{path}' is gone: run ccrk embed again") from None
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"the shard '{path}' is broken ({error}): delete it and run ccrk embed again") from error
    column = table.column("vector").combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    return vectors, table.drop_columns(["vector"]).to_pylist()


def shard_rows(folder: Path, corpus: Corpus) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    """The shards of a corpus, one after the other."""
    for name in corpus.shards:
        yield read_shard(shard_path(folder, name))


def write_whole(path: Path, write: Any) -> None:
    """Has a file written beside its place, brought to the disk, and moved to its place.

    Args:
        path: of the file.
        write: is called with the path to write to.

    Raises:
        OSError: if that fails; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets nobody else read it
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Brings the entry of a renamed file to the disk, where a folder can be opened."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = [
    "Corpus",
    "ShardReport",
    "finished_shard",
    "read_shard",
    "shard_name",
    "shard_path",
    "shard_rows",
    "slices",
    "write_shard",
]
