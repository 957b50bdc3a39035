"""Indexes: a million vectors in a Lance folder beside exact search and faiss HNSW; exact search beside faiss Flat.

    python benchmarks/index_search.py [--rows 1000000] [--threads 2] [--part large|exact]

The vectors are drawn, in the shape that embeddings have: a spectrum that falls off (the i-th of D directions, turned
at random, has a standard deviation of i^-1/2), clusters of very different sizes (one for 50 rows, chosen by Zipf's
law), noise of 0.6 of the spectrum around their centres, and a common direction that makes a cone of them all (0.7 of
the spectrum's length). Queries are drawn from the same clusters with noise of 0.8, and all moved aside by 0.4, as
texts lie beside photos. Everything is seeded.

Part `large`: each way in a process of its own, on the same file of vectors. Recall@10 is against the exact search of
the same run. Peak memory is that of the process; of the exact search and of faiss it holds the vectors. faiss gets the
smallest of efSearch = 16, 32, ... that reaches a recall of 0.98. Part `exact`: 100,000 vectors in memory, ours and
faiss `IndexFlatIP` in turn, with the speed of copying memory and of multiplying matrices measured beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np

WIDTH, K, QUERIES, BATCH = 256, 10, 500, 100
WAYS = ("torch", "lance", "hnsw")
EXACT_ROWS = 100_000


def draw(rows: int, folder: Path) -> None:
    """Writes `vectors.npy` and `queries.npy`."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, WIDTH + 1) ** -0.5
    spectrum /= np.linalg.norm(spectrum)
    turn, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    basis = (spectrum[:, None] * turn).astype(np.float32)
    clusters = max(50, rows // 50)
    centres = rng.standard_normal((clusters, WIDTH), dtype=np.float32) @ basis + 0.7 * turn[0].astype(np.float32)
    shares = 1 / (np.arange(clusters) + 10.0)

    def some(count: int, noise: float) -> np.ndarray:
        of = rng.choice(clusters, count, p=shares / shares.sum())
        return centres[of] + noise * (rng.standard_normal((count, WIDTH), dtype=np.float32) @ basis)

    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (rows, WIDTH))
    for start in range(0, rows, 50_000):
        block = some(min(50_000, rows - start), 0.6)
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors.flush()
    queries = some(QUERIES, 0.8) + 0.4 * turn[1].astype(np.float32)
    np.save(folder / "queries.npy", queries / np.linalg.norm(queries, axis=1, keepdims=True))


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mib() -> float:
    """Peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(act: Callable) -> tuple[float, object]:
    """Wall seconds that it takes, and what it gives."""
    begun = time.perf_counter()
    result = act()
    return time.perf_counter() - begun, result


def measure(search: Callable[[np.ndarray], list], queries: np.ndarray, right: np.ndarray | None) -> dict:
    """Latency of single queries, queries a second in batches, and recall."""
    for query in queries[:20]:
        search(query[None])
    times, found = [], []
    for query in queries:
        seconds, ids = timed(lambda query=query: search(query[None]))
        times.append(1000 * seconds)
        found.extend(ids)
    batches = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    rates = [len(batch) / timed(lambda batch=batch: search(batch))[0] for batch in batches]
    figures = {
        "p50_ms": np.percentile(times, 50),
        "p99_ms": np.percentile(times, 99),
        "per_second": statistics.median(rates),
    }
    if right is not None:
        hits = sum(len(set(map(int, ids)) & set(map(int, best))) for ids, best in zip(found, right, strict=True))
        figures["recall"] = hits / right.size
    return figures


def way_torch(folder: Path, vectors: np.ndarray, queries: np.ndarray, right: np.ndarray | None) -> dict:
    """The index `memory:`; also writes what is right."""
    import torch

    from ccrk.pipelines.indexes import create_index

    index = create_index("memory:", fingerprint())
    before = cpu_seconds()
    wall, _ = timed(lambda: fill(index, vectors))
    built = {"build_s": wall, "build_cpu_s": cpu_seconds() - before}

    def search(some: np.ndarray) -> list:
        return [ids for ids, _ in index.search(torch.from_numpy(some), K)]

    np.save(folder / "right.npy", np.array([list(map(int, ids)) for ids in search(queries)]))
    return {**built, **measure(search, queries, None), "recall": 1.0}


def way_lance(folder: Path, vectors: np.ndarray, queries: np.ndarray, right: np.ndarray | None) -> dict:
    """The index `lance:`, filled in blocks and optimized; then opened anew and searched."""
    import torch

    from ccrk.pipelines.indexes import create_index, open_index

    uri = f"lance://{folder}/index"
    index = create_index(uri, fingerprint())
    before = cpu_seconds()
    filling, _ = timed(lambda: fill(index, vectors))
    optimizing, _ = timed(index.optimize)
    built = {"build_s": filling + optimizing, "fill_s": filling, "build_cpu_s": cpu_seconds() - before}
    built["build_peak_mib"] = peak_mib()
    index.close()
    index = open_index(uri)

    def search(some: np.ndarray) -> list:
        return [ids for ids, _ in index.search(torch.from_numpy(some), K)]

    def on_disk() -> float:
        return sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file()) / 2**20

    notes = {"disk_mib": on_disk(), "partitions_read": index._nprobes()}
    figures = measure(search, queries, right)
    # what was merged stays for an hour, for those who read it; this is what stays after that
    with warnings.catch_warnings(action="ignore"):
        index._table.optimize(cleanup_older_than=timedelta(0))
    return {**built, **notes, "disk_later_mib": on_disk(), **figures}


def way_hnsw(folder: Path, vectors: np.ndarray, queries: np.ndarray, right: np.ndarray | None) -> dict:
    """The graph of faiss, with full vectors, M = 32."""
    import faiss

    index = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    before = cpu_seconds()

    def build() -> None:
        for start in range(0, len(vectors), 20_000):
            index.add(np.ascontiguousarray(vectors[start : start + 20_000]))

    wall, _ = timed(build)
    built = {"build_s": wall, "build_cpu_s": cpu_seconds() - before, "build_peak_mib": peak_mib()}
    faiss.write_index(index, str(folder / "hnsw"))
    built["disk_mib"] = (folder / "hnsw").stat().st_size / 2**20
    for ef in (16, 32, 64, 128, 256, 512, 1024):
        index.hnsw.efSearch = ef
        found = index.search(queries, K)[1]
        if np.mean([len(set(a) & set(b)) / K for a, b in zip(found, right, strict=True)]) >= 0.98:
            break
    return {**built, "efSearch": ef, **measure(lambda some: list(index.search(some, K)[1]), queries, right)}


def fingerprint():
    """Of drawn vectors."""
    from ccrk.pipelines.index import IndexFingerprint

    return IndexFingerprint("drawn", "0", WIDTH)


def fill(index, vectors: np.ndarray) -> None:
    """Adds all vectors, 20,000 at a time, known by their row."""
    import torch

    for start in range(0, len(vectors), 20_000):
        block = torch.from_numpy(np.array(vectors[start : start + 20_000]))
        index.upsert([str(start + row) for row in range(len(block))], block)


def measure_exact(threads: int, rounds: int = 15) -> None:
    """Ours and faiss Flat in turn, and what the machine can do."""
    import faiss
    import torch

    from ccrk.pipelines.ccr_retrieval import exact_search

    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)

    def units(count: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)

    vectors = units(EXACT_ROWS)
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors.numpy())
    copy, product = torch.empty_like(vectors), torch.empty(2048, 2048)
    right = torch.randn(WIDTH * 8, 2048)
    left = torch.randn(2048, WIDTH * 8)
    asked = {count: units(count) for count in (1, BATCH)}
    ways = {"copy": lambda: copy.copy_(vectors), "matmul": lambda: torch.mm(left, right, out=product)}
    for count, queries in asked.items():
        ways[f"ours {count}"] = lambda queries=queries: exact_search(vectors, queries, K)
        ways[f"faiss {count}"] = lambda queries=queries: flat.search(queries.numpy(), K)
    for count in asked:
        ours, theirs = ways[f"ours {count}"]()[1].numpy(), ways[f"faiss {count}"]()[1]
        print(f"batch {count}: equal results in {(ours == theirs).mean():.4f} of all places")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way)[0])
    least = {name: min(values) for name, values in seconds.items()}
    bandwidth = 2 * vectors.nbytes / least["copy"] / 1e9
    flops = 2 * 2048 * WIDTH * 8 * 2048 / least["matmul"] / 1e9
    print(f"{threads} threads; copy: {bandwidth:.1f} GB/s read and written; matmul: {flops:.0f} GFLOP/s")
    for name, values in seconds.items():
        line = f"{name}: {1000 * statistics.median(values):.2f} ms (least {1000 * min(values):.2f})"
        if name[-1].isdigit():
            count = int(name.split()[1])
            read, work = vectors.nbytes / least[name] / 1e9, 2 * EXACT_ROWS * WIDTH * count / least[name] / 1e9
            line += f"; {read / bandwidth:.2f} of the bandwidth, {work / flops:.2f} of the FLOP rate"
        print(line)


def part(name: str, folder: Path, threads: int) -> None:
    """One way, in this process."""
    import torch

    torch.set_num_threads(threads)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    right = np.load(folder / "right.npy") if (folder / "right.npy").exists() else None
    figures = globals()[f"way_{name}"](folder, vectors, queries, right)
    print(json.dumps({"way": name, **figures, "peak_mib": peak_mib()}))


def main() -> None:
    """Draws the vectors and runs each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("large", "exact"), help="one of the two alone")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="where 5 GB of files go; a temporary one by default")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        part(args.way, args.folder, args.threads)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if args.part != "large":
        if os.environ.get("OMP_NUM_THREADS") != str(args.threads):  # read when the libraries are loaded
            command = [sys.executable, "-P", __file__, "--part", "exact", "--threads", str(args.threads)]
            subprocess.run(command, check=True, env=environment)
        else:
            measure_exact(args.threads)
    if args.part != "exact":
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            seconds, _ = timed(lambda: draw(args.rows, Path(folder)))
            print(f"{args.rows} x {WIDTH} vectors, {QUERIES} queries drawn in {seconds:.0f} s", flush=True)
            ways = [way for way in WAYS if way in args.ways or way == "torch"]  # it says what is right
            for way in ways:
                command = [sys.executable, "-P", __file__, "--way", way, "--folder", folder]
                subprocess.run([*command, "--threads", str(args.threads)], check=True, env=environment)


if __name__ == "__main__":
    main()
