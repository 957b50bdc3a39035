"""What an index is: vectors under ids, with metadata, that can be added to, searched with filters, and deleted.

[`VectorIndex`] is the one Protocol that every back end keeps: in memory, on disk, or on a server. Beside it are what
they share: the fingerprint that tells whose vectors an index holds, the types of metadata, and filters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch

COLUMN_TYPES: dict[str, Any] = {"string": str, "int64": int, "float64": float, "bool": bool}
"""Types of metadata by the name that an index gives them; every column may also be None in a row."""

RESERVED = ("id", "vector", "score", "similarity", "match")
"""What no column of metadata may be called: an index has the first two itself, results of a search the others."""

COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
MAX_ID_BYTES = 1024
UNIT_TOLERANCE, UNIT_ERROR = 0.02, 1e-5
"""How far from 1 the length of a unit vector may be; those computed in bfloat16 are, and beyond the second number they
are brought to 1."""

Hits = list[tuple[list[str], list[float]]]
"""For each query the ids found and their cosine similarities, best first."""


@dataclass(frozen=True)
class IndexFingerprint:
    """Whose vectors an index holds. Vectors of two models cannot be compared, so an index takes those of one.

    Attributes:
        model: id or folder of the model, for messages; two names may be of the same model, so it is not compared.
        revision: commit of the Hub, or a hash of the weights.
        dimension: length of the vectors.
        normalised: whether they are unit vectors.
        preprocessing: hash of what turns a photo or a text into the model's input.
    """

    model: str
    revision: str
    dimension: int
    normalised: bool = True
    preprocessing: str = ""

    def differences(self, other: IndexFingerprint) -> list[str]:
        """In words, what differs in another one; empty if vectors of both can be compared."""
        names = [name for name in asdict(self) if name != "model"]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name} {mine!r} and not {theirs!r}" for name, mine, theirs in pairs if mine != theirs]

    def require(self, other: IndexFingerprint, uri: str) -> None:
        """Refuses vectors that are not of this index.

        Args:
            other: fingerprint of what is to be added or searched with.
            uri: of this index, for the message.

        Raises:
            ValueError: saying what differs.
        """
        different = self.differences(other)
        if different:
            raise ValueError(
                f"the index '{uri}' holds vectors of '{self.model}', and those of '{other.model}' cannot be compared "
                f"with them: it has {'; '.join(different)}. Use the model it was built with, or build a new index"
            )

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> IndexFingerprint:
        """The inverse of `to_json`.

        Raises:
            ValueError: if the text is no fingerprint.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"'{text[:100]}' is no fingerprint of an index") from error


@dataclass(frozen=True)
class Condition:
    """One condition of a filter, on one column.

    Attributes:
        column: its name.
        values: what it may be, None among them for "not set"; None where the condition is a range.
        low, high: ends of a range, both included; None for an open end.
    """

    column: str
    values: tuple[Any, ...] | None = None
    low: Any = None
    high: Any = None

    def holds(self, value: Any) -> bool:
        """Whether a value meets the condition; a missing one is in no range."""
        if self.values is not None:
            return value in self.values
        if value is None:
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def parse_where(where: Mapping[str, Any] | None, columns: Mapping[str, str]) -> list[Condition]:
    """Reads a filter.

    Args:
        where: column -> a value (equal to it; None: not set), a list of values (one of them), or
            `{"min": a, "max": b}` (from a to b, both included, either may be left out). All conditions have to hold.
            The id can be named as a column, "id".
        columns: name -> type of the index's metadata, see `COLUMN_TYPES`.

    Returns:
        Conditions whose values have the type of their column.

    Raises:
        ValueError: if a column is unknown, a range is none, or a value is not of the column's type.
    """
    if where is not None and not isinstance(where, Mapping):
        raise ValueError(f"the filter is {where!r}; it names columns and what they are, as in {{'language': 'de'}}")
    types = {"id": "string", **columns}
    conditions = []
    for column, wanted in (where or {}).items():
        if column not in types:
            raise ValueError(f"the filter names a column '{column}', but the index has: {', '.join(sorted(types))}")
        if isinstance(wanted, Mapping):
            if not wanted or set(wanted) - {"min", "max"}:
                raise ValueError(f"the filter of '{column}' is {dict(wanted)!r}; a range has 'min', 'max' or both")
            ends = {name: _typed(column, types[column], value) for name, value in wanted.items()}
            conditions.append(Condition(column, None, ends.get("min"), ends.get("max")))
            continue
        several = isinstance(wanted, (list, tuple, set, frozenset))
        values = tuple(
            None if value is None else _typed(column, types[column], value)
            for value in (wanted if several else [wanted])
        )
        if not values:
            raise ValueError(f"the filter of '{column}' is an empty list, which nothing meets")
        conditions.append(Condition(column, values))
    return conditions


def _typed(column: str, kind: str, value: Any) -> Any:
    """A value as its column has it; an int is a fine float, and nothing else is converted."""
    wanted = COLUMN_TYPES[kind]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"'{column}' is of type {kind}, which {value!r} is not")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"'{column}' has a NUL in {value[:80]!r}, which no back end can hold")
    if isinstance(value, str) and not _is_unicode(value):
        raise ValueError(f"{value[:80]!r} of '{column}' is no valid Unicode text")
    if isinstance(value, int) and abs(value) >= 2**63:  # -2**63 too, which no back end can read in a filter
        raise ValueError(f"'{column}' is of type int64, and {value} is too large for it")
    return value


def check_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Checks names and types of metadata.

    Raises:
        ValueError: naming the column that no index can have.
    """
    for name, kind in columns.items():
        if not isinstance(name, str) or not COLUMN_NAME.fullmatch(name) or name.lower() in RESERVED:
            raise ValueError(
                f"a column cannot be called {name!r}: a name is made of letters, digits and '_', begins with a "
                f"letter, and is none of {', '.join(RESERVED)}"
            )
        if kind not in COLUMN_TYPES:
            raise ValueError(f"column '{name}' is of type {kind!r}; an index has {', '.join(COLUMN_TYPES)}")
    return dict(columns)


def check_rows(
    ids: Sequence[str],
    vectors: torch.Tensor,
    metadata: Sequence[Mapping[str, Any]] | None,
    fingerprint: IndexFingerprint,
    columns: Mapping[str, str],
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Checks rows that are to be added, before anything of them is written.

    Args:
        ids: of the rows, each once.
        vectors: (N, D) array or tensor of finite numbers.
        metadata: of the rows; a column that a row lacks is None.
        fingerprint: of the index: D, and whether they have to be unit vectors.
        columns: of the index.

    Returns:
        Vectors as a contiguous float32 tensor on the CPU, and metadata with every column of the index.

    Raises:
        ValueError: naming the row and what is wrong with it.
    """
    vectors = torch.as_tensor(vectors).detach().to("cpu", torch.float32).contiguous()
    dimension = fingerprint.dimension
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(f"vectors of shape {tuple(vectors.shape)} for an index of {dimension}-dimensional vectors")
    if len(ids) != len(vectors) or (metadata is not None and len(metadata) != len(ids)):
        beside = "" if metadata is None else f" and {len(metadata)} rows of metadata"
        raise ValueError(f"{len(ids)} ids for {len(vectors)} vectors{beside}")
    check_ids(ids)
    if len(set(ids)) < len(ids):
        raise ValueError("the same id stands for two rows of one call; an id has one row")
    broken = (~vectors.isfinite().all(1)).nonzero()[:, 0]
    if len(broken):
        raise ValueError(f"the vector of '{ids[int(broken[0])]}' is not finite (NaN or infinite)")
    vectors = _checked_lengths(ids, vectors, fingerprint.normalised)
    rows = []
    for number, row in enumerate(metadata if metadata is not None else [{}] * len(ids)):
        unknown = set(row) - set(columns)
        if unknown:
            raise ValueError(
                f"'{ids[number]}' has a column '{min(unknown)}' that the index lacks (it has: "
                f"{', '.join(sorted(columns)) or 'none'})"
            )
        rows.append({c: None if row.get(c) is None else _typed(c, kind, row[c]) for c, kind in columns.items()})
    return vectors, rows


def _checked_lengths(ids: Sequence[str], vectors: torch.Tensor, normalised: bool) -> torch.Tensor:
    """Vectors whose lengths an index can take; those that bfloat16 has left nearly 1 long are made 1 long."""
    lengths = vectors.norm(dim=1, keepdim=True)
    off = (lengths - 1).abs()
    wrong = (off > UNIT_TOLERANCE if normalised else lengths == 0)[:, 0]
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        wanted = "1: the index holds unit vectors" if normalised else "above 0: it has no direction"
        raise ValueError(f"the vector of '{ids[first]}' has the length {float(lengths[first]):.4g}, not {wanted}")
    return torch.where(off > UNIT_ERROR, vectors / lengths, vectors) if normalised else vectors


def check_queries(vectors: torch.Tensor, k: int, dimension: int) -> torch.Tensor:
    """Checks what is searched with.

    Args:
        vectors: (N, D) array or tensor.
        k: results for each.
        dimension: D of the index.

    Returns:
        (N, D) float32 unit vectors on the CPU.

    Raises:
        ValueError: if they are of another shape, not finite or zero, or k is no whole number from 1 on.
    """
    vectors = torch.as_tensor(vectors).detach().to("cpu", torch.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(f"queries of shape {tuple(vectors.shape)} for an index of {dimension}-dimensional vectors")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k is {k!r}; it is a whole number from 1 on")
    lengths = vectors.norm(dim=1, keepdim=True)
    wrong = (~(lengths.isfinite() & (lengths > 0))).nonzero()[:, 0]
    if len(wrong):
        raise ValueError(f"query {int(wrong[0])} is zero or not finite (NaN or infinite), so it has no direction")
    return vectors / lengths


def check_scan(columns: Sequence[str], known: Mapping[str, str]) -> None:
    """Checks the columns that a scan asks for.

    Raises:
        ValueError: naming one that the index lacks.
    """
    for name in columns:
        if name not in known and name not in ("id", "vector"):
            raise ValueError(f"the index has no column '{name}' (it has: id, vector, {', '.join(sorted(known))})")


def check_ids(ids: Sequence[str]) -> None:
    """Checks that ids are texts that every back end can hold.

    Raises:
        ValueError: naming the one that is not.
    """
    if isinstance(ids, str):
        raise ValueError("ids are a list of str, not one str")
    for i in ids:
        if not isinstance(i, str) or not i or len(i.encode(errors="surrogatepass")) > MAX_ID_BYTES or "\0" in i:
            raise ValueError(f"{str(i)[:80]!r} cannot be an id: it is a text of 1 to {MAX_ID_BYTES} bytes without NUL")
        if not _is_unicode(i):
            raise ValueError(f"{i[:80]!r} cannot be an id: it is no valid Unicode text")


def _is_unicode(text: str) -> bool:
    """Whether a text can be written in UTF-8, which half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_secrets(uri: str) -> str:
    """A URI to show, with `***` for the name, password or token in it."""
    return re.sub(r"//[^/]*@", "//***@", uri)


@runtime_checkable
class VectorIndex(Protocol):
    """Vectors under ids, with metadata. Also the gallery of a retrieval pipeline, which needs no more than `search`.

    Attributes:
        uri: what opens it again.
        fingerprint: whose vectors it holds.
        columns: name -> type of its metadata, see `COLUMN_TYPES`.
    """

    uri: str
    fingerprint: IndexFingerprint
    columns: dict[str, str]

    def upsert(
        self, ids: Sequence[str], vectors: torch.Tensor, metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Adds rows, or replaces those whose id is there. When it returns, all of them will survive a crash.

        Args:
            ids: each once.
            vectors: (N, D) as the fingerprint says.
            metadata: of the rows; a column that a row lacks is None.

        Raises:
            ValueError: if a row cannot be taken; none of them is then added.
            OSError: if it cannot be written.
        """

    def delete(self, ids: Sequence[str]) -> int:
        """Removes rows for good; ids that are not there are ignored.

        Returns:
            How many were there.
        """

    def search(
        self, vectors: torch.Tensor, k: int, where: Mapping[str, Any] | None = None, exact: bool = False
    ) -> Hits:
        """The rows nearest to each query.

        Args:
            vectors: (N, D).
            k: rows wanted for each; fewer if fewer meet the filter.
            where: filter, see `parse_where`. Applied before the k are chosen.
            exact: compare with every row, whatever structure the index has for doing better.
        """

    def entries(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Metadata of rows with their `id`, in the order asked for.

        Raises:
            KeyError: if an id is not there.
        """

    def scan(self, columns: Sequence[str] = (), where: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """All rows that meet a filter, each a dict of `id` and the columns asked for; "vector" is one of them."""

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many rows there are that meet a filter."""

    def optimize(self) -> None:
        """Makes search fast again after many changes: compacts, and builds or renews what approximate search needs."""

    def close(self) -> None:
        """Lets go of files and connections; the index cannot be used after it."""
