"""An index in Milvus: a collection of a server or cluster, or of a Milvus Lite file in this process."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from .ccr_retrieval import exact_search
from .index import (
    MAX_ID_BYTES,
    Condition,
    Hits,
    IndexFingerprint,
    check_ids,
    check_queries,
    check_rows,
    check_scan,
    parse_where,
    without_secrets,
)

TOKEN = "MILVUS_TOKEN"
DEFAULT_COLLECTION = "ccrk"
PROPERTY = "ccrk.fingerprint"
SET = "_set_"  # prefix of the column that says whether another is not None; no column of ours begins with "_"

TYPES = {
    "string": DataType.VARCHAR,
    "int64": DataType.INT64,
    "float64": DataType.DOUBLE,
    "bool": DataType.BOOL,
}
UNSET = {"string": "", "int64": 0, "float64": 0.0, "bool": False}
MAX_TEXT_BYTES = 65_535

BUILD = {"M": 24, "efConstruction": 300}
EF = 256  # candidates that a search of the graph keeps, or twice k
MAX_K = 16_384  # of Milvus
ROWS_AT_ONCE, BYTES_AT_ONCE, QUERIES_AT_ONCE = 1000, 16 * 2**20, 256
BUILD_SECONDS = 3600

_FILES: dict[str, int] = {}
_FILES_LOCK = threading.Lock()


@dataclass(frozen=True)
class Place:
    """Where an index is: what Milvus' client connects to, the name of the collection, and the URI without secrets."""

    target: str
    collection: str
    uri: str
    file: bool
    token: str = field(default="", repr=False)

    @classmethod
    def of(cls, uri: str) -> Place:
        """Reads a URI.

        Raises:
            ValueError: saying which forms there are.
        """
        rest = uri.partition("://")[2]
        shown = without_secrets(uri)
        name = r"(?:/(?P<collection>[A-Za-z_][A-Za-z0-9_]{0,254}))?"
        server = re.fullmatch(
            rf"(?:(?P<token>[^@/]+)@)?(?P<host>[^@/:]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d+){name}(?P<tls>\?tls)?", rest
        )
        if server:
            protocol = "https" if server["tls"] else "http"
            target = f"{protocol}://{server['host']}:{server['port']}"
            token = server["token"] or os.environ.get(TOKEN, "")
            return cls(target, server["collection"] or DEFAULT_COLLECTION, shown, False, token)
        file = re.fullmatch(rf"(?P<path>.*\.db){name}", rest)
        if file:
            return cls(os.path.abspath(file["path"]), file["collection"] or DEFAULT_COLLECTION, shown, True)
        raise ValueError(
            f"'{shown}' names no index: it is milvus://HOST:PORT or milvus://PATH.db, each with /COLLECTION or "
            f"without ('{DEFAULT_COLLECTION}')"
        )


class MilvusIndex:
    """See [`VectorIndex`]. `milvus://HOST:PORT/COLLECTION` or, in this process, `milvus://PATH.db/COLLECTION`.

    Every column has a second one that says whether it is set, for servers before 2.5 have no null. All reads are
    strongly consistent: they see what was written before them, by whomever.
    """

    def __init__(self, place: Place, client: MilvusClient):
        described = client.describe_collection(place.collection)
        stored = described.get("properties", {}).get(PROPERTY)
        if stored is None:
            raise ValueError(f"'{place.uri}' is a collection of Milvus that is no index of this package")
        self.uri = place.uri
        self.fingerprint = IndexFingerprint.from_json(stored)
        kinds = {kind: name for name, kind in TYPES.items()}
        fields = [(field["name"], field["type"]) for field in described["fields"]]
        self.columns = {n: kinds[kind] for n, kind in fields if n not in ("id", "vector") and not n.startswith(SET)}
        self._place = place
        self._open: MilvusClient | None = client

    @classmethod
    def create(cls, uri: str, fingerprint: IndexFingerprint, columns: dict[str, str]) -> MilvusIndex:
        """See `create_index`."""
        place = Place.of(uri)
        with _connecting(place) as client:
            if client.has_collection(place.collection):
                raise FileExistsError(f"there is an index '{place.uri}' already: open it, or choose another name")
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=fingerprint.dimension)
            for name, kind in columns.items():
                schema.add_field(name, TYPES[kind], **({"max_length": MAX_TEXT_BYTES} if kind == "string" else {}))
                schema.add_field(SET + name, DataType.BOOL)
            index = client.prepare_index_params()
            # Milvus Lite's graph misses rows under a narrow filter, and Lite is for few rows: it compares them all
            kind = "FLAT" if client.get_server_version().startswith("milvus_lite") else "HNSW"
            index.add_index("vector", index_type=kind, metric_type="COSINE", params=BUILD if kind == "HNSW" else {})
            client.create_collection(
                place.collection,
                schema=schema,
                index_params=index,
                consistency_level="Strong",
                properties={PROPERTY: fingerprint.to_json()},
            )
            return cls(place, client)

    @classmethod
    def open(cls, uri: str) -> MilvusIndex:
        """See `open_index`."""
        place = Place.of(uri)
        with _connecting(place, existing=True) as client:
            index = cls(place, client)
            client.load_collection(place.collection)
            return index

    @classmethod
    def drop(cls, uri: str) -> None:
        """See `drop_index`."""
        index = cls.open(uri)
        with index._calls() as (client, name):
            client.drop_collection(name)
        index.close()

    @contextmanager
    def _calls(self) -> Iterator[tuple[MilvusClient, str]]:
        """Client and collection, with Milvus' errors turned into OSError."""
        if self._open is None:
            raise ValueError(f"the index '{self.uri}' is closed")
        with _told(self._place):
            yield self._open, self._place.collection

    def upsert(
        self, ids: Sequence[str], vectors: torch.Tensor, metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """See [`VectorIndex.upsert`].

        Rows go in messages of a few thousand; after an OSError some of them may have been written.
        """
        vectors, rows = check_rows(ids, vectors, metadata, self.fingerprint, self.columns)
        sizes = []
        for i, row in zip(ids, rows, strict=True):
            texts = {name: len(value.encode()) for name, value in row.items() if isinstance(value, str)}
            for name, size in texts.items():
                if size > MAX_TEXT_BYTES:
                    raise ValueError(f"'{name}' of '{i}' is {size} bytes long; Milvus holds {MAX_TEXT_BYTES}")
            sizes.append(4 * vectors.shape[1] + sum(texts.values()) + 2048)
        with self._calls() as (client, name):
            for part in _parts(sizes):
                client.upsert(name, [self._row(ids[n], vectors[n], rows[n]) for n in part])

    def _row(self, i: str, vector: torch.Tensor, metadata: dict[str, Any]) -> dict[str, Any]:
        row = {"id": i, "vector": vector.tolist()}
        for name, kind in self.columns.items():
            row[name] = UNSET[kind] if metadata[name] is None else metadata[name]
            row[SET + name] = metadata[name] is not None
        return row

    def delete(self, ids: Sequence[str]) -> int:
        """See [`VectorIndex.delete`]."""
        check_ids(ids)
        ids, found = list(dict.fromkeys(ids)), 0
        with self._calls() as (client, name):
            for start in range(0, len(ids), ROWS_AT_ONCE):
                part = _expression([Condition("id", tuple(ids[start : start + ROWS_AT_ONCE]))], {})
                found += self._count(part)  # Milvus counts those that are not there as well
                client.delete(name, filter=part)
        return found

    def search(
        self, vectors: torch.Tensor, k: int, where: Mapping[str, Any] | None = None, exact: bool = False
    ) -> Hits:
        """See [`VectorIndex.search`].

        Milvus cannot pass over its index, so an exact search reads all vectors that meet the filter from it and
        compares them here; one for more than 16,384 rows as well.
        """
        queries = check_queries(vectors, k, self.fingerprint.dimension)
        conditions = parse_where(where, self.columns)
        if not len(queries):
            return []
        if exact or k > MAX_K:
            return self._exact(queries, k, conditions)
        hits: Hits = []
        options = {"metric_type": "COSINE", "params": {"ef": max(EF, 2 * k)}}  # FLAT has no use for ef
        expression = _expression(conditions, self.columns)
        with self._calls() as (client, name):
            for some in queries.split(max(1, min(QUERIES_AT_ONCE, 2**18 // k))):
                found = client.search(
                    name,
                    data=some.tolist(),
                    filter=expression,
                    limit=k,
                    output_fields=["id"],
                    search_params=options,
                    consistency_level="Strong",
                )
                hits += [([hit["id"] for hit in row], [float(hit["distance"]) for hit in row]) for row in found]
        return hits

    def _exact(self, queries: torch.Tensor, k: int, conditions: list[Condition]) -> Hits:
        best: Hits = [([], []) for _ in queries]
        for page in self._pages(["vector"], conditions):
            vectors = torch.nn.functional.normalize(torch.tensor([row["vector"] for row in page]), dim=1)
            scores, places = exact_search(vectors, queries, k)
            for number, (new, columns) in enumerate(zip(scores.tolist(), places.tolist(), strict=True)):
                ids, old = best[number]
                both = [*zip(old, ids, strict=True), *zip(new, (page[c]["id"] for c in columns), strict=True)]
                both.sort(key=lambda pair: -pair[0])
                best[number] = [i for _, i in both[:k]], [score for score, _ in both[:k]]
        return best

    def entries(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """See [`VectorIndex.entries`]."""
        found: dict[str, dict[str, Any]] = {}
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            part = _expression([Condition("id", tuple(wanted[start : start + ROWS_AT_ONCE]))], {})
            with self._calls() as (client, name):
                fields = ["id", *self.columns, *(SET + column for column in self.columns)]
                rows = client.query(name, filter=part, output_fields=fields, consistency_level="Strong")
            found.update({row["id"]: self._entry(row, list(self.columns)) for row in rows})
        for i in wanted:
            if i not in found:
                raise KeyError(f"the index '{self.uri}' has no row '{i}'")
        return [dict(found[i]) for i in ids]

    def scan(self, columns: Sequence[str] = (), where: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """See [`VectorIndex.scan`]. In the order of ids; rows that are written meanwhile may be among them."""
        check_scan(columns, self.columns)
        wanted = [name for name in dict.fromkeys(columns) if name != "id"]
        return self._scan(wanted, parse_where(where, self.columns))

    def _scan(self, wanted: list[str], conditions: list[Condition]) -> Iterator[dict[str, Any]]:
        fields = wanted + [SET + name for name in wanted if name != "vector"]
        for page in self._pages(fields, conditions):
            for row in page:
                yield self._entry(row, wanted)

    def _entry(self, row: Mapping[str, Any], wanted: list[str]) -> dict[str, Any]:
        """A row as Milvus has it, with None where a column is not set."""
        entry = {"id": row["id"]}
        for name in wanted:
            if name == "vector":
                entry[name] = torch.tensor(row[name], dtype=torch.float32)
            else:
                entry[name] = row[name] if row[SET + name] else None
        return entry

    def _pages(self, fields: list[str], conditions: list[Condition]) -> Iterator[list[dict[str, Any]]]:
        """Rows in the order of ids, up to a thousand at a time. The client's own iterator does not quote ids."""
        expression, last = _expression(conditions, self.columns), None
        while True:
            parts = [] if last is None else [f"id > {_literal(last)}"]
            parts += [f"({expression})"] if expression else []
            with self._calls() as (client, name):
                page = client.query(
                    name,
                    filter=" and ".join(parts) or 'id != ""',
                    output_fields=["id", *fields],
                    limit=ROWS_AT_ONCE,
                    consistency_level="Strong",
                    iterator="True",
                    reduce_stop_for_best="True",  # none is passed over: a page ends where one segment's rows end
                )
            if not page:
                return
            yield list(page)
            last = page[-1]["id"]

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """See [`VectorIndex.count`]."""
        return self._count(_expression(parse_where(where, self.columns), self.columns))

    def _count(self, expression: str) -> int:
        with self._calls() as (client, name):
            found = client.query(name, filter=expression, output_fields=["count(*)"], consistency_level="Strong")
        return int(found[0]["count(*)"])

    def optimize(self) -> None:
        """See [`VectorIndex.optimize`].

        Seals what was written (flush), merges small segments, waits until every segment has its graph, and loads them
        anew: before that a server may answer from some of them, and nothing tells.

        Raises:
            TimeoutError: if the graphs are not there after an hour.
        """
        with self._calls() as (client, name):
            client.flush(name)
            job = client.compact(name)
            end = time.monotonic() + BUILD_SECONDS
            while not self._place.file and client.get_compaction_state(job) == "Executing":
                _wait(end, self.uri)
            while client.describe_index(name, "vector").get("pending_index_rows", 0):
                _wait(end, self.uri)
            client.release_collection(name)
            client.load_collection(name)

    def close(self) -> None:
        """See [`VectorIndex.close`]. The last handle on a Milvus Lite file lets other processes have it."""
        client, self._open = self._open, None
        if client is not None:
            _disconnect(self._place, client)


def _wait(end: float, uri: str) -> None:
    if time.monotonic() > end:
        raise TimeoutError(f"the index '{uri}' is not built after {BUILD_SECONDS} seconds; Milvus goes on building")
    time.sleep(0.2)


@contextmanager
def _told(place: Place) -> Iterator[None]:
    """Turns Milvus' errors into OSError, which names the index."""
    try:
        yield
    except MilvusException as error:
        raise OSError(f"the index '{place.uri}': {error.message}") from error


@contextmanager
def _connecting(place: Place, existing: bool = False) -> Iterator[MilvusClient]:
    """A client that is closed again if what is done with it fails."""
    path = Path(place.target)
    missing = f"there is no index '{place.uri}'"
    if place.file and existing and not path.exists():
        raise FileNotFoundError(f"{missing}: there is no '{path}'")
    if place.file and not path.parent.is_dir():
        raise FileNotFoundError(f"'{place.uri}' cannot be made: there is no folder '{path.parent}'")
    with _told(place):
        client = _connect(place)
        try:
            if existing and not client.has_collection(place.collection):
                raise FileNotFoundError(f"{missing}: '{path if place.file else place.target}' has no such collection")
            yield client
        except BaseException:
            _disconnect(place, client)
            raise


def _connect(place: Place) -> MilvusClient:
    if not place.file:
        return MilvusClient(place.target, token=place.token, timeout=10)
    with _FILES_LOCK:
        try:
            client = MilvusClient(place.target)
        except MilvusException as error:
            if "Open local milvus failed" not in error.message:
                raise
            message = f"'{place.target}' cannot be opened; another process may have it open, which a file cannot have"
            raise OSError(f"{message}. A server can: milvus-lite server --data-dir {place.target}") from error
        _FILES[place.target] = _FILES.get(place.target, 0) + 1
        return client


def _disconnect(place: Place, client: MilvusClient) -> None:
    client.close()
    if not place.file:
        return
    from milvus_lite.server_manager import server_manager_instance

    with _FILES_LOCK:
        _FILES[place.target] -= 1
        if not _FILES[place.target]:
            server_manager_instance.release_server(place.target)


def _parts(sizes: list[int]) -> Iterator[list[int]]:
    """Numbers of rows, as many together as go into one message."""
    part: list[int] = []
    total = 0
    for number, size in enumerate(sizes):
        if part and total + size > BYTES_AT_ONCE:
            yield part
            part, total = [], 0
        part.append(number)
        total += size
    if part:
        yield part


def _expression(conditions: list[Condition], columns: Mapping[str, str]) -> str:
    """A filter in Milvus' language; "" for none."""
    return " and ".join(f"({_one(condition, columns)})" for condition in conditions)


def _one(condition: Condition, columns: Mapping[str, str]) -> str:
    name, parts = condition.column, []
    if condition.values is None:
        parts += [f"{name} >= {_literal(condition.low)}"] if condition.low is not None else []
        parts += [f"{name} <= {_literal(condition.high)}"] if condition.high is not None else []
        return " and ".join(parts + ([f"{SET}{name} == true"] if name in columns else []))
    wanted = [value for value in condition.values if value is not None]
    if wanted:
        one_of = f"{name} in [{', '.join(map(_literal, wanted))}]"
        if isinstance(wanted[0], bool):
            one_of = " or ".join(f"{name} == {_literal(value)}" for value in wanted)
        parts.append(f"(({one_of}) and {SET}{name} == true)" if name in columns else one_of)
    if len(wanted) < len(condition.values):
        parts.append(f"{SET}{name} == false" if name in columns else 'id == ""')
    return " or ".join(parts)


def _literal(value: Any) -> str:
    """A value as Milvus' parsers, the server's and the file's, both read it."""
    if isinstance(value, str):
        named = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
        return '"' + "".join(named.get(character, character) for character in value) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


__all__ = ["MilvusIndex"]
