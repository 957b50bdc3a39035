"""An index in a folder, by LanceDB: written in whole versions, searched without being held in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import lancedb
import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from lancedb.index import BTree, IvfSq

from .index import Condition, Hits, IndexFingerprint, check_ids, check_queries, check_rows, check_scan, parse_where

TABLE = "vectors"
LOCK = "writing.lock"
ARROW_TYPES = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
METRIC: Final = "cosine"

IDS_AT_ONCE = 1000  # in one condition
CLOCK = 0.02  # seconds by which a file system's time may lag behind
ANN_FROM = 20_000  # rows; a smaller index is read in full within milliseconds
EXACT_BELOW = 20_000  # rows that meet a filter: of these none is passed over
RETRAIN_AT = 2  # times the rows that the partitions were made for
RECALL, RECALL_AT, RECALL_QUERIES = 0.99, 10, 200  # what `optimize` looks for, and by how many queries
OLD_VERSIONS = timedelta(hours=1)  # kept so long for those who read them
NPROBES_KEY, TRAINED_KEY = "ccrk:nprobes", "ccrk:trained_rows"


class LanceIndex:
    """See [`VectorIndex`]. `lance://PATH` is a folder with a LanceDB table in it.

    Every change is a new version of the table that appears at once or not at all. Any number of processes may read;
    those that write wait for one another by a lock on a file, which ends with its process. Lance lets writers go on
    side by side, and then the same id can be written twice.
    """

    def __init__(self, uri: str, table: Any):
        metadata = table.schema.metadata or {}
        if b"ccrk:fingerprint" not in metadata:
            raise ValueError(f"'{uri}' holds a Lance table that is no index of this package")
        self.uri, self._path = uri, _path(uri)  # where it is now: the working folder may change
        self.fingerprint = IndexFingerprint.from_json(metadata[b"ccrk:fingerprint"].decode())
        kinds = {kind: name for name, kind in ARROW_TYPES.items()}
        self.columns = {field.name: kinds[field.type] for field in table.schema if field.name not in ("id", "vector")}
        self._open: Any = table

    @classmethod
    def create(cls, uri: str, fingerprint: IndexFingerprint, columns: dict[str, str]) -> LanceIndex:
        """See `create_index`. A folder that holds other files is refused.

        Raises:
            FileExistsError: also if PATH is a file, or a folder with something in it.
        """
        path = _path(uri)
        ours = {f"{TABLE}.lance", LOCK}
        if path.is_dir() and {file.name for file in path.iterdir()} <= ours and _is_half_made(path):
            shutil.rmtree(
                path / f"{TABLE}.lance", ignore_errors=True
            )  # of one killed before there was a first version
            (path / LOCK).unlink(missing_ok=True)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "an index" if (path / f"{TABLE}.lance").is_dir() else "something else"
            raise FileExistsError(f"'{path}' is there already and holds {what}: open it, or choose another path")
        vector = pa.field("vector", pa.list_(pa.float32(), fingerprint.dimension), nullable=False)
        fields = [pa.field("id", pa.string(), nullable=False), vector]
        fields += [pa.field(name, ARROW_TYPES[kind]) for name, kind in columns.items()]
        schema = pa.schema(fields, metadata={"ccrk:fingerprint": fingerprint.to_json()})
        table = _connect(path).create_table(TABLE, schema=schema)
        table.set_unenforced_primary_key("id")  # two writers of one id are then told apart
        return cls(uri, table)

    @classmethod
    def open(cls, uri: str) -> LanceIndex:
        """See `open_index`."""
        path = _existing(uri)
        with _told(uri):
            try:
                table = _connect(path).open_table(TABLE)
            except ValueError as error:
                raise ValueError(f"'{path}' is no index, or was left half made: {error}") from error
            return cls(uri, table)

    @classmethod
    def drop(cls, uri: str) -> None:
        """See `drop_index`."""
        path = _existing(uri)
        _connect(path).drop_table(TABLE)
        shutil.rmtree(path / f"{TABLE}.lance", ignore_errors=True)
        (path / LOCK).unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()

    @property
    def _table(self) -> Any:
        if self._open is None:
            raise ValueError(f"the index '{self.uri}' is closed")
        return self._open

    def upsert(
        self, ids: Sequence[str], vectors: torch.Tensor, metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """See [`VectorIndex.upsert`]."""
        table = self._table
        vectors, rows = check_rows(ids, vectors, metadata, self.fingerprint, self.columns)
        if not ids:
            return
        columns = [
            pa.array(list(ids), pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel()), self.fingerprint.dimension),
            *(pa.array([row[name] for row in rows], ARROW_TYPES[kind]) for name, kind in self.columns.items()),
        ]
        fields = [pa.field("id", pa.string(), nullable=False), pa.field("vector", columns[1].type, nullable=False)]
        fields += [pa.field(name, ARROW_TYPES[kind]) for name, kind in self.columns.items()]
        rows = pa.Table.from_arrays(columns, schema=pa.schema(fields))
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        self._written(lambda: merge.execute(rows))

    def delete(self, ids: Sequence[str]) -> int:
        """See [`VectorIndex.delete`]."""
        check_ids(ids)
        table = self._table
        ids = list(dict.fromkeys(ids))
        parts = [ids[start : start + IDS_AT_ONCE] for start in range(0, len(ids), IDS_AT_ONCE)]
        filters = [_sql([Condition("id", tuple(part))]) for part in parts]
        return sum(self._written(partial(table.delete, sql)).num_deleted_rows for sql in filters)

    def _written(self, write: Callable[[], Any]) -> Any:
        """Does what changes the table, when no other process does; it starts from what is there then."""
        with FileLock(self._path / LOCK):
            begun = time.time()
            try:
                written = write()
            except RuntimeError as error:
                raise OSError(f"the index '{self.uri}' cannot be written: {error}") from error
            _sync(self._path, begun)
            return written

    def search(
        self, vectors: torch.Tensor, k: int, where: Mapping[str, Any] | None = None, exact: bool = False
    ) -> Hits:
        """See [`VectorIndex.search`].

        With an ANN index as many of its partitions are read as `optimize` found to be enough; with a filter more, and
        where it leaves few rows all of these are compared.
        """
        table = self._table
        queries = check_queries(vectors, k, self.fingerprint.dimension)
        sql = _sql(parse_where(where, self.columns))
        with _told(self.uri):
            nprobes = 0 if exact else self._nprobes()
            if nprobes and sql is not None:
                meeting, count = table.count_rows(sql), table.count_rows()
                # their neighbours lie as much farther apart as they are fewer
                nprobes = 0 if meeting < EXACT_BELOW else -(-nprobes * count // meeting)
            return self._search(queries, k, sql, nprobes) if len(queries) else []

    def _search(self, queries: torch.Tensor, k: int, sql: str | None, nprobes: int) -> Hits:
        """Hits of unit vectors; exact if `nprobes` is 0."""
        search = self._table.search(queries.numpy(), vector_column_name="vector").distance_type(METRIC)
        search = search.limit(k).select(["id", "_distance"])
        if sql is not None:
            search = search.where(sql, prefilter=True)
        # the index holds numbers of 8 bits, so twice as many rows as are wanted are compared by the vectors themselves
        search = search.nprobes(nprobes).refine_factor(2) if nprobes else search.bypass_vector_index()
        found = search.to_arrow()
        ids, distances = found["id"].to_pylist(), found["_distance"].to_numpy()
        numbers = found["query_index"].to_numpy() if len(queries) > 1 else np.zeros(len(ids), dtype=np.int32)
        hits = []
        for number in range(len(queries)):
            rows = np.flatnonzero(numbers == number)
            rows = rows[distances[rows].argsort(kind="stable")]
            hits.append(([ids[row] for row in rows], (1 - distances[rows]).tolist()))
        return hits

    def entries(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """See [`VectorIndex.entries`]."""
        found: dict[str, dict[str, Any]] = {}
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), IDS_AT_ONCE):
            for row in self.scan(list(self.columns), {"id": wanted[start : start + IDS_AT_ONCE]}):
                found[row["id"]] = row
        for i in wanted:
            if i not in found:
                raise KeyError(f"the index '{self.uri}' has no row '{i}'")
        return [dict(found[i]) for i in ids]

    def scan(self, columns: Sequence[str] = (), where: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """See [`VectorIndex.scan`]. It sees the version of when it is begun."""
        table = self._table
        check_scan(columns, self.columns)
        sql = _sql(parse_where(where, self.columns))
        search = table.search().select(list(dict.fromkeys(["id", *columns])))
        return _rows(search if sql is None else search.where(sql), self.uri)

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """See [`VectorIndex.count`]."""
        table, sql = self._table, _sql(parse_where(where, self.columns))
        with _told(self.uri):
            return table.count_rows(sql)

    def optimize(self) -> None:
        """See [`VectorIndex.optimize`].

        Merges small files, brings the indexes up to date, removes versions older than an hour. From 20,000 rows on it
        builds an IVF index with vectors of 8 bits, builds it anew when the rows have doubled since, and measures how
        many partitions a search has to read for a recall@10 of 0.99.
        """
        table = self._table
        if not table.count_rows():
            return
        self._written(lambda: table.optimize(cleanup_older_than=OLD_VERSIONS))
        indexed = {column for index in table.list_indices() for column in index.columns}
        if "id" not in indexed:
            self._written(lambda: table.create_index("id", config=BTree()))
        count = table.count_rows()
        if count < ANN_FROM:
            return
        trained = self._setting(TRAINED_KEY)
        if "vector" not in indexed or not trained or not 1 / RETRAIN_AT < count / trained < RETRAIN_AT:
            # one built anew replaces the old one at once, so searches go on in between
            self._written(lambda: table.create_index("vector", config=IvfSq(distance_type=METRIC), replace=True))
            self._set(**{TRAINED_KEY: count})
        self._set(**{NPROBES_KEY: self._enough_probes()})

    def _enough_probes(self) -> int:
        """The fewest partitions, of 1, 2, 4, ..., that give the recall that is wanted.

        Queries are rows, each moved by half its length in a random direction: those of people are not rows either.
        """
        generator = torch.Generator().manual_seed(0)
        rows = torch.stack([row["vector"] for row in islice(_sample(self._table, self.uri), RECALL_QUERIES)])
        noise = torch.nn.functional.normalize(torch.randn(rows.shape, generator=generator), dim=1)
        queries = torch.nn.functional.normalize(torch.nn.functional.normalize(rows, dim=1) + noise / 2, dim=1)
        right = [set(ids) for ids, _ in self._search(queries, RECALL_AT, None, 0)]
        probes = 1
        while True:
            found = self._search(queries, RECALL_AT, None, probes)
            hits = sum(len(wanted & set(ids)) for wanted, (ids, _) in zip(right, found, strict=True))
            if hits >= RECALL * sum(map(len, right)) or probes >= 2**15:
                return probes
            probes *= 2

    def _nprobes(self) -> int:
        return self._setting(NPROBES_KEY)

    def _setting(self, key: str) -> int:
        return int((self._table.schema.field("vector").metadata or {}).get(key.encode(), b"0"))

    def _set(self, **settings: int) -> None:
        metadata = {key: str(value) for key, value in settings.items()}
        self._written(lambda: self._table.update_field_metadata({"path": "vector", "metadata": metadata}))

    def close(self) -> None:
        """See [`VectorIndex.close`]."""
        self._open = None


def _path(uri: str) -> Path:
    scheme, separator, path = uri.partition("://")
    if not separator or not path:
        raise ValueError(f"'{uri}' names no folder: it is lance://PATH, and lance:///PATH from the root")
    return Path(os.path.abspath(path))


def _existing(uri: str) -> Path:
    path = _path(uri)
    if not (path / f"{TABLE}.lance").is_dir() or _is_half_made(path):
        raise FileNotFoundError(f"there is no index in '{path}' (of '{uri}')")
    return path


def _is_half_made(path: Path) -> bool:
    """Whether a table was never finished: no version of it, and no row either, which would be of a damaged one."""
    table = path / f"{TABLE}.lance"
    return not any((table / "_versions").glob("*.manifest")) and not any((table / "data").glob("*"))


def _connect(path: Path) -> Any:
    # every read looks for a newer version: another process may have written one
    return lancedb.connect(path, read_consistency_interval=timedelta(0))


def _sync(path: Path, since: float) -> None:
    """Brings files written since a time to the disk, which Lance leaves to the system: power may fail."""
    for folder, _, names in os.walk(path):
        for name in (".", *names):
            # one that is gone was a passing one, or another writer's clean-up took it
            with contextlib.suppress(FileNotFoundError):
                file = os.path.join(folder, name)
                if os.stat(file).st_mtime >= since - CLOCK:
                    opened = os.open(file, os.O_RDONLY)
                    try:
                        os.fsync(opened)
                    finally:
                        os.close(opened)


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turns Lance's errors into OSError, which names the index."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"the index '{uri}' cannot be read: {error}") from error


def _rows(search: Any, uri: str) -> Iterator[dict[str, Any]]:
    with _told(uri):
        for batch in search.to_batches():
            vectors = None
            if "vector" in batch.schema.names:
                vectors = torch.from_numpy(np.array(batch["vector"].flatten())).view(batch.num_rows, -1)
                batch = batch.drop_columns(["vector"])
            for number, row in enumerate(batch.to_pylist()):
                yield row if vectors is None else {**row, "vector": vectors[number]}


def _sample(table: Any, uri: str) -> Iterator[dict[str, Any]]:
    """Rows from all over the table."""
    count = table.count_rows()
    places = sorted({int(place) for place in np.linspace(0, count - 1, RECALL_QUERIES)})
    return _rows(table.take_offsets(places).select(["id", "vector"]), uri)


def _sql(conditions: list[Condition]) -> str | None:
    """A filter in Lance's SQL."""
    return " AND ".join(f"({_one(condition)})" for condition in conditions) or None


def _one(condition: Condition) -> str:
    name = f"`{condition.column}`"  # a name of letters, digits and "_"; unquoted it would be taken in lower case
    if condition.values is None:
        ends = [f"{name} >= {_literal(condition.low)}"] if condition.low is not None else []
        ends += [f"{name} <= {_literal(condition.high)}"] if condition.high is not None else []
        return " AND ".join(ends)
    wanted = [_literal(value) for value in condition.values if value is not None]
    parts = [f"{name} IN ({', '.join(wanted)})"] if wanted else []
    if len(wanted) < len(condition.values):
        parts.append(f"{name} IS NULL")
    return " OR ".join(parts)


def _literal(value: Any) -> str:
    # in a text nothing but the quote has a meaning; LanceDB's own `Expr.to_sql` forgets it after a backslash
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).upper() if isinstance(value, bool) else repr(value)


__all__ = ["LanceIndex"]
