"""Brings an index up to date with a source: embeds what is new or changed, removes what is gone, keeps the rest.

Running it again is how it goes on after it was killed: what was written is there, and is not computed again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ccrk.inference_ccrk import fast_passes

from .fast_encoders import TOWERS
from .gallery_sources import OPENED, GalleryError, GalleryItem, GalleryItems, trusted_time
from .image_states import ImageStateStore
from .index import IndexFingerprint, VectorIndex
from .indexes import create_index, open_index
from .model_fingerprint import embedding_fingerprint

WRITE_ROWS = 512
WRITE_SECONDS = 20.0
"""Rows, and seconds, after which what was computed is written: what a crash can cost at most, beside a batch."""

ROWS_AT_ONCE = 256
"""Ids in one filter of a scan, and in one call that deletes."""

MOST = 0.5
"""Share of an index that an update may remove without being told that it may."""


@dataclass
class UpdateReport:
    """What an update did.

    Attributes:
        added, changed, deleted, unchanged: items by what became of their rows.
        retold: rows of which the metadata alone changed.
        kept: rows whose item is out of reach at the moment (a locked folder, a disk error); they stay as they are.
        embedded: contents that went through the model.
        reused: added or changed rows whose content was known, as of a file that was moved, and was not embedded again.
        states: image states computed for the store.
        rows: in the index afterwards.
        seconds: that it took.
        skipped: (name, cause) of every item that could not be taken.
    """

    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    retold: int = 0
    kept: int = 0
    embedded: int = 0
    reused: int = 0
    states: int = 0
    rows: int = 0
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """All figures as plain values, of the skipped only how many."""
        return {**asdict(self), "skipped": len(self.skipped), "seconds": round(self.seconds, 3)}

    def write_skipped(self, file: str | os.PathLike) -> None:
        """Writes what was skipped, a line of JSON for each: `{"item": ..., "cause": ...}`."""
        lines = [json.dumps({"item": name, "cause": cause}) + "\n" for name, cause in self.skipped]
        Path(file).write_text("".join(lines), encoding="utf-8")


@dataclass(slots=True)
class _Row:
    """What an update remembers of a row: its content, its file, and a hash of the metadata that takes no opening."""

    hash: str
    size: int | None
    changed: int | None
    told: int


@dataclass(slots=True)
class _Job:
    """An item whose content has to go through the model; `outcome` is what becomes of it, "states" if no row."""

    item: GalleryItem
    stamp: tuple[int, int] | None
    digest: str
    outcome: str


@dataclass(slots=True)
class _Ready:
    """A row that only has to be written."""

    id: str
    vector: torch.Tensor
    metadata: dict[str, Any]
    outcome: str
    reused: bool = False


@dataclass(slots=True)
class _Copy:
    """A row that gets its vector from the row `source`."""

    source: str
    metadata: dict[str, Any]
    outcome: str


def open_gallery_index(uri: str, fingerprint: IndexFingerprint, items: GalleryItems) -> VectorIndex:
    """Opens an index for an update, or makes it if there is none.

    Raises:
        ImportError, OSError, ValueError: as `open_index` and `create_index`, or if what is there holds the vectors of
            another model, or is no gallery of this kind.
    """
    try:
        index = open_index(uri)
    except FileNotFoundError:
        return create_index(uri, fingerprint, items.columns)
    try:
        index.fingerprint.require(fingerprint, index.uri)
        check_gallery(index, items)
    except ValueError:
        index.close()
        raise
    return index


def check_gallery(index: VectorIndex, items: GalleryItems) -> None:
    """Refuses an index that cannot take the items.

    Raises:
        ValueError: naming the column that it lacks or has otherwise.
    """
    if gallery_modality(index.columns) != items.modality:
        held = gallery_modality(index.columns)
        what = f"a gallery of {held}s" if held else "no gallery that was made by an update"
        raise ValueError(f"the index '{index.uri}' is {what}, and {items.name} holds {items.modality}s")
    for name, kind in items.columns.items():
        held = index.columns.get(name)
        if held != kind and (held, kind) != ("float64", "int64"):
            is_there = "lacks the column" if held is None else f"has as {held} the column"
            raise ValueError(
                f"the index '{index.uri}' {is_there} '{name}' ({kind}) of {items.name}: choose other columns, or "
                "build a new index"
            )


def gallery_modality(columns: Mapping[str, str]) -> str | None:
    """What an index with these columns is a gallery of: "image", "text", or None if it is none of ours."""
    if "hash" not in columns:
        return None
    return "image" if {"width", "path"} <= set(columns) else "text" if "text" in columns else None


def update_index(
    index: VectorIndex,
    items: GalleryItems,
    pipe: Any,
    *,
    batch_size: int = 32,
    states: ImageStateStore | None = None,
    allow_delete_all: bool = False,
    rehash: bool = False,
    bf16: bool = False,
    progress: bool = False,
) -> UpdateReport:
    """Makes an index hold exactly the items of a source.

    An item whose content (by its hash) is in the index already is not embedded again, whatever its id was; if other
    metadata changed, the row is written anew with its old vector. Rows are written in batches and survive a crash
    from then on; rows of what is gone are removed last.

    Args:
        index: from `open_gallery_index`.
        items: from `gallery_items`.
        pipe: a `CCRkRetrievalPipeline` with the model whose vectors the index holds.
        batch_size: photos or texts in one pass through the model.
        states: where the image states for re-ranking go, too; missing ones of unchanged photos are computed.
        allow_delete_all: remove rows even if that is more than half of the index.
        rehash: read every file. Without it one whose size and time of change (the system's own, not the one that
            programs set) are those of the last update counts as unchanged; a disk that does not keep that time would
            deceive it.
        bf16: compute in bfloat16 (autocast); the fingerprint stays the same.
        progress: show a bar.

    Returns:
        What was done.

    Raises:
        OSError: if the index or the states cannot be written; what was written before stays.
        ValueError: if the model, the source and the index do not fit, or too much would be removed.
    """
    begun = time.monotonic()
    index.fingerprint.require(embedding_fingerprint(pipe.model, pipe.processor), index.uri)
    check_gallery(index, items)
    update = _Update(index, items, pipe, batch_size, states if items.modality == "image" else None)
    if not allow_delete_all:
        update.refuse_before()
    with fast_passes(pipe.model, bf16=bf16, parts=TOWERS[items.modality]):
        for item in tqdm(items, desc="index", unit=items.modality, disable=not progress):
            update.take(item, rehash)
        update.finish(allow_delete_all)
    report = update.report
    report.rows, report.seconds = index.count(), time.monotonic() - begun
    return report


class _Update:
    """One update: items come in one by one, rows go out in batches."""

    def __init__(self, index, items, pipe, batch_size: int, states: ImageStateStore | None):
        self.index, self.items, self.pipe, self.states = index, items, pipe, states
        self.batch_size = batch_size
        self.report = UpdateReport(skipped=list(items.skipped))
        # of what is known without opening; the rest is a function of the content
        self.told = sorted(set(index.columns) - {"hash", "size", "changed", *OPENED})
        stamped = [name for name in ("size", "changed") if name in index.columns]
        self.rows: dict[str, _Row] = {}
        for row in index.scan(["hash", *stamped, *self.told]):
            told = self._told(row)
            self.rows[row["id"]] = _Row(row["hash"], row.get("size"), row.get("changed"), told)
        self.by_hash = {row.hash: i for i, row in self.rows.items()}
        self.present: set[str] = set()  # ids whose row stays or comes
        self.current: set[str] = set()  # hashes of what the source holds
        self.jobs: list[_Job] = []
        self.copies: dict[str, _Copy] = {}  # by id
        self.ready: list[_Ready] = []
        self.fresh: dict[str, tuple[torch.Tensor, dict[str, Any]]] = {}  # hash -> vector and `OPENED` of what is ready
        self.written = time.monotonic()
        self.wrote = False

    def _told(self, row: Mapping[str, Any]) -> int:
        return hash(tuple(row.get(name) for name in self.told))

    # --- what would be removed ---------------------------------------------------------------------------------------

    def refuse_before(self) -> None:
        """Refuses a source that is not that of the index, such as a folder that is not mounted, before it is added.

        Raises:
            ValueError: if most rows are gone, their contents under other names included.
        """
        listed = {item.id for item in self.items}
        missing = [i for i in self.rows if i not in listed and not i.startswith(self.items.unlisted)]
        if len(missing) <= MOST * len(self.rows):
            return
        found = set()
        for item in self.items:
            if item.id not in self.rows:
                with suppress(ValueError):  # one that cannot be read is told when its turn comes
                    item.stamp()
                    found.add(item.digest())
        self._refuse([i for i in missing if self.rows[i].hash not in found])

    def _refuse(self, lost: list[str]) -> None:
        if len(lost) > MOST * len(self.rows):
            raise ValueError(
                f"{len(lost)} of the {len(self.rows)} rows of '{self.index.uri}' are not in {self.items.name} any more"
                f", such as '{lost[0]}', and nothing was deleted: is it the right one, and is it mounted? If they are "
                "to go, allow it (--allow-delete-all)"
            )

    # --- items -------------------------------------------------------------------------------------------------------

    def take(self, item: GalleryItem, rehash: bool) -> None:
        """Finds out what an item needs, and does it once there is a batch of its like."""
        row = self.rows.get(item.id)
        try:
            stamp = item.stamp()
            quick = row is not None and stamp is not None and stamp == (row.size, row.changed) and not rehash
            digest = row.hash if row is not None and quick else item.digest()
        except (GalleryError, ValueError) as error:
            self._skip(item.id, error)
            return
        self.present.add(item.id)
        self.current.add(digest)
        wants_states = self.states is not None and self.states.wants(digest)
        if row is not None and row.hash == digest:
            metadata = self._metadata(item, stamp, digest)
            if row.told == self._told(metadata) and (row.size, row.changed) == (
                metadata.get("size"),
                metadata.get("changed"),
            ):
                self.report.unchanged += 1
            else:
                self._copy(item.id, _Copy(item.id, metadata, "retold"))
            if wants_states:
                self._compute(_Job(item, stamp, digest, "states"))
            return
        outcome = "added" if row is None else "changed"
        if digest in self.fresh:
            vector, opened = self.fresh[digest]
            metadata = {**self._metadata(item, stamp, digest), **opened}
            self.ready.append(_Ready(item.id, vector, metadata, outcome, reused=True))
        elif digest in self.by_hash and not wants_states:
            self._copy(item.id, _Copy(self.by_hash[digest], self._metadata(item, stamp, digest), outcome))
        else:
            self._compute(_Job(item, stamp, digest, outcome))

    def _metadata(self, item: GalleryItem, stamp, digest: str) -> dict[str, Any]:
        metadata = {**item.known, "hash": digest}
        if self.items.modality == "image":
            metadata["size"] = stamp[0] if stamp else None
            metadata["changed"] = trusted_time(stamp)
        return metadata

    def _skip(self, identity: str, error: Exception) -> None:
        self.report.skipped.append((identity, str(error)))
        if identity in self.rows and not getattr(error, "gone", False):
            self.present.add(identity)
            self.current.add(self.rows[identity].hash)
            self.report.kept += 1
        else:
            self.present.discard(identity)

    # --- rows with a vector that is known ----------------------------------------------------------------------------

    def _copy(self, identity: str, copy: _Copy) -> None:
        self.copies[identity] = copy
        if len(self.copies) >= ROWS_AT_ONCE:
            self._write()

    def _fetch_copies(self) -> None:
        """Gets the vectors of rows that take theirs, and what is known from opening, from a row that is there.

        Nothing has been written since they were noted, so those rows are still what they were.
        """
        if not self.copies:
            return
        opened = [name for name in OPENED if name in self.index.columns]
        sources = sorted({copy.source for copy in self.copies.values()})
        found = {row["id"]: row for row in self.index.scan([*opened, "vector"], where={"id": sources})}
        for identity, copy in self.copies.items():
            row = found.get(copy.source)
            if row is None:
                raise ValueError(
                    f"another update of '{self.index.uri}' has removed '{copy.source}' meanwhile: run it again"
                )
            metadata = {**copy.metadata, **{name: row[name] for name in opened}}
            self.ready.append(_Ready(identity, row["vector"], metadata, copy.outcome, copy.outcome != "retold"))
        self.copies = {}

    # --- contents for the model --------------------------------------------------------------------------------------

    def _compute(self, job: _Job) -> None:
        self.jobs.append(job)
        if len({one.digest for one in self.jobs}) >= self.batch_size or len(self.jobs) >= 8 * self.batch_size:
            self._flush_jobs()

    def _flush_jobs(self) -> None:
        """Opens and embeds what has come together, each content once."""
        opened: dict[str, tuple[Any, dict]] = {}
        jobs = []
        for job in self.jobs:
            try:
                found = opened.get(job.digest) or self._open(job.item)
                if job.item.stamp() != job.stamp:
                    raise GalleryError("it was changed while it was read; it is for the next update")
                opened[job.digest] = found
            except GalleryError as error:
                if job.outcome == "states":  # its row is as it should be
                    self.report.skipped.append((job.item.id, f"its image states: {error}"))
                else:
                    self._skip(job.item.id, error)
            else:
                jobs.append(job)
        self.jobs = []
        digests = list(dict.fromkeys(job.digest for job in jobs))
        if not digests:
            return
        vectors, hidden_states = self._encode([opened[digest][0] for digest in digests])
        self.report.embedded += len(digests)
        if self.states is not None:
            self.report.states += self.states.put(digests, hidden_states)
        self.fresh |= {digest: (vectors[row], opened[digest][1]) for row, digest in enumerate(digests)}
        for number, job in enumerate(jobs):
            if job.outcome != "states":
                vector, known = self.fresh[job.digest]
                metadata = {**self._metadata(job.item, job.stamp, job.digest), **known}
                reused = job.digest in {one.digest for one in jobs[:number]}
                self.ready.append(_Ready(job.item.id, vector, metadata, job.outcome, reused))
        if len(self.ready) >= WRITE_ROWS or time.monotonic() - self.written > WRITE_SECONDS:
            self._write()

    def _open(self, item: GalleryItem) -> tuple[Any, dict[str, Any]]:
        content, known = item.open(self.pipe.processor)
        return self.pipe.prepare(self.items.modality, content), known

    def _encode(self, contents: list) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pipe.encode(self.items.modality, contents)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Writes all rows that are known by now."""
        self._fetch_copies()
        written = self._upsert(self.ready) if self.ready else []
        for row in written:
            setattr(self.report, row.outcome, getattr(self.report, row.outcome) + 1)
            self.report.reused += row.reused
            old = self.rows.get(row.id)
            if old is not None and self.by_hash.get(old.hash) == row.id:
                del self.by_hash[old.hash]  # its old content may be nowhere any more
        self.by_hash |= {row.metadata["hash"]: row.id for row in written}
        self.wrote = self.wrote or bool(written)
        self.ready, self.fresh, self.written = [], {}, time.monotonic()

    def _upsert(self, rows: list[_Ready]) -> list[_Ready]:
        """Writes rows but those that the index cannot take, such as a text with a NUL in it; these are skipped."""
        vectors = torch.stack([torch.as_tensor(row.vector) for row in rows])
        try:
            self.index.upsert([row.id for row in rows], vectors, [row.metadata for row in rows])
            return rows
        except ValueError as error:
            if len(rows) == 1:
                self._skip(rows[0].id, error)
                return []
        half = len(rows) // 2
        return self._upsert(rows[:half]) + self._upsert(rows[half:])

    def finish(self, allow_delete_all: bool) -> None:
        """Writes what is left, removes what is gone, and tidies up.

        Raises:
            ValueError: if too much would be removed.
        """
        self._flush_jobs()
        self._write()
        if self.states is not None:
            self.states.flush()
        gone = [i for i in self.rows if i not in self.present and not i.startswith(self.items.unlisted)]
        self.report.kept += sum(i not in self.present for i in self.rows) - len(gone)
        if not allow_delete_all:
            self._refuse([i for i in gone if self.rows[i].hash not in self.current])
        for start in range(0, len(gone), ROWS_AT_ONCE):
            self.report.deleted += self.index.delete(gone[start : start + ROWS_AT_ONCE])
        if self.wrote or gone:
            self.index.optimize()
        if self.states is not None and (self.wrote or gone):
            out_of_reach = {row.hash for i, row in self.rows.items() if i.startswith(self.items.unlisted)}
            self.states.prune(self.current | out_of_reach)


__all__ = ["UpdateReport", "check_gallery", "gallery_modality", "open_gallery_index", "update_index"]
