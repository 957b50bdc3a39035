"""Embeds slices of a corpus on a Ray cluster, by Ray Data: a pool of actors, each with the model.

An actor that dies is started anew and its slices are given out again; what it had finished lies in the folder.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from .embedding import EmbeddingJob, SliceEmbedder
from .gallery_sources import GalleryItem
from .index import IndexFingerprint
from .loading import load_pipeline
from .shards import ShardReport

LOCAL = "local"


class RayEmbedder:
    """One actor: loads the model and embeds the slices that it is given, by their numbers.

    Args:
        job: what to do.
        model: folder or Hub id; every machine has to find the same there.
        fingerprint: of the model as the one who gives out the work has it.
        parts: references to the slices.
        threads: of the processor.
        gpu: whether it has one.

    Raises:
        ValueError: if it finds another model.
    """

    def __init__(
        self,
        job: EmbeddingJob,
        model: str,
        fingerprint: IndexFingerprint,
        parts: Sequence[Any],
        threads: int,
        gpu: bool,
    ):
        import ray

        pipe = load_pipeline(model, threads=threads, device="cuda" if gpu else "cpu")
        node = ray.get_runtime_context().get_node_id()
        self.embedder = SliceEmbedder(job, pipe, process=f"{node[:12]}:{os.getpid()}")
        fingerprint.require(self.embedder.fingerprint, job.folder)
        self.parts = parts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embeds slices; `slice` has their numbers, and what became of them comes back as JSON in `report`."""
        import numpy as np
        import ray

        reports = [asdict(self.embedder(ray.get(self.parts[int(number)]))) for number in batch["slice"]]
        return {"slice": batch["slice"], "report": np.array([json.dumps(report) for report in reports], object)}


def embed_ray(
    parts: Sequence[list[GalleryItem]],
    job: EmbeddingJob,
    model: str,
    fingerprint: IndexFingerprint,
    done: Callable[[ShardReport], None],
    *,
    address: str = LOCAL,
    workers: int | None = None,
    threads: int = 1,
) -> list[ShardReport]:
    """Embeds slices on a cluster.

    Args:
        parts: the slices.
        job: what to do.
        model: folder or Hub id, which every machine has to find.
        fingerprint: of the model.
        done: called after each slice.
        address: of the cluster as `ray.init` takes it; "local" starts one on this machine and stops it again. Where
            Ray is connected already, that connection is used.
        workers: actors; as many as the cluster has GPUs, or else as its processors allow.
        threads: processors of an actor.

    Returns:
        A report of each slice, in their order.

    Raises:
        ConnectionError: if there is no cluster at the address.
        ImportError: if Ray is not installed.
        OSError, ValueError: as `SliceEmbedder`, from whichever machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ImportError(f"embedding on a cluster needs '{error.name}': pip install 'ccrk[ray]'") from error
    if not parts:
        return []
    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        limit = gpus or int(ray.cluster_resources().get("CPU", 1)) // threads
        count = min(workers or limit, len(parts))
        if count < 1:
            raise ValueError(f"the cluster has too few processors for one worker of {threads} threads")
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        numbers = ray.data.from_items([{"slice": n} for n in range(len(parts))], override_num_blocks=len(parts))
        kept = [ray.put(part) for part in parts]
        results = numbers.map_batches(
            RayEmbedder,
            fn_constructor_args=(job, model, fingerprint, kept, threads, gpus > 0),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=threads,
            num_gpus=1 if gpus else None,
        )
        return _collect(results, len(parts), done)
    finally:
        if ours:
            ray.shutdown()


def _collect(results: Any, count: int, done: Callable[[ShardReport], None]) -> list[ShardReport]:
    """The reports as they come, and then in the order of the slices.

    Raises:
        OSError, ValueError: what an actor met, in its own words.
    """
    import ray.exceptions

    found: dict[int, ShardReport] = {}
    try:
        for row in results.iter_rows():
            values = json.loads(row["report"])
            report = ShardReport(**{**values, "skipped": [tuple(pair) for pair in values["skipped"]]})
            found[int(row["slice"])] = report
            done(report)
    except ray.exceptions.RayError as error:
        cause = _root(error)
        if isinstance(cause, (OSError, ValueError)) and not isinstance(cause, ray.exceptions.RayError):
            raise type(cause)(*cause.args) from error
        raise
    return [found[number] for number in range(count)]


def _root(error: BaseException) -> BaseException:
    """What was raised first."""
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner


__all__ = ["LOCAL", "RayEmbedder", "embed_ray"]
