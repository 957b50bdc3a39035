"""Ways to run the encoders on a CPU, against plain torch: speed and how far their results are apart.

    python benchmarks/encoders.py [--paper] [--threads 1] [--rounds 3] [--variants torch fast ...]

A Swin-T at 224 px with a text tower and a fusion encoder of six layers each, 384 wide; `--paper` takes the paper's
size (523.6 M parameters; about 6 GiB of free memory) at 224 px. Weights are random. What is run: 8 photos; 64 texts of
lengths as captions have them, in batches of 16; one text against 32 photos through the fusion encoder, from the
states of both.

Every variant is a process of its own, and they take turns: `torch` is the model in eval mode (sorted texts, as all of
them, but `unsorted`), `fast` the same within `fast_passes`, `bf16` that in bfloat16, `compile` and `compile-bf16` are
`compile_encoders`, `onnx` and `int8` exported files. CPU seconds (user + system) are what to compare: other work on
the machine hardly moves them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

spec = importlib.util.spec_from_file_location("train_step", Path(__file__).with_name("train_step.py"))
train_step = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train_step)

VARIANTS = ("torch", "unsorted", "fast", "bf16", "compile", "compile-bf16", "onnx", "int8")
PHOTOS, TEXTS, BATCH, CANDIDATES = 8, 64, 16, 32
VECTORS = ("image", "text")


def build_config(paper: bool):
    """Sizes of the model."""
    from ccrk import CCRkConfig

    config = CCRkConfig()
    if not paper:
        config = CCRkConfig(
            vision_config={"architecture": "swin_tiny_patch4_window7_224", "image_size": 224},
            text_config={
                "model_type": "xlm-roberta",
                "vocab_size": 32000,
                "hidden_size": 384,
                "num_attention_heads": 12,
                "intermediate_size": 1536,
                "max_position_embeddings": 130,
                "type_vocab_size": 1,
            },
            num_text_layers=6,
            num_fusion_layers=6,
        )
    config.vision_config.resize(224)
    return config


def build_model(paper: bool):
    """The model, random and the same every time; its weights are large enough that outputs tell inputs apart."""
    from ccrk import CCRkModel

    torch.manual_seed(0)
    model = CCRkModel(build_config(paper)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embeddings" not in name:
            parameter.data.mul_(1.5)
    return model


def export(paper: bool, int8: bool, folder: Path) -> None:
    """Exports the model; in a process of its own, so that its memory is free again."""
    from ccrk.pipelines.onnx_export import export_encoders

    begun = time.perf_counter()
    export_encoders(build_model(paper), None, folder, int8=int8)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    peak = train_step.resource.getrusage(train_step.resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"MiB": round(size), "seconds": round(time.perf_counter() - begun), "peak GiB": round(peak, 2)}))


class Work:
    """What is run, by part of the model; each gives what is compared."""

    def __init__(self, config, encoders, ordered: bool):
        from ccrk.pipelines.fast_encoders import length_batches

        batch = train_step.make_batch(config, 0, num_images=TEXTS, texts_per_image=1)
        self.pixels, self.ids, self.mask = batch["pixel_values"][:PHOTOS], batch["input_ids"], batch["attention_mask"]
        lengths = self.mask.sum(1).tolist()
        rows = torch.arange(TEXTS).split(BATCH)
        self.batches = length_batches(lengths, BATCH) if ordered else [part.tolist() for part in rows]
        self.lengths, self.encoders = lengths, encoders
        random = torch.Generator().manual_seed(1)
        tokens = encoders.get_image_features(self.pixels).last_hidden_state
        noise = 0.1 * torch.randn(CANDIDATES, *tokens.shape[1:], generator=random)
        self.photos = tokens[torch.arange(CANDIDATES) % PHOTOS] + noise
        self.of_text = self.mask[:1, : lengths[0]]
        self.text = encoders.get_text_features(self.ids[:1, : lengths[0]], self.of_text).last_hidden_state

    def image(self) -> torch.Tensor:
        """Embeds the photos."""
        return self.encoders.get_image_features(self.pixels).pooler_output

    def texts(self) -> torch.Tensor:
        """Embeds the texts, batch by batch."""
        vectors = None
        for rows in self.batches:
            length = max(self.lengths[row] for row in rows)
            ids, mask = self.ids[rows, :length], self.mask[rows, :length]
            found = self.encoders.get_text_features(ids, mask).pooler_output
            vectors = found.new_zeros(TEXTS, found.shape[1]) if vectors is None else vectors
            vectors[rows] = found
        return vectors

    def fusion(self) -> torch.Tensor:
        """Scores one text against the photos."""
        states = {"image_hidden_states": self.photos, "text_hidden_states": self.text}
        return self.encoders.match(attention_mask=self.of_text, **states)[:, 0]


class CompiledFusion:
    """The model, but its fusion is compiled as one piece, as it would be exported."""

    def __init__(self, model):
        from ccrk.pipelines.onnx_export import FusionPart

        self.get_image_features, self.get_text_features = model.get_image_features, model.get_text_features
        self.part = FusionPart(model)
        self.part.compile()

    def match(self, attention_mask, image_hidden_states, text_hidden_states):
        """As the model's, for one text."""
        rows = torch.arange(len(image_hidden_states))
        states = image_hidden_states, text_hidden_states, attention_mask
        return self.part(*states, rows, torch.zeros_like(rows))["itm_logits"][:, None]


def run_variant(variant: str, paper: bool, threads: int, repeats: int, exported: Path, out: Path) -> None:
    """Runs one variant, writes what it computes and prints its figures as JSON."""
    from ccrk.inference_ccrk import fast_passes
    from ccrk.pipelines.fast_encoders import compile_encoders
    from ccrk.pipelines.onnx_encoders import OnnxEncoders

    torch.set_num_threads(threads)
    within, bf16 = nullcontext(), variant.endswith("bf16")
    model = None if variant in ("onnx", "int8") else build_model(paper)
    encoders = model
    if model is None:
        encoders = OnnxEncoders(exported / variant, threads=threads)
        config = build_config(paper)
    else:
        config = model.config
        if variant.startswith("compile"):
            encoders = CompiledFusion(compile_encoders(model))
            within = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        elif variant in ("fast", "bf16"):
            within = fast_passes(model, bf16=bf16)
    figures, results = {}, {}
    with torch.inference_mode(), within:
        begun = time.perf_counter()
        work = Work(config, encoders, variant != "unsorted")
        parts = {"image": work.image, "text": work.texts, "fusion": work.fusion}
        for name, part in parts.items():
            results[name] = part().float().clone().contiguous()
        figures["first"] = time.perf_counter() - begun
        for name, part in parts.items():
            cpu, wall = [], []
            for _ in range(repeats):
                before, start = train_step.cpu_seconds(), time.perf_counter()
                part()
                cpu.append(train_step.cpu_seconds() - before)
                wall.append(time.perf_counter() - start)
            figures[f"{name} cpu"], figures[f"{name} wall"] = statistics.median(cpu), statistics.median(wall)
    figures["peak"] = train_step.resource.getrusage(train_step.resource.RUSAGE_SELF).ru_maxrss / 2**20
    save_file(results, out)
    print(json.dumps(figures))


def apart(name: str, ours: torch.Tensor, plain: torch.Tensor) -> str:
    """How far two results are apart, in words."""
    words = f"differ by {float((ours - plain).abs().max()):.1e}"
    if name in VECTORS:
        cosine = torch.nn.functional.cosine_similarity(ours, plain).min()
        words += f", lowest cosine {float(cosine):.6f}"
    else:
        words += f" of {float(plain.abs().max()):.1f}"
    return words


def call(*arguments: str, threads: int) -> dict:
    """Runs this script once more and reads its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-P", __file__, "--threads", str(threads), *arguments]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Runs the variants in turn, round after round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paper", action="store_true", help="the paper's size")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each variant")
    parser.add_argument("--repeats", type=int, default=5, help="passes in each, of which the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="ratios: to the first")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--exported", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant and args.variant.startswith("export"):
        export(args.paper, args.variant == "export int8", args.out)
        return
    if args.variant:
        run_variant(args.variant, args.paper, args.threads, args.repeats, args.exported, args.out)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}")
    runs: dict[str, list[dict]] = {variant: [] for variant in args.variants}
    common = ["--repeats", str(args.repeats), *(["--paper"] if args.paper else [])]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("onnx", "int8"):
            if name in args.variants:
                where = ["--variant", f"export {name}", "--out", f"{folder}/{name}"]
                print(f"exported {name}: {call(*common, *where, threads=args.threads)}", flush=True)
        for number in range(args.rounds):
            for variant in args.variants:
                where = ["--variant", variant, "--exported", folder, "--out", f"{folder}/{variant}.safetensors"]
                runs[variant].append(call(*common, *where, threads=args.threads))
                figures = ", ".join(f"{name} {value:.3f}" for name, value in runs[variant][-1].items())
                print(f"round {number + 1} {variant}: {figures}", flush=True)
        results = {variant: load_file(f"{folder}/{variant}.safetensors") for variant in args.variants}
    first = args.variants[0]
    for part in ("image", "text", "fusion"):
        for variant in args.variants:
            cpu, wall = (
                [statistics.median(run[f"{part} {kind}"] for run in runs[one]) for one in (variant, first)]
                for kind in ("cpu", "wall")
            )
            line = f"{part:6} {variant:12} CPU s {cpu[0]:7.3f}  ratio {cpu[0] / cpu[1]:.3f}"
            line += f"  wall s {wall[0]:7.3f}  ratio {wall[0] / wall[1]:.3f}"
            print(line + f"  {apart(part, results[variant][part], results[first][part])}")


if __name__ == "__main__":
    main()
