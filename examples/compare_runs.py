"""Compare ways to train: the same data, steps and seeds, several times each, with intervals.

    python examples/compare_runs.py OUT --seeds 0 1 2 \
        --way "1-to-K" "" \
        --way "1-to-1" "--variant one-to-one --texts-per-image 1" \
        -- --data train.jsonl --eval val.jsonl --model my-model --epochs 10

What follows `--` goes to every `ccrk train`; each way adds its own options. A run that is there already is not run
again, so the comparison can be interrupted, and seeds added later. The table has the mean over seeds and a 95 %
interval (Student's t), and the paired difference of each way from the first one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

# two-sided 97.5 % quantiles of Student's t by degrees of freedom
T_QUANTILES = [float("nan"), 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def figures(report: dict) -> dict[str, float]:
    """Mean recall over languages and MRV of one run, re-ranked where it was."""
    found = {}
    for name, part in (("embeddings", report), ("re-ranked", report.get("reranked"))):
        if part is None:
            continue
        for k in (1, 5, 10):
            values = [row[f"ir@{k}"] for row in part["languages"].values()]
            found[f"R@{k} {name}"] = 100 * sum(values) / len(values)
        if part["mrv"] is not None:
            found[f"MRV {name}"] = part["mrv"]["mrv"]
    return found


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:7.2f}"
    quantile = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES) - 1)]
    return f"{mean:7.2f} ± {quantile * statistics.stdev(values) / len(values) ** 0.5:5.2f}"


def train(out: Path, seed: int, options: list[str]) -> dict[str, float]:
    """One run, or what it left behind when it was run before."""
    report = out / "evaluation.json"
    if not report.exists():
        out.mkdir(parents=True, exist_ok=True)
        with (out / "log.txt").open("w") as log:
            command = [
                sys.executable,
                "-m",
                "ccrk.cli.main",
                "train",
                *options,
                "--seed",
                str(seed),
                "--out",
                str(out),
            ]
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return figures(json.loads(report.read_text(encoding="utf-8")))


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--way", nargs=2, action="append", required=True, metavar=("NAME", "OPTIONS"))
    parser.add_argument("common", nargs="*", help="options of every run, after --")
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name, _ in args.way}
    for seed in args.seeds:  # seeds first: a comparison that is cut short has every way
        for name, options in args.way:
            folder = args.out / f"{name}-{seed}"
            results[name].append(train(folder, seed, [*args.common, *shlex.split(options)]))
            print(f"{folder}: {json.dumps(results[name][-1])}", flush=True)
    first = args.way[0][0]
    print(f"\n{'':24}" + "".join(f"{name:>18}" for name, _ in args.way) + "   differences from " + first)
    for figure in results[first][0]:
        columns = {name: [run[figure] for run in runs] for name, runs in results.items()}
        line = f"{figure:24}" + "".join(f"{interval(values):>18}" for values in columns.values())
        for name, values in columns.items():
            if name != first:
                line += "   " + interval([b - a for a, b in zip(columns[first], values, strict=True)])
        print(line)


if __name__ == "__main__":
    main()
