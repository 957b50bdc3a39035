"""The model at the paper's size: parameters, conversion of a whole checkpoint, memory of loading and one forward.

    python benchmarks/paper_size.py --keymap KEYMAP [--folder DIR]

KEYMAP lists every key and shape of the authors' model. A random checkpoint with these keys (2.1 GB) is written,
converted and loaded, in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SHARED = Path(os.environ.get("CCRK_SHARED", Path(__file__).resolve().parents[2] / "shared"))
KEYMAP = SHARED / "reference" / "ccrk_keymap.txt"
HEADS = {
    "vision_proj.weight": (256, 1024),
    "vision_proj.bias": (256,),
    "text_proj.weight": (256, 1024),
    "text_proj.bias": (256,),
    "temp": (),
    "itm_head.0.weight": (2048, 1024),
    "itm_head.0.bias": (2048,),
    "itm_head.1.weight": (2048,),
    "itm_head.1.bias": (2048,),
    "itm_head.3.weight": (2, 2048),
    "itm_head.3.bias": (2,),
}


def read_keymap(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key -> shape and dtype of the pre-training model at 224 px."""
    keys = {name: (shape, "torch.float32") for name, shape in HEADS.items()}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("## "):
            section = line
        elif section.startswith(("## swin224", "## pretrain text")):
            name, shape, dtype = re.fullmatch(r"(\S+) \(([\d, ]*)\) (\S+)", line.strip()).groups()
            keys[name] = (tuple(int(n) for n in shape.split(",") if n.strip()), dtype)
    return keys


def write_checkpoint(keymap: Path, path: Path) -> None:
    """A random checkpoint with the authors' keys, tied as theirs."""
    import torch

    torch.manual_seed(0)
    state = {}
    for name, (shape, dtype) in read_keymap(keymap).items():
        if dtype == "torch.int64":
            state[name] = torch.zeros(shape, dtype=torch.long)
        else:
            state[name] = torch.randn(shape) * 0.02 + (1 if "norm" in name.lower() and name.endswith("weight") else 0)
    state["temp"] = torch.tensor(0.07)
    head = "text_encoder.cls.predictions."
    state[head + "decoder.weight"] = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    state[head + "decoder.bias"] = state[head + "bias"]
    torch.save({"model": state, "epoch": 0}, path)
    print(f"written: {len(state)} tensors, {path.stat().st_size} bytes")


def convert(path: Path, out: Path) -> None:
    """Converts, and compares every tensor with its source."""
    import torch
    from safetensors import safe_open

    from ccrk.conversion_ccrk import DERIVED, convert_checkpoint, read_checkpoint, rename

    report = convert_checkpoint(str(path), out)
    print(
        f"converted: {report.converted} tensors, {len(report.derived)} buffers computed anew, unused {report.unused}"
    )
    state = {k: v for k, v in read_checkpoint(path).items() if not DERIVED.search(k)}
    with safe_open(out / "model.safetensors", "pt") as file:
        written = set(file.keys())
        wanted = {rename(name, 6, "ccrk."): name for name in state}
        tied = {"mlm_head.decoder.weight", "mlm_head.decoder.bias"}
        lost, invented = set(wanted) - written - tied, written - set(wanted)
        changed = [
            name for name in written & set(wanted) if not torch.equal(file.get_tensor(name), state[wanted[name]])
        ]
    print(
        f"lost {sorted(lost)}, invented {sorted(invented)}, changed {changed}; tied and written once: {sorted(tied)}"
    )


def load_and_run(out: Path) -> None:
    """Loads the converted model, runs one forward, prints the peak resident memory."""
    import torch

    from ccrk import CCRkForPreTraining

    torch.set_num_threads(2)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = CCRkForPreTraining.from_pretrained(out)
    count = sum(p.numel() for p in model.parameters())
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with torch.inference_mode():
        output = model(pixel_values=torch.randn(1, 3, 224, 224), input_ids=torch.randint(5, 1000, (1, 20)))
    assert output.image_embeds.isfinite().all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"parameters: {count}")
    print(
        f"file {size / 2**20:.0f} MiB; peak RSS: imports {base / 2**20:.0f}, loaded {loaded / 2**20:.0f}, "
        f"after one forward {peak / 2**20:.0f} MiB = {peak / size:.2f} x the file"
    )


def main() -> None:
    """Runs the steps, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keymap", type=Path, default=KEYMAP, help="list of the authors' keys and shapes")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--step", choices=("write", "convert", "load"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.keymap.is_file():
        print(f"skipped: there is no key map '{args.keymap}'; name one with --keymap")
        return
    if args.step:
        path, out = args.folder / "random.th", args.folder / "model"
        steps = {"write": lambda: write_checkpoint(args.keymap, path), "convert": lambda: convert(path, out)}
        steps.get(args.step, lambda: load_and_run(out))()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for step in ("write", "convert", "load"):
            command = [sys.executable, __file__, "--keymap", str(args.keymap), "--folder", str(folder), "--step", step]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
