"""What a gradient cache costs and saves: a step in pieces against the plain step.

    python benchmarks/gradient_cache.py [--plain 4] [--times 8] [--pieces 2] [--repeats 3]

A Swin-T at 224 px, a text tower of six layers and a fusion encoder of six, 384 wide, 32,000 words; five texts of at
most 32 tokens for each image, all three losses, dropout and stochastic depth on. Three steps, each in processes of
its own that take turns: the plain step with `--plain` images, the plain step with `--times` as many, and the step in
pieces of `--pieces` images with as many. Extra memory is the peak of the resident set over what it was with the
model, its gradients and the state of AdamW; time is that of the CPU, for forward and backward pass. The gradients of
the two larger steps are compared in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ccrk import CCRkConfig, CCRkForPreTraining
from ccrk.trainer.gradient_cache import CachedStep

VOCABULARY = 32000


def memory(field: str) -> float:
    """`VmRSS`, the resident set now, or `VmHWM`, its peak so far; in MiB."""
    # not ru_maxrss, which a child takes over from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def make_model() -> CCRkForPreTraining:
    """The model in training mode."""
    torch.manual_seed(0)
    text = {
        "model_type": "xlm-roberta",
        "vocab_size": VOCABULARY,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 64,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    }
    vision = {
        "architecture": "swin_tiny_patch4_window7_224",
        "image_size": 224,
        "model_args": {"window_size": 7, "drop_path_rate": 0.1},
    }
    return CCRkForPreTraining(CCRkConfig(vision_config=vision, text_config=text)).train()


def make_batch(images: int, texts: int, length: int) -> dict[str, torch.Tensor]:
    """Noise for photos, and texts of 10 tokens to `length`, of which a sixth is masked."""
    generator = torch.Generator().manual_seed(1)
    count = images * texts
    lengths = torch.randint(10, length + 1, (count,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(4, VOCABULARY, (count, length), generator=generator).masked_fill_(mask == 0, 1)
    ids[:, 0] = 0
    masked = (torch.rand(count, length, generator=generator) < 1 / 6) & (mask == 1)
    masked[:, 0] = False
    return {
        "pixel_values": torch.randn(images, 3, 224, 224, generator=generator),
        "input_ids": ids,
        "attention_mask": mask,
        "image_index": torch.arange(images).repeat_interleave(texts),
        "image_ids": torch.arange(images),
        "masked_input_ids": ids.masked_fill(masked, 3),
        "mlm_labels": ids.masked_fill(~masked, -100),
        "draw_keys": torch.randint(2**62, (images,), generator=generator),
    }


def measure(args: argparse.Namespace) -> None:
    """One step in this process; prints its figures and writes its gradients down."""
    torch.set_num_threads(args.threads)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    batch = make_batch(args.images, args.texts, args.length)
    before, used, started = memory("VmRSS"), time.process_time(), time.perf_counter()
    if args.pieces:
        loss = CachedStep(model, batch, args.pieces).run()["loss"]
    else:
        loss = model(**batch, return_loss=True).loss
        loss.backward()
    found = {
        "cpu": time.process_time() - used,
        "wall": time.perf_counter() - started,
        "peak": memory("VmHWM"),
        "loss": float(loss.detach()),
    }
    found["extra"] = found["peak"] - before
    save_file({name: p.grad.contiguous() for name, p in model.named_parameters()}, args.gradients)
    print(json.dumps(found))


def run(args: argparse.Namespace, images: int, pieces: int, gradients: Path) -> dict[str, float]:
    """Measures one step in a fresh process."""
    command = [sys.executable, "-P", __file__, "--images", str(images), "--pieces", str(pieces)]
    command += ["--gradients", gradients]
    for name in ("texts", "length", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the step with {images} images ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over all tensors, by the norm."""
    squares = sum(float((one[name] - other[name]).double().square().sum()) for name in one)
    return (squares / sum(float(other[name].double().square().sum()) for name in one)) ** 0.5


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", type=int, default=4, help="images of the small plain step (default 4)")
    parser.add_argument("--times", type=int, default=8, help="how many times as many in the large ones (default 8)")
    parser.add_argument("--pieces", type=int, default=2, help="images in a piece (default 2)")
    parser.add_argument("--texts", type=int, default=5, help="texts of each image (default 5)")
    parser.add_argument("--length", type=int, default=32, help="longest text in tokens (default 32)")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each step; medians are printed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.images:
        measure(args)
        return
    large = args.plain * args.times
    steps = {"small": (args.plain, 0), "large": (large, 0), "pieces": (large, args.pieces)}
    names = {"small": "plain", "large": "plain", "pieces": f"in pieces of {args.pieces}"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            for name, (images, pieces) in steps.items():
                found[name].append(run(args, images, pieces, Path(folder) / name))
        gradients = [load_file(Path(folder) / name) for name in ("pieces", "large")]
    rest = [{key: value for key, value in part.items() if "temperature" not in key} for part in gradients]
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {args.threads} thread(s); K = "
        f"{args.texts}, at most {args.length} tokens; medians of {args.repeats} processes, taken in turns\n"
    )
    print("| step | images | extra MiB | peak MiB | CPU s (least to most) | wall s |")
    print("| --- " * 6 + "|")
    medians = {name: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for name, runs in found.items()}
    for name, figures in medians.items():
        times = [r["cpu"] for r in found[name]]
        cpu = f"{figures['cpu']:.1f} ({min(times):.1f} to {max(times):.1f})"
        cells = names[name], f"{steps[name][0]}", f"{figures['extra']:.0f}", f"{figures['peak']:.0f}", cpu
        print(f"| {' | '.join(cells)} | {figures['wall']:.1f} |")
    small, plain, pieces = medians.values()
    print(
        f"\n{args.times} times the images in {pieces['extra'] / small['extra']:.2f} of the small step's extra memory. "
        f"Against the plain step of the same images: {pieces['extra'] / plain['extra']:.2f} of its extra memory, "
        f"{pieces['cpu'] / plain['cpu']:.2f} of its CPU time; losses {pieces['loss']:.6f} and {plain['loss']:.6f}; "
        f"norm of the difference of gradients by the norm {difference(*gradients):.1e}, without the temperature's "
        f"{difference(*rest):.1e}"
    )


if __name__ == "__main__":
    main()
