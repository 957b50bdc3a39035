"""Ranks and recall: ours against the authors' loop of sorts, and at a size where no matrix of scores fits.

    python benchmarks/ranks.py [--rounds 3] [--threads 2] [--large 100000]

First 2,000 photos by 2,000 captions in 8 languages, both directions, from the same matrices of scores: the loop sorts
every row and looks for the right answer, as the authors' `itm_eval` does; ours is `target_ranks`. Ranks are equal.
Then `embedding_ranks` of 100,000 by 100,000 vectors of 256 numbers, in tiles: time, and peak memory beyond the
vectors. The whole matrix would take 37 GiB. CPU seconds are user + system.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LANGUAGES, SIZE, WIDTH = 8, 2000, 256


def loop_ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of item i for query i, by sorting every row."""
    ranks = np.zeros(len(scores))
    for query, row in enumerate(scores):
        order = np.argsort(row)[::-1]
        ranks[query] = np.where(order == query)[0][0]
    return ranks


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident(name: str) -> float:
    """MiB of resident memory of this process: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def compare_small(rounds: int) -> None:
    """Times both ways in turn and checks that they agree."""
    from ccrk.metrics.ccr_recall.recall import recall_at, target_ranks

    rng = np.random.default_rng(0)
    right = np.arange(SIZE)
    matrices = [rng.standard_normal((SIZE, SIZE), dtype=np.float32) for _ in range(LANGUAGES)]
    for scores in matrices:
        scores[right, right] += 2
    both = [part for scores in matrices for part in (scores, np.ascontiguousarray(scores.T))]
    ways = {"loop": loop_ranks, "ours": lambda scores: target_ranks(scores, right)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[np.ndarray]] = {}
    for _ in range(rounds + 1):  # one to warm up
        for name, way in ways.items():
            before = cpu_seconds()
            found[name] = [way(scores) for scores in both]
            recalls = [recall_at(ranks) for ranks in found[name]]
            seconds[name].append(cpu_seconds() - before)
    assert all(np.array_equal(a, b) for a, b in zip(found["loop"], found["ours"], strict=True))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(
        f"{SIZE} x {SIZE}, {LANGUAGES} languages, both directions; R@1 of the first {recalls[0][1]:.3f}; ranks equal"
    )
    for name, values in seconds.items():
        print(f"{name}: CPU s {medians[name]:.4f} (from {min(values[1:]):.4f} to {max(values[1:]):.4f})")
    print(f"loop / ours: {medians['loop'] / medians['ours']:.1f}")


def measure_large(size: int) -> None:
    """Ranks in tiles: time and memory beyond the vectors."""
    from ccrk.metrics.ccr_recall.recall import embedding_ranks, recall_at

    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((size, WIDTH), dtype=np.float32)
    queries = vectors + 2.5 * rng.standard_normal((size, WIDTH), dtype=np.float32)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak, which making the vectors has raised
    before, begun, used = resident("VmRSS"), time.perf_counter(), cpu_seconds()
    ranks = embedding_ranks(queries, vectors, np.arange(size))
    wall, used = time.perf_counter() - begun, cpu_seconds() - used
    extra = resident("VmHWM") - before
    recall = recall_at(ranks)
    whole = 4 * size**2 / 2**30
    print(
        f"{size} x {size} x {WIDTH}: CPU s {used:.1f}, wall s {wall:.1f}, {extra:.0f} MiB more; whole {whole:.1f} GiB"
    )
    print("recall " + ", ".join(f"@{k} {value:.3f}" for k, value in recall.items()))


def main() -> None:
    """Runs each part in a process of its own, so that memory is that part's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--large", type=int, default=100_000, help="vectors of the second part; 0 leaves it out")
    parser.add_argument("--part", choices=("small", "large"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        compare_small(args.rounds) if args.part == "small" else measure_large(args.large)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    for part in ("small", "large") if args.large else ("small",):
        command = [sys.executable, "-P", __file__, "--part", part, "--rounds", str(args.rounds)]
        subprocess.run([*command, "--large", str(args.large)], check=True, env=environment)


if __name__ == "__main__":
    main()
