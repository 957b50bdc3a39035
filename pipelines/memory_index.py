"""An index in the memory of this process, gone with it: exact search, for tests, small galleries and comparisons."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .ccr_retrieval import exact_search
from .index import Hits, IndexFingerprint, check_ids, check_queries, check_rows, check_scan, parse_where

_NAMED: dict[str, _Rows] = {}
_NAMED_LOCK = threading.Lock()


class _Rows:
    """Vectors and metadata by row, in buffers that grow. Handles of one named index share it.

    A deleted row's place is taken by the last one, so that deleting costs no copy of the rest.
    """

    def __init__(self, fingerprint: IndexFingerprint, columns: dict[str, str]):
        self.fingerprint, self.columns = fingerprint, columns
        self.lock = threading.RLock()
        self.ids: list[str] = []
        self.row: dict[str, int] = {}
        self.metadata: dict[str, list[Any]] = {name: [] for name in columns}
        self.buffer = torch.empty(0, fingerprint.dimension)
        # what is searched: the vectors themselves if they are unit vectors, or else their directions
        self.directions = self.buffer if fingerprint.normalised else self.buffer.clone()

    def put(self, ids: Sequence[str], vectors: torch.Tensor, metadata: list[dict[str, Any]]) -> None:
        new = [i for i in ids if i not in self.row]
        self._reserve(len(self.ids) + len(new))
        self.row.update(zip(new, range(len(self.ids), len(self.ids) + len(new)), strict=True))
        self.ids.extend(new)
        for column in self.metadata.values():
            column.extend([None] * len(new))
        rows = [self.row[i] for i in ids]
        for number, row in enumerate(rows):
            for name, column in self.metadata.items():
                column[row] = metadata[number][name]
        self.buffer[rows] = vectors
        if self.directions is not self.buffer:
            self.directions[rows] = torch.nn.functional.normalize(vectors, dim=1)

    def _reserve(self, count: int) -> None:
        if count <= len(self.buffer):
            return
        shared = self.directions is self.buffer
        room = torch.empty(max(count, 2 * len(self.buffer), 1024) - len(self.buffer), self.buffer.shape[1])
        self.buffer = torch.cat([self.buffer, room])
        self.directions = self.buffer if shared else torch.cat([self.directions, room])

    def drop(self, ids: Sequence[str]) -> int:
        gone = sorted({self.row.pop(i) for i in ids if i in self.row}, reverse=True)
        for row in gone:
            last = len(self.ids) - 1
            if row != last:
                self.ids[row] = self.ids[last]
                self.row[self.ids[row]] = row
                for tensor in {id(t): t for t in (self.buffer, self.directions)}.values():
                    tensor[row] = tensor[last]
            self.ids.pop()
            for column in self.metadata.values():
                column[row] = column[last]
                column.pop()
        return len(gone)

    def matching(self, where: Mapping[str, Any] | None) -> list[int] | None:
        """Rows that meet a filter; None stands for all of them."""
        rows: list[int] | None = None
        for condition in parse_where(where, self.columns):
            values = self.ids if condition.column == "id" else self.metadata[condition.column]
            some = range(len(values)) if rows is None else rows
            if condition.values is not None:
                wanted = frozenset(condition.values)
                rows = [row for row in some if values[row] in wanted]
            else:
                rows = [row for row in some if condition.holds(values[row])]
        return rows


class MemoryIndex:
    """See [`VectorIndex`]. Durable as long as the process is.

    `memory:` is a new index each time; `memory:NAME` (or `memory://NAME`) is one that the whole process shares under
    its name, until `drop` is called. All methods may be called from several threads.
    """

    def __init__(self, uri: str, rows: _Rows):
        self.uri, self.fingerprint, self.columns = uri, rows.fingerprint, rows.columns
        self._open: _Rows | None = rows

    @classmethod
    def create(cls, uri: str, fingerprint: IndexFingerprint, columns: dict[str, str]) -> MemoryIndex:
        """See `create_index`."""
        name = _name(uri)
        rows = _Rows(fingerprint, columns)
        with _NAMED_LOCK:
            if name and name in _NAMED:
                raise FileExistsError(f"there is an index '{uri}' already: open it, or choose another name")
            if name:
                _NAMED[name] = rows
        return cls(uri, rows)

    @classmethod
    def open(cls, uri: str) -> MemoryIndex:
        """See `open_index`."""
        with _NAMED_LOCK:
            rows = _NAMED.get(_name(uri))
        if rows is None:
            raise FileNotFoundError(f"there is no index '{uri}' in this process; one in memory goes with its process")
        return cls(uri, rows)

    @classmethod
    def drop(cls, uri: str) -> None:
        """See `drop_index`."""
        with _NAMED_LOCK:
            if _NAMED.pop(_name(uri), None) is None:
                raise FileNotFoundError(f"there is no index '{uri}' in this process")

    @property
    def _rows(self) -> _Rows:
        if self._open is None:
            raise ValueError(f"the index '{self.uri}' is closed")
        return self._open

    def upsert(
        self, ids: Sequence[str], vectors: torch.Tensor, metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """See [`VectorIndex.upsert`]."""
        rows = self._rows
        vectors, checked = check_rows(ids, vectors, metadata, self.fingerprint, self.columns)
        with rows.lock:
            rows.put(ids, vectors, checked)

    def delete(self, ids: Sequence[str]) -> int:
        """See [`VectorIndex.delete`]."""
        check_ids(ids)
        rows = self._rows
        with rows.lock:
            return rows.drop(ids)

    def search(
        self, vectors: torch.Tensor, k: int, where: Mapping[str, Any] | None = None, exact: bool = False
    ) -> Hits:
        """See [`VectorIndex.search`]; it is always exact."""
        rows = self._rows
        queries = check_queries(vectors, k, self.fingerprint.dimension)
        with rows.lock:
            some = rows.matching(where)
            scores, places = exact_search(rows.directions[: len(rows.ids)], queries, k, some)
            names = [[rows.ids[place] for place in line] for line in places.tolist()]
        return list(zip(names, scores.tolist(), strict=True))

    def entries(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """See [`VectorIndex.entries`]."""
        rows = self._rows
        with rows.lock:
            for i in ids:
                if i not in rows.row:
                    raise KeyError(f"the index '{self.uri}' has no row '{i}'")
            return [{"id": i, **{name: rows.metadata[name][rows.row[i]] for name in self.columns}} for i in ids]

    def scan(self, columns: Sequence[str] = (), where: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """See [`VectorIndex.scan`]. It sees the rows that are there when it is called."""
        rows = self._rows
        check_scan(columns, self.columns)
        with rows.lock:
            some = rows.matching(where)
            some = range(len(rows.ids)) if some is None else some
            found = [
                {"id": rows.ids[row], **{c: rows.metadata[c][row] for c in columns if c != "vector"}} for row in some
            ]
            vectors = rows.buffer[list(some)] if "vector" in columns else None
        return (
            entry if vectors is None else {**entry, "vector": vectors[number]} for number, entry in enumerate(found)
        )

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """See [`VectorIndex.count`]."""
        rows = self._rows
        with rows.lock:
            some = rows.matching(where)
            return len(rows.ids) if some is None else len(some)

    def optimize(self) -> None:
        """See [`VectorIndex.optimize`]; there is nothing to do."""
        self._rows  # noqa: B018 - refuses a closed one

    def close(self) -> None:
        """See [`VectorIndex.close`]."""
        self._open = None


def _name(uri: str) -> str:
    """NAME of `memory:NAME`, or of `memory://NAME`, as galleries are written."""
    return uri.partition(":")[2].removeprefix("//")


__all__ = ["MemoryIndex"]
