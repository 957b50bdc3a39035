"""Two-stage evaluation at the paper's size on a CPU: ours against a plain twin that follows the authors' protocol.

    python benchmarks/two_stage.py [--setting small] [--rounds 1] [--threads 2]

`small` searches 64 photos by 64 texts at 224 px, `large` 32 by 32 at 384 px; the best 16 candidates of every query are
re-scored, in both directions. 523.6 M parameters at random, captions of real lengths. Every variant runs in a fresh
process, one after the other. Needs about 6 GiB of free memory.

`twin` does as the authors' code does: texts padded to 40 tokens (`large`: 80), attention spelled out, one query at a
time, both directions apart, keys and values made anew for every pair, all tokens through the last layer. `ours` is
`encode` and `matching_logits` as `evaluate_retrieval` runs them, `ours-bf16` the same with `bf16=True`. CPU seconds
(user + system) are what to compare: other work on the machine hardly moves them.
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
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

spec = importlib.util.spec_from_file_location("train_step", Path(__file__).with_name("train_step.py"))
train_step = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train_step)

VARIANTS = ("twin", "ours", "ours-bf16")
TOP = 16
MISS = -100.0


class Setting(NamedTuple):
    """What is searched: as many texts as images."""

    count: int
    image_size: int
    padded: int
    baseline: float | None  # CPU seconds that the authors' own code took for it on this kind of machine


SETTINGS = {"small": Setting(64, 224, 40, 229.0), "large": Setting(32, 384, 80, None)}


class Numbers:
    """In the place of a processor: hands out random pixels, and random ids of lengths as captions have them."""

    def __init__(self, config, setting: Setting):
        batch = train_step.make_batch(config, 0, num_images=setting.count, texts_per_image=1)
        self.pixels, self.ids, self.mask = (batch[n] for n in ("pixel_values", "input_ids", "attention_mask"))

    def __call__(self, images=None, text=None, **kwargs):
        """Pixels of images by number, or ids and mask of texts, padded to the longest."""
        from transformers import BatchEncoding

        if images is not None:
            return BatchEncoding({"pixel_values": self.pixels[list(images)]})
        rows = [int(number.split()[-1]) for number in text]
        length = int(self.mask[rows].sum(1).max())
        return BatchEncoding(
            {"input_ids": self.ids[rows, :length], "attention_mask": self.mask[rows, :length]}, tensor_type="pt"
        )

    def rows(self) -> list[dict]:
        """A data set: image i and text i belong together. Texts are as long in bytes as they are in tokens."""
        lengths = self.mask.sum(1).tolist()
        captions = [f"{'x' * length} {i:05d}" for i, length in enumerate(lengths)]
        return [{"image": i, "captions": [{"language": "en", "text": caption}]} for i, caption in enumerate(captions)]


# --- the plain twin -----------------------------------------------------------------------------------------------


@torch.no_grad()
def twin_scores(model, numbers: Numbers, padded: int, top: int = TOP) -> dict[str, torch.Tensor]:
    """Scores of both directions by the authors' protocol, -100 for what is not among the best.

    Args:
        model: a `CCRkModel` with eager attention.
        numbers: pixels and ids.
        padded: texts are padded to this length.
        top: candidates of each query.

    Returns:
        `t2i (T, N)` and `i2t (N, T)`.
    """
    pad = padded - numbers.ids.shape[1]
    ids = nn.functional.pad(numbers.ids, (0, pad), value=model.config.text_config.pad_token_id)
    mask = nn.functional.pad(numbers.mask, (0, pad))
    images = torch.cat([model.vision_model(part) for part in numbers.pixels.split(32)])
    texts = []
    for part, of_part in zip(ids.split(32), mask.split(32), strict=True):
        texts.append(train_step.run_layers(model.text_model.layer, model.text_model.embeddings(part), of_part))
    texts = torch.cat(texts)
    image_embeds = nn.functional.normalize(model.visual_projection(images[:, 0]), dim=-1)
    text_embeds = nn.functional.normalize(model.text_projection(texts[:, 0]), dim=-1)
    similarity = image_embeds @ text_embeds.t()
    result = {}
    for name, matrix in (("i2t", similarity), ("t2i", similarity.t())):
        scores = torch.full(matrix.shape, MISS)
        for query, row in enumerate(matrix):
            best = row.topk(min(top, len(row))).indices
            if name == "i2t":
                own, chosen, of_chosen = images[query].repeat(len(best), 1, 1), texts[best], mask[best]
            else:
                own, chosen = images[best], texts[query].repeat(len(best), 1, 1)
                of_chosen = mask[query].repeat(len(best), 1)
            fused = train_step.run_layers(model.fusion_model.layer, chosen, of_chosen, own)
            scores[query, best] = model.itm_head(fused[:, 0])[:, 1]
        result[name] = scores
    return result


# --- ours ---------------------------------------------------------------------------------------------------------


def our_scores(model, numbers: Numbers, bf16: bool, top: int = TOP) -> dict[str, torch.Tensor]:
    """The same through the package."""
    from ccrk.evaluation.candidates import find_candidates
    from ccrk.evaluation.features import encode
    from ccrk.evaluation.reranking import matching_logits, rerank_scores

    features = encode(model, numbers, numbers.rows(), states=True, batch_size=32, bf16=bf16)
    candidates = find_candidates(features, top)
    logits = matching_logits(model, features, candidates, batch_size=64, bf16=bf16)
    result = {}
    for name, best in (("t2i", candidates.of_texts), ("i2t", candidates.of_images["en"])):
        scores = torch.full((len(best.items), len(numbers.pixels)), MISS)
        found = rerank_scores(best, logits, "itm", model.temperature.item())
        result[name] = scores.scatter_(1, torch.from_numpy(best.items), found)
    return result


def run_variant(variant: str, setting: Setting, threads: int, out: Path) -> None:
    """Builds the model, measures once, writes the scores and prints one line of JSON."""
    import timm

    timm.layers.set_fused_attn(variant != "twin")
    from ccrk import CCRkConfig, CCRkModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = CCRkConfig()
    config.vision_config.resize(setting.image_size)
    model = CCRkModel(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embeddings" not in name:
            parameter.data.mul_(1.5)  # or all pairs would score nearly alike
    if variant == "twin":
        model.config.text_config._attn_implementation = "eager"
    numbers = Numbers(model.config, setting)
    begun, before = time.perf_counter(), train_step.cpu_seconds()
    if variant == "twin":
        scores = twin_scores(model, numbers, setting.padded)
    else:
        scores = our_scores(model, numbers, variant == "ours-bf16")
    figures = {"cpu": train_step.cpu_seconds() - before, "wall": time.perf_counter() - begun}
    save_file({name: matrix.contiguous() for name, matrix in scores.items()}, out)
    figures["peak"] = train_step.resource.getrusage(train_step.resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures["tokens"] = float(numbers.mask.sum(1).float().mean())
    print(json.dumps(figures))


# --- the comparison -----------------------------------------------------------------------------------------------


def compare(ours: dict[str, torch.Tensor], twin: dict[str, torch.Tensor]) -> str:
    """How far scores are apart where both have one, how many candidates differ, and how many first places agree."""
    words = []
    for name in ("t2i", "i2t"):
        both = (ours[name] != MISS) & (twin[name] != MISS)
        different = int(((ours[name] != MISS) & (twin[name] == MISS)).sum())
        apart = (ours[name] - twin[name])[both].abs().max()
        first = (ours[name].argmax(1) == twin[name].argmax(1)).float().mean()
        words.append(f"{name}: scores differ by {apart:.1e}, {different} other candidates, equal first {first:.3f}")
    return "; ".join(words)


def main() -> None:
    """Runs the variants in turn, round after round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    parser.add_argument("--rounds", type=int, default=1, help="fresh processes of each variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="ratios: to the first")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    setting = SETTINGS[args.setting]
    if args.variant:
        run_variant(args.variant, setting, args.threads, args.out)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}")
    print(f"{setting.count} x {setting.count}, {setting.image_size} px, best {TOP} of both directions")
    runs: dict[str, list[dict]] = {variant: [] for variant in args.variants}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for variant in args.variants:
                command = [sys.executable, "-P", __file__, "--setting", args.setting, "--threads", str(args.threads)]
                command += ["--variant", variant, "--out", f"{folder}/{variant}"]
                environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
                done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
                runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
                figures = ", ".join(f"{name} {value:.2f}" for name, value in runs[variant][-1].items())
                print(f"round {number + 1} {variant}: {figures}", flush=True)
        scores = {variant: load_file(f"{folder}/{variant}") for variant in args.variants}
    medians = {v: statistics.median(run["cpu"] for run in of_v) for v, of_v in runs.items()}
    first = args.variants[0]
    for variant in args.variants:
        line = f"{variant:10} CPU s {medians[variant]:7.2f}  ratio {medians[variant] / medians[first]:.3f}"
        print(line + ("" if variant == first else f"  {compare(scores[variant], scores[first])}"))
    if "twin" in medians and setting.baseline:
        print(f"the authors' code took {setting.baseline:.0f}; the twin took {medians['twin'] / setting.baseline:.3f}")


if __name__ == "__main__":
    main()
