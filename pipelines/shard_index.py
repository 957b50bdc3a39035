"""Brings the rows of finished shards into an index: one writer, and the second time it has nothing to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from .gallery_update import open_gallery_index
from .index import VectorIndex
from .shards import Corpus, shard_rows

WRITE_ROWS = 1000
LEFT_OUT = ("changed",)
"""Columns that do not make a row another one: when a file was touched."""


def index_shards(
    folder: str | os.PathLike, uri: str, done: Callable[[int], None] | None = None
) -> tuple[VectorIndex, int]:
    """Writes the rows of a folder of shards that an index lacks or has otherwise; makes the index if there is none.

    Rows of other ids stay: `ccrk index` removes what a source no longer has.

    Args:
        folder: of `embed_corpus`.
        uri: of the index.
        done: called with the number of rows of each shard that has been seen to.

    Returns:
        The index, open, and how many rows were written.

    Raises:
        FileNotFoundError: if the folder holds no finished embeddings.
        ImportError, OSError, ValueError: as `open_gallery_index`, and if a shard is broken.
    """
    folder = Path(folder)
    corpus = Corpus.read(folder)
    index = open_gallery_index(uri, corpus.fingerprint, corpus.items())
    try:
        return index, _write(index, folder, corpus, done)
    except BaseException:
        index.close()
        raise


def _write(index: VectorIndex, folder: Path, corpus: Corpus, done: Callable[[int], None] | None) -> int:
    told = sorted(set(index.columns) - set(LEFT_OUT))
    # a hash of each row in the place of the row: of ten million there is room for those
    there = {hash((row["id"], *(row[name] for name in told))) for row in index.scan(told)}
    written = 0
    for vectors, rows in shard_rows(folder, corpus):
        keys = [hash((row["id"], *(row.get(name) for name in told))) for row in rows]
        new = [number for number, key in enumerate(keys) if key not in there]
        for start in range(0, len(new), WRITE_ROWS):
            part = new[start : start + WRITE_ROWS]
            metadata = [{name: value for name, value in rows[number].items() if name != "id"} for number in part]
            index.upsert([rows[number]["id"] for number in part], torch.from_numpy(vectors[part]), metadata)
            written += len(part)
        if done is not None:
            done(len(rows))
    if written:
        index.optimize()
    return written


__all__ = ["index_shards"]
