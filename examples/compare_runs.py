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

from scipy import stats


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
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:7.2f} ± {stats.t.ppf(0.975, len(values) - 1) * error:5.2f}"


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


def main(words: list[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ways = {"nargs": 2, "action": "append", "required": True, "metavar": ("NAME", "OPTIONS")}
    parser.add_argument("--way", **ways, help="a name and, as one word, the options that are its own")
    parser.epilog = "What follows -- goes to every ccrk train."
    # argparse takes words after -- for those before the options, so the two parts are told apart here
    words = sys.argv[1:] if words is None else words
    end = words.index("--") if "--" in words else len(words)
    args, common = parser.parse_args(words[:end]), words[end + 1 :]
    results: dict[str, list[dict[str, float]]] = {name: [] for name, _ in args.way}
    for seed in args.seeds:  # seeds first: a comparison that is cut short has every way
        for name, options in args.way:
            folder = args.out / f"{name}-{seed}"
            results[name].append(train(folder, seed, [*common, *shlex.split(options)]))
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
