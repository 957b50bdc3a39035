"""One run of `ccrk embed`: a corpus and a model in, a folder of shards out, and an index if one is asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from .embedding import EmbeddingJob, SliceEmbedder, embed_corpus, embed_local
from .fast_encoders import compile_encoders
from .gallery_sources import gallery_items
from .loading import load_pipeline
from .ray_embedding import embed_ray
from .shard_index import index_shards
from .shards import SHARD_SIZE, ShardReport


@dataclass
class EmbedOptions:
    """What `ccrk embed` can be told.

    Attributes:
        source: see `gallery_items`.
        model: folder or Hub id.
        to: folder of the shards.
        into: URI of an index that gets the rows once all shards are finished.
        shard_size: items in a shard.
        columns: a table's own columns to keep; all that hold plain values by default.
        photos: folder that a table's paths are relative to.
        ray: address of a Ray cluster, "local" for one on this machine, None for this process alone.
        workers: actors on the cluster; as many as there is room for by default.
        batch_size: photos or texts in one pass.
        bf16: compute in bfloat16.
        compile: compile the encoders first; in this process alone.
        threads: of the processor; with a cluster those of each worker, 1 by default.
        progress: show a bar.
    """

    source: Any
    model: str
    to: str
    into: str | None = None
    shard_size: int = SHARD_SIZE
    columns: Sequence[str] | None = None
    photos: str | None = None
    ray: str | None = None
    workers: int | None = None
    batch_size: int = 32
    bf16: bool = False
    compile: bool = False
    threads: int | None = None
    progress: bool = True


@dataclass
class EmbedReport:
    """What a run did.

    Attributes:
        shards: of the corpus.
        computed: of them just now; the others were there.
        rows: embedded items.
        written: rows written into the index.
        index_rows: in the index afterwards; None without one.
        seconds: that it took.
        skipped: (name, cause) of every item without an embedding.
        processes: who computed shards just now -> how many.
    """

    shards: int = 0
    computed: int = 0
    rows: int = 0
    written: int = 0
    index_rows: int | None = None
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    processes: dict[str, int] = field(default_factory=dict)


def run_embed(options: EmbedOptions) -> EmbedReport:
    """Embeds a corpus into shards, and brings them into an index.

    Raises:
        ImportError, OSError, ValueError: saying what of the options cannot be.
    """
    begun = time.monotonic()
    for name in ("shard_size", "batch_size", "threads", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it is at least 1")
    if options.ray is None and options.workers is not None:
        raise ValueError("--workers says how many there are on a cluster: add --ray")
    if options.ray is not None and options.compile:
        raise ValueError("--compile is for one process, and workers of a cluster come and go: leave one of both out")
    # what can be wrong with the source shows before the model is loaded
    items = gallery_items(options.source, columns=options.columns, photos=options.photos)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(options.model, threads=options.threads, device=device)
    job = EmbeddingJob(options.to, items.modality, dict(items.columns), options.batch_size, options.bf16)
    embedder = SliceEmbedder(job, pipe)
    with tqdm(total=len(items), desc="embed", unit=items.modality, disable=not options.progress) as bar:

        def done(report: ShardReport) -> None:
            bar.update(report.rows + len(report.skipped))

        def run(parts: list) -> list[ShardReport]:
            if options.ray is None:
                if options.compile:
                    compile_encoders(pipe.model)
                return embed_local(parts, embedder, done)
            more: dict[str, Any] = {
                "address": options.ray,
                "workers": options.workers,
                "threads": options.threads or 1,
            }
            return embed_ray(parts, job, options.model, embedder.fingerprint, done, **more)

        corpus, reports = embed_corpus(items, job, embedder.fingerprint, options.shard_size, run)
    report = EmbedReport(len(corpus.shards), rows=corpus.rows, skipped=corpus.skipped)
    for one in reports:
        if one.computed:
            report.computed += 1
            report.processes[one.process] = report.processes.get(one.process, 0) + 1
    if options.into is not None:
        with tqdm(total=corpus.rows, desc="index", unit="row", disable=not options.progress) as bar:
            index, report.written = index_shards(options.to, options.into, bar.update)
        report.index_rows = index.count()
        index.close()
    report.seconds = time.monotonic() - begun
    return report


__all__ = ["EmbedOptions", "EmbedReport", "run_embed"]
