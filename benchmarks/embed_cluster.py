"""A corpus embedded by one process and by a Ray cluster of two nodes, both killed in mid-run: what is lost?

    python benchmarks/embed_cluster.py [--texts 4000] [--shard-size 100] [--model FOLDER]

Without `--model` a small random model is made, and the texts are random words of its vocabulary. Four runs over the
same corpus: one process, undisturbed; one process with kill -9 once a quarter of the shards are there, started again;
a cluster of two nodes (two raylets on this machine, a worker on each) with kill -9 of a worker at that point; and the
first again, with nothing left to do. Shards are compared byte by byte. Wall times of two workers on a busy machine say
little; they are given all the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_model(folder: Path) -> list[str]:
    """Saves the tiny model of the tests; returns words that it knows."""
    path = ROOT / "tests" / "pipelines" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    processor = tiny.build_processor()
    tiny.build_model(len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return " ".join(tiny.CAPTIONS).split()


def start(corpus: Path, model: Path, to: Path, size: int) -> subprocess.Popen:
    """`ccrk embed` in a process of its own."""
    words = ["embed", str(corpus), "--model", str(model), "--to", str(to), "--shard-size", str(size), "--threads", "1"]
    command = [sys.executable, "-P", "-m", "ccrk.cli.main", *words, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def finish(process: subprocess.Popen) -> dict:
    """What it says when it is done."""
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"ccrk embed ended with {process.returncode}")
    return json.loads(said)


def shards(folder: Path) -> dict[str, bytes]:
    """Name -> bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def on_cluster(corpus: Path, model: Path, to: Path, size: int, kill_at: int) -> dict:
    """Two nodes, and kill -9 of the worker that reports the shard number `kill_at`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    from ccrk.pipelines.embedding import EmbeddingJob, SliceEmbedder, embed_corpus
    from ccrk.pipelines.gallery_sources import gallery_items
    from ccrk.pipelines.loading import load_pipeline
    from ccrk.pipelines.ray_embedding import embed_ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    items = gallery_items(corpus)
    job = EmbeddingJob(str(to), items.modality, dict(items.columns))
    embedder = SliceEmbedder(job, load_pipeline(str(model), threads=1, device="cpu"))
    seen, killed = [], []

    def done(report) -> None:
        seen.append(report)
        if len(seen) == kill_at:
            killed.append(report.process)
            os.kill(int(report.process.split(":")[1]), signal.SIGKILL)

    def run(parts):
        return embed_ray(parts, job, str(model), embedder.fingerprint, done)

    begun = time.perf_counter()
    try:
        _, reports = embed_corpus(items, job, embedder.fingerprint, size, run)
    finally:
        ray.shutdown()
        cluster.shutdown()
    by = {}
    for report in reports:
        by[report.process] = by.get(report.process, 0) + 1
    return {"seconds": round(time.perf_counter() - begun, 1), "killed": killed[0], "shards by node:pid": by}


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--shard-size", type=int, default=100)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        words = make_model(root / "model")
        model = args.model or root / "model"
        random.seed(0)
        lines = [" ".join(random.choices(words, k=random.randint(2, 14))) + f" {i}" for i in range(args.texts)]
        (root / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
        given = root / "texts.txt", model
        print("one process:", finish(start(*given, root / "one", args.shard_size)), flush=True)
        expected = shards(root / "one")

        process = start(*given, root / "killed", args.shard_size)
        while len(list((root / "killed").glob("*.parquet"))) < len(expected) // 4 and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.communicate()
        left = shards(root / "killed")
        whole = all(expected.get(name) == data for name, data in left.items())
        print(f"killed with {len(left)} of {len(expected)} shards, all whole: {whole}", flush=True)
        said = finish(start(*given, root / "killed", args.shard_size))
        print(f"started again: {said}, equal: {shards(root / 'killed') == expected}", flush=True)

        said = on_cluster(*given, root / "cluster", args.shard_size, len(expected) // 4)
        print(f"two nodes: {said}, equal: {shards(root / 'cluster') == expected}", flush=True)
        print("once more:", finish(start(*given, root / "one", args.shard_size)), flush=True)


if __name__ == "__main__":
    main()
