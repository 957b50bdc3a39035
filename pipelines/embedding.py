"""Embeds a corpus into shards: slice by slice in this process, or on many machines by Ray Data.

Whoever computes a slice does the same with it, so shards do not tell where they were computed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccrk.inference_ccrk import fast_passes

from .fast_encoders import TOWERS, length_batches, token_lengths
from .gallery_sources import GalleryError, GalleryItem, GalleryItems, trusted_time
from .index import IndexFingerprint
from .model_fingerprint import embedding_fingerprint
from .shards import Corpus, ShardReport, finished_shard, shard_name, shard_path, slices, write_shard


@dataclass(frozen=True)
class EmbeddingJob:
    """What a process has to know to embed any slice of a corpus; it travels to other machines.

    Attributes:
        folder: where the shards go; every machine has to see it under this path, and so the photos.
        modality: "image" or "text".
        columns: name -> type of the metadata.
        batch_size: photos or texts in one pass.
        bf16: compute in bfloat16.
    """

    folder: str
    modality: str
    columns: dict[str, str]
    batch_size: int = 32
    bf16: bool = False


@dataclass(frozen=True)
class _Seen:
    """An item, the stamp of its file, and the hash of its content; or why there is none."""

    item: GalleryItem
    stamp: tuple[int, int] | None = None
    digest: str | None = None
    cause: str | None = None


class _OutOfReach(Exception):
    """An item that was there a moment ago cannot be read now, or is another one."""

    def __init__(self, item: GalleryItem, cause: str):
        super().__init__(cause)
        self.item, self.cause = item, cause


class SliceEmbedder:
    """Makes the shards of slices; each process that embeds has one, with the model.

    Args:
        job: what to do.
        pipe: a `CCRkRetrievalPipeline` with the model.
        fingerprint: of the model, if it is known already.
        process: what its reports say of who wrote a shard.
    """

    def __init__(self, job: EmbeddingJob, pipe: Any, fingerprint: IndexFingerprint | None = None, process: str = ""):
        self.job, self.pipe = job, pipe
        self.fingerprint = fingerprint or embedding_fingerprint(pipe.model, pipe.processor)
        self.process = process or f"{socket.gethostname()}:{os.getpid()}"
        self.settings = "bfloat16" if job.bf16 else "float32"

    def __call__(self, items: Sequence[GalleryItem]) -> ShardReport:
        """Makes the shard of a slice, unless it is there.

        Args:
            items: of the slice, in the order of their ids.

        Raises:
            OSError: if the shard cannot be written.
            ValueError: if the model gives no numbers.
        """
        causes: dict[str, str] = {}
        while True:
            seen = [self._look(item, causes) for item in items]
            described = [(one.item.id, one.digest or f"no content: {one.cause}", one.item.known) for one in seen]
            name = shard_name(self.fingerprint, self.settings, described)
            path = shard_path(Path(self.job.folder), name)
            there = finished_shard(path)
            if there is not None:
                return ShardReport(name, *there, process=self.process)
            try:
                vectors, rows, skipped = self._embed(seen)
            except _OutOfReach as error:  # so that its shard has another name as soon as it can be read again
                causes[error.item.id] = error.cause
                continue
            write_shard(path, vectors, rows, self.job.columns, skipped)
            return ShardReport(name, len(rows), skipped, computed=True, process=self.process)

    def _look(self, item: GalleryItem, causes: dict[str, str]) -> _Seen:
        if item.id in causes:
            return _Seen(item, cause=causes[item.id])
        try:
            stamp = item.stamp()
            return _Seen(item, stamp, item.digest())
        except (GalleryError, ValueError) as error:
            return _Seen(item, cause=str(error))

    def _embed(self, seen: list[_Seen]) -> tuple[np.ndarray, list[dict[str, Any]], list[tuple[str, str]]]:
        """Vectors and rows of the items that can be opened, in their order, and what cannot be.

        Raises:
            _OutOfReach: if an item is no longer what it was.
        """
        skipped = [(one.item.id, one.cause or "") for one in seen if one.digest is None]
        found: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
        with fast_passes(self.pipe.model, bf16=self.job.bf16, parts=TOWERS[self.job.modality]):
            for batch in self._batches([one for one in seen if one.digest is not None]):
                opened = []
                for one in batch:
                    try:
                        content, known = self._open(one)
                        opened.append((one, self.pipe.prepare(self.job.modality, content), known))
                    except GalleryError as error:
                        skipped.append((one.item.id, str(error)))
                if opened:
                    vectors, _ = self.pipe.encode(self.job.modality, [content for _, content, _ in opened])
                    for (one, _, known), vector in zip(opened, vectors.numpy(), strict=True):
                        found[one.item.id] = vector, {**self._metadata(one), **known}
        rows = [{"id": one.item.id, **found[one.item.id][1]} for one in seen if one.item.id in found]
        empty = np.zeros((0, self.fingerprint.dimension), np.float32)
        vectors = np.stack([found[row["id"]][0] for row in rows]) if rows else empty
        return vectors, rows, sorted(skipped)

    def _batches(self, seen: list[_Seen]) -> Iterator[list[_Seen]]:
        """Photos as they come, texts with those of their length; a function of the slice alone."""
        size = self.job.batch_size
        if self.job.modality == "image":
            yield from (seen[start : start + size] for start in range(0, len(seen), size))
            return
        texts, broken = [], []
        for one in seen:
            try:
                one.item.open(self.pipe.processor)
                texts.append(one)
            except GalleryError:  # is told when its batch is opened
                broken.append(one)
        lengths = token_lengths(self.pipe.processor, [str(one.item.content) for one in texts]) if texts else []
        yield from ([texts[row] for row in rows] for rows in length_batches(lengths, size))
        yield broken

    def _open(self, one: _Seen) -> tuple[Any, dict[str, Any]]:
        """The content that was hashed.

        Raises:
            GalleryError: if that can never be opened.
            _OutOfReach: if it is another one by now, or cannot be read at the moment.
        """
        try:
            content, known = one.item.open(self.pipe.processor)
            if one.item.stamp() != one.stamp and one.item.digest() != one.digest:
                raise _OutOfReach(one.item, "it was changed while it was read; it is for the next run")
        except GalleryError as error:
            if error.gone and self._same(one):
                raise
            raise _OutOfReach(one.item, str(error)) from error
        return content, known

    def _same(self, one: _Seen) -> bool:
        try:
            return one.item.digest() == one.digest
        except GalleryError:
            return False

    def _metadata(self, one: _Seen) -> dict[str, Any]:
        """As an update of an index writes it."""
        metadata = {**one.item.known, "hash": one.digest}
        if self.job.modality == "image":
            metadata["size"] = one.stamp[0] if one.stamp else None
            metadata["changed"] = trusted_time(one.stamp)
        return metadata


def embed_local(
    parts: Sequence[list[GalleryItem]], embedder: SliceEmbedder, done: Callable[[ShardReport], None]
) -> list[ShardReport]:
    """Embeds slices in this process, one after the other.

    Args:
        parts: the slices.
        embedder: with the model.
        done: called after each of them.
    """
    reports = []
    for part in parts:
        reports.append(embedder(part))
        done(reports[-1])
    return reports


def embed_corpus(
    items: GalleryItems,
    job: EmbeddingJob,
    fingerprint: IndexFingerprint,
    shard_size: int,
    run: Callable[[list[list[GalleryItem]]], list[ShardReport]],
) -> tuple[Corpus, list[ShardReport]]:
    """Embeds all that is not embedded yet, and describes the whole.

    Args:
        items: from `gallery_items`.
        job: what to do.
        fingerprint: of the model.
        shard_size: items in a shard.
        run: embeds slices and returns a report for each, in their order.

    Returns:
        What the folder holds now, and the reports.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if the shard size is below 1, or the model gives no numbers.
    """
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    reports = run(slices(items.items, shard_size))
    corpus = Corpus(
        fingerprint=fingerprint,
        modality=items.modality,
        columns=dict(items.columns),
        source=items.name,
        shards=[report.name for report in reports],
        rows=sum(report.rows for report in reports),
        skipped=[*items.skipped, *(pair for report in reports for pair in report.skipped)],
    )
    corpus.write(folder)
    return corpus, reports


__all__ = ["EmbeddingJob", "SliceEmbedder", "embed_corpus", "embed_local"]
