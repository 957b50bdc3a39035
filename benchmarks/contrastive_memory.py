"""Memory and time of the contrastive loss over a large batch: in tiles against the plain ways to write it.

    python benchmarks/contrastive_memory.py [--images 4096] [--texts 10] [--width 256] [--repeats 5]

Three ways, forward and backward: `tiled` is `contrastive_share(tiled=True)`, `plain` the same function with all
logits held, `dense` a plain formula from one matrix of logits (`one_to_k(logits)`, `sigmoid_one_to_k(logits)`). Each
measurement is a process of its own, and the ways take turns. Extra memory is the peak of the resident set over what it
was with the embeddings and before the loss; time is that of the CPU. Gradients are compared in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ccrk.losses_ccrk import BatchLayout, contrastive_share, one_to_k, sigmoid_one_to_k

WAYS = ("tiled", "plain", "dense")
MIB = 2**20


def memory(field: str) -> int:
    """`VmRSS`, the resident set now, or `VmHWM`, its peak so far; in bytes."""
    # not ru_maxrss, which a child takes over from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_batch(images: int, texts: int, width: int, ids: bool):
    """Embeddings of a model that has begun to learn: a text leans to its image. Some images twice, if `ids`."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(images, width, generator=generator)
    index = torch.arange(images).repeat_interleave(texts)
    captions = torch.randn(images * texts, width, generator=generator).add_(centres[index])
    embeds = [torch.nn.functional.normalize(rows).requires_grad_() for rows in (centres, captions)]
    image_ids = torch.arange(images) // 4 * 4 + torch.arange(images) % 4 % 3 if ids else None  # pairs in each four
    return *embeds, BatchLayout.single(index, images, image_ids=image_ids)


def loss_of(way: str, variant: str, images, texts, temperature, bias, layout: BatchLayout) -> torch.Tensor:
    """The loss in one of the ways."""
    if way != "dense":
        return contrastive_share(images, texts, temperature, layout, variant=variant, bias=bias, tiled=way == "tiled")
    logits = images @ texts.t() / temperature
    if variant == "sigmoid":
        return sigmoid_one_to_k(logits + bias, layout.image_index, image_ids=layout.image_ids)
    return one_to_k(logits, layout.image_index, variant=variant, image_ids=layout.image_ids)


def measure(args: argparse.Namespace) -> None:
    """One way in this process; prints its figures, and writes its gradients down."""
    torch.set_num_threads(args.threads)
    small = make_batch(64, args.texts, args.width, args.ids)
    temperature = torch.tensor(args.temperature, requires_grad=True)
    bias = torch.tensor(-10.0, requires_grad=True) if args.variant == "sigmoid" else None
    loss_of(args.way, args.variant, *small[:2], temperature, bias, small[2]).backward()  # what a first call loads
    images, texts, layout = make_batch(args.images, args.texts, args.width, args.ids)
    temperature.grad = None
    before, used, started = memory("VmRSS"), cpu_seconds(), time.perf_counter()
    loss = loss_of(args.way, args.variant, images, texts, temperature, bias, layout)
    loss.backward()
    found = {
        "wall": time.perf_counter() - started,
        "cpu": cpu_seconds() - used,
        "extra": (memory("VmHWM") - before) / MIB,
        "loss": loss.item(),
    }
    save_file({"0.images": images.grad, "1.texts": texts.grad, "2.temperature": temperature.grad}, args.gradients)
    print(json.dumps(found))


def run(args: argparse.Namespace, way: str, gradients: Path) -> dict[str, float]:
    """Measures one way in a fresh process."""
    command = [sys.executable, "-P", __file__, "--way", way, "--gradients", gradients, "--variant", args.variant]
    for name in ("images", "texts", "width", "temperature", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    command += ["--ids"] if args.ids else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the way '{way}' ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> None:
    """Rows of the table for one variant at one temperature."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            for way, runs in found.items():
                runs.append(run(args, way, Path(folder) / way))
        gradients = {way: load_file(Path(folder) / way) for way in found}
    medians = {way: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for way, runs in found.items()}
    name = f"{args.variant}{', shared ids' if args.ids else ''}"
    for way, figures in medians.items():
        times = [r["cpu"] for r in found[way]]
        ours = medians["tiled"]
        pairs = [(gradients["tiled"][key], value) for key, value in sorted(gradients[way].items())]
        largest = max(float((a - b).abs().max()) for a, b in pairs[:2])  # the embeddings'
        difference = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        against = [f"{ours['extra'] / figures['extra']:.1%}", f"{ours['cpu'] / figures['cpu']:.2f}"]
        against += [
            f"{abs(ours['loss'] - figures['loss']) / max(1.0, ours['loss']):.1e}",
            f"{largest:.1e}",
            f"{difference:.1e}",
        ]
        against = [""] * 5 if way == "tiled" else against
        cpu = f"{figures['cpu']:.2f} ({min(times):.2f} to {max(times):.2f})"
        cells = [
            name,
            f"{args.temperature:g}",
            way,
            f"{figures['extra']:.0f}",
            cpu,
            f"{figures['wall']:.2f}",
            *against,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096, help="B (default 4096)")
    parser.add_argument("--texts", type=int, default=10, help="K, texts of each image (default 10)")
    parser.add_argument("--width", type=int, default=256, help="D (default 256)")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each way; medians are printed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=("official", "balanced", "sigmoid"), help="this one alone")
    parser.add_argument("--temperature", type=float, help="this one alone (default 0.07 and 0.01)")
    parser.add_argument("--ids", action="store_true", help="with shared positives only")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        measure(args)
        return
    print(
        f"B = {args.images}, K = {args.texts}, D = {args.width}; torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {args.threads} thread(s); medians of {args.repeats} processes, taken in turns\n"
    )
    head = "variant", "temperature", "way", "extra MiB", "CPU s (least to most)", "wall s"
    head += "memory: tiled / this", "CPU: tiled / this", "loss: relative difference", "embedding gradients: largest"
    head += ("all gradients: norm of difference / norm",)
    print(f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|")
    cases = [(v, t, False) for v in ("official", "balanced", "sigmoid") for t in (0.07, 0.01)]
    cases += [("official", 0.07, True), ("sigmoid", 0.01, True)]
    for variant, temperature, ids in cases:
        wanted = (args.variant in (None, variant)) and args.temperature in (None, temperature)
        if wanted and (ids or not args.ids):
            compare(argparse.Namespace(**{**vars(args), "variant": variant, "temperature": temperature, "ids": ids}))


if __name__ == "__main__":
    main()
