"""One run of `ccrk index`: a source, a model and the name of an index in, an updated index out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from .gallery_sources import gallery_items
from .gallery_update import UpdateReport, open_gallery_index, update_index
from .image_states import MAX_BYTES, ImageStateStore
from .index import without_secrets
from .index_gallery import states_folder
from .indexes import open_index
from .loading import load_pipeline
from .model_fingerprint import embedding_fingerprint, states_name

GIB = 2**30


@dataclass
class IndexOptions:
    """What `ccrk index` can be told.

    Attributes:
        source: see `gallery_items`.
        model: folder or Hub id.
        to: URI of the index; it is made if there is none.
        columns: a table's own columns to keep; all that hold plain values by default.
        photos: folder that a table's paths are relative to.
        batch_size: photos or texts in one pass.
        bf16: compute in bfloat16.
        threads: of the CPU; torch's choice by default.
        states: keep image states, in this folder; "" for the one beside the index.
        states_gib: room for them.
        rehash: read every file.
        allow_delete_all: remove rows even if that is more than half of the index.
        skipped: file for what could not be taken.
        progress: show a bar.
    """

    source: str
    model: str
    to: str
    columns: Sequence[str] | None = None
    photos: str | None = None
    batch_size: int = 32
    bf16: bool = False
    threads: int | None = None
    states: str | None = None
    states_gib: float = MAX_BYTES / GIB
    rehash: bool = False
    allow_delete_all: bool = False
    skipped: str | None = None
    progress: bool = True


def run_index(options: IndexOptions) -> UpdateReport:
    """Brings an index up to date.

    Raises:
        ImportError, OSError, ValueError: saying what of the options cannot be.
    """
    for name in ("batch_size", "threads", "states_gib"):
        value = getattr(options, name)
        if value is not None and value < (0 if name == "states_gib" else 1):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it is at least 1")
    if options.to.lower().startswith("memory:"):
        raise ValueError(
            f"the index '{options.to}' would be gone with this process; name one on the disk: lance://PATH"
        )
    # what can be wrong with these shows before the model is loaded
    items = gallery_items(options.source, columns=options.columns, photos=options.photos)
    folder = None
    if options.states is not None:
        if items.modality != "image":
            raise ValueError(f"--states keeps what re-ranking needs of photos, and {items.name} holds texts")
        folder = options.states or states_folder(options.to)
        if folder is None:
            raise ValueError(f"name a folder for the states of '{without_secrets(options.to)}': --states FOLDER")
    with suppress(FileNotFoundError):
        open_index(options.to).close()
    pipe = load_pipeline(options.model, threads=options.threads)
    index = open_gallery_index(options.to, embedding_fingerprint(pipe.model, pipe.processor), items)
    try:
        store = None
        if folder is not None:
            store = ImageStateStore(folder, states_name(pipe.model, pipe.processor), int(options.states_gib * GIB))
        report = update_index(
            index,
            items,
            pipe,
            batch_size=options.batch_size,
            states=store,
            allow_delete_all=options.allow_delete_all,
            rehash=options.rehash,
            bf16=options.bf16,
            progress=options.progress and sys.stderr.isatty(),
        )
    finally:
        index.close()
    if options.skipped is not None:
        report.write_skipped(options.skipped)
    return report


__all__ = ["IndexOptions", "run_index"]
