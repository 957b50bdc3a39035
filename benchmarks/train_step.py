"""One training step at the paper's size on a CPU: ours against a plain twin that follows the authors' protocol.

    python benchmarks/train_step.py [--rounds 3] [--steps 2] [--threads 2]

4 images with K = 10 texts each, all three objectives, forward, backward, clipping, AdamW, dropout on; 523.6 M
parameters at random. Every variant runs in a fresh process, one after the other, the same number of times. Needs about
14 GiB of free memory, and waits for it.

`twin` does as the authors' code does: texts padded to 40 tokens, attention spelled out, negatives drawn one by one,
labels filled in by loops, matching in two fusion passes that make keys and values for every pair, masked texts through
all layers, 12 slots a text for the masked-language head, an AdamW loop over tensors. `ours` is `CCRkForPreTraining` as
the trainer runs it, `ours-bf16` the same under bfloat16 autocast. CPU seconds (user + system) are what to compare:
other work on the machine hardly moves them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

VARIANTS = ("twin", "ours", "ours-bf16")
NUM_IMAGES, TEXTS_PER_IMAGE = 4, 10
PADDED_LENGTH, MASK_SLOTS = 40, 12
LEARNING_RATE, WEIGHT_DECAY, BETAS, EPSILON = 1e-4, 0.01, (0.9, 0.98), 1e-8
NEEDED_GIB = 14
# Of 1000 captions so many have that many tokens, start and end included, in XLM-R's vocabulary: test captions of
# xFlickr&CO (de en es id ja ru tr zh) and Multi30K (cs fr), cleaned, cut at 40, every language with equal weight
LENGTHS = {5: 1, 6: 3, 7: 5, 8: 10, 9: 19, 10: 27, 11: 42, 12: 54, 13: 64, 14: 75, 15: 72, 16: 72, 17: 68, 18: 63}
LENGTHS |= {19: 58, 20: 51, 21: 42, 22: 39, 23: 33, 24: 29, 25: 26, 26: 21, 27: 16, 28: 15, 29: 12, 30: 11, 31: 9}
LENGTHS |= {32: 8, 33: 8, 34: 5, 35: 5, 36: 5, 37: 4, 38: 4, 39: 3, 40: 23}


# --- the batch ----------------------------------------------------------------------------------------------------


def make_batch(
    config, seed: int, padded: int | None = None, num_images: int = NUM_IMAGES, texts_per_image: int = TEXTS_PER_IMAGE
) -> dict[str, torch.Tensor]:
    """A batch of random images and random token ids, of lengths as captions have them.

    Args:
        config: a `CCRkConfig`.
        seed: of the numbers; with the same seed, batches differ in their padding only.
        padded: texts are padded to this length, by default to the longest of the batch.
        num_images: B.
        texts_per_image: K.

    Returns:
        What the trainer gives the model: images, ids, mask, `image_index`, masked ids and their labels, and the keys
        of dropout, by which it does not depend on how a batch is cut (the twin takes the global generator).
    """
    from ccrk.masking_ccrk import MaskingRules, mask_tokens

    generator = torch.Generator().manual_seed(seed)
    text, num_texts = config.text_config, num_images * texts_per_image
    weights = torch.tensor(list(LENGTHS.values()), dtype=torch.float)
    drawn = torch.multinomial(weights, num_texts, replacement=True, generator=generator)
    lengths = torch.tensor(list(LENGTHS))[drawn]
    mask = (torch.arange(PADDED_LENGTH) < lengths[:, None]).long()
    ids = torch.randint(5, text.vocab_size - 1, mask.shape, generator=generator)
    ids[:, 0] = text.bos_token_id
    ids[torch.arange(num_texts), lengths - 1] = text.eos_token_id
    ids = ids.masked_fill(mask == 0, text.pad_token_id)
    rules = MaskingRules(text.vocab_size - 1, text.vocab_size, max_masks=MASK_SLOTS)
    masked_ids, labels = mask_tokens(ids, mask, rules, generator)
    length = padded or int(lengths.max())
    size = config.vision_config.image_size
    return {
        "pixel_values": torch.randn(num_images, 3, size, size, generator=generator),
        "draw_keys": torch.randint(2**62, (num_images,), generator=generator),
        "image_index": torch.arange(num_images).repeat_interleave(texts_per_image),
        "input_ids": ids[:, :length],
        "attention_mask": mask[:, :length],
        "masked_input_ids": masked_ids[:, :length],
        "mlm_labels": labels[:, :length],
    }


# --- the plain twin -----------------------------------------------------------------------------------------------


def run_layers(layers, hidden_states: torch.Tensor, mask: torch.Tensor, images: torch.Tensor | None = None):
    """Layers over padded texts (N, L, hidden), each with the image tokens (N, 1 + P, width) of its own text."""
    hidden = ((1.0 - mask.float()) * -10000.0)[:, None, None, :]
    for layer in layers:
        pair = (None, None) if images is None else layer.crossattention.self.keys_values(images)
        hidden_states = layer(hidden_states, hidden, *pair)
    return hidden_states


def twin_contrastive(logits: torch.Tensor, texts_per_image: int) -> torch.Tensor:
    """The 1-to-K loss with a matrix of labels that a loop fills in."""
    labels = torch.zeros_like(logits)
    for image in range(len(logits)):
        labels[image, image * texts_per_image : (image + 1) * texts_per_image] = 1
    to_text = -(nn.functional.log_softmax(logits, dim=1) * labels).sum(1).mean()
    to_image = -(nn.functional.log_softmax(logits.t(), dim=1) * labels.t()).sum(1).mean()
    return (to_text + to_image) / 2 / texts_per_image


@torch.no_grad()
def twin_sampling(logits: torch.Tensor, texts_per_image: int) -> tuple[list[int], list[int], list[int]]:
    """Positive text, negative image and negative text of every image, one `multinomial().item()` after the other."""
    num_images = len(logits)
    for_images = logits.softmax(1) + 1e-5
    for_texts = logits.t().softmax(1) + 1e-5
    positives = []
    for image in range(num_images):
        own = slice(image * texts_per_image, (image + 1) * texts_per_image)
        weights = for_images.max() + 1e-5 - for_images[image, own]
        positives.append(own.start + torch.multinomial(weights, 1).item())
    for image in range(num_images):
        own = slice(image * texts_per_image, (image + 1) * texts_per_image)
        for_images[image, own] = 0
        for_texts[own, image] = 0
    negative_images = [torch.multinomial(for_texts[text], 1).item() for text in positives]
    negative_texts = [torch.multinomial(for_images[image], 1).item() for image in range(num_images)]
    return positives, negative_images, negative_texts


def slots(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked positions (T, 12), filled up with 0, and their ids, filled up with -100."""
    positions = torch.zeros(len(labels), MASK_SLOTS, dtype=torch.long)
    ids = torch.full_like(positions, -100)
    for row, row_labels in enumerate(labels):
        places = (row_labels != -100).nonzero().flatten()
        positions[row, : len(places)] = places
        ids[row, : len(places)] = row_labels[places]
    return positions, ids


def twin_losses(model, batch: dict[str, torch.Tensor], pairs=None) -> dict[str, torch.Tensor]:
    """The three losses by the authors' protocol, from the layers of a `CCRkForPreTraining` with eager attention.

    Args:
        model: the model.
        batch: from `make_batch` with `padded`; as many texts for every image, image by image.
        pairs: positive texts, negative images and negative texts; drawn by default.

    Returns:
        `contrastive`, `matching` and `mlm`.
    """
    parts, mask = model.ccrk, batch["attention_mask"]
    with torch.no_grad():
        parts.temperature.clamp_(*model.config.temperature_range)
    images = parts.vision_model(batch["pixel_values"])
    texts = run_layers(parts.text_model.layer, parts.text_model.embeddings(batch["input_ids"]), mask)
    image_embeds = nn.functional.normalize(parts.visual_projection(images[:, 0]), dim=-1)
    text_embeds = nn.functional.normalize(parts.text_projection(texts[:, 0]), dim=-1)
    logits = image_embeds @ text_embeds.t() / parts.temperature
    texts_per_image = len(texts) // len(images)
    positives, negative_images, negative_texts = pairs or twin_sampling(logits, texts_per_image)

    def stack(tensor, rows):
        return torch.stack([tensor[row] for row in rows])

    fusion, positive_mask = parts.fusion_model.layer, stack(mask, positives)
    matched = run_layers(fusion, stack(texts, positives), positive_mask, images)[:, 0]
    unmatched = run_layers(
        fusion,
        torch.cat([stack(texts, positives), stack(texts, negative_texts)]),
        torch.cat([positive_mask, stack(mask, negative_texts)]),
        torch.cat([stack(images, negative_images), images]),
    )[:, 0]
    labels = torch.cat([torch.ones(len(images)), torch.zeros(2 * len(images))]).long()
    matching = nn.functional.cross_entropy(parts.itm_head(torch.cat([matched, unmatched])), labels)

    hidden_states = parts.text_model.embeddings(stack(batch["masked_input_ids"], positives))
    hidden_states = run_layers(parts.text_model.layer, hidden_states, positive_mask)
    hidden_states = run_layers(fusion, hidden_states, positive_mask, images)
    positions, ids = slots(stack(batch["mlm_labels"], positives))
    index = positions[..., None].expand(-1, -1, hidden_states.shape[-1])
    scores = model.mlm_head(hidden_states.gather(1, index))
    mlm = nn.functional.cross_entropy(scores.flatten(0, 1), ids.flatten(), ignore_index=-100)
    return {"contrastive": twin_contrastive(logits, texts_per_image), "matching": matching, "mlm": mlm}


class TwinAdamW(torch.optim.Optimizer):
    """AdamW as the authors have it, from transformers 4: tensor by tensor, epsilon beside the uncorrected root."""

    def __init__(self, params, lr: float, betas: tuple[float, float], eps: float):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every tensor that has a gradient."""
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                state["mean"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                root = state["square"].sqrt().add_(group["eps"])
                corrected = rate * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                parameter.addcdiv_(state["mean"], root, value=-corrected)
                if group["weight_decay"]:
                    parameter.add_(parameter, alpha=-rate * group["weight_decay"])


# --- one variant --------------------------------------------------------------------------------------------------


def build(variant: str):
    """The model of the paper's size with seeded random weights, in training, and its optimizer."""
    import timm

    timm.layers.set_fused_attn(variant != "twin")
    from ccrk import CCRkConfig, CCRkForPreTraining

    torch.manual_seed(0)
    model = CCRkForPreTraining(CCRkConfig(contrastive_variant="official")).train()
    if variant == "twin":
        model.config.text_config._attn_implementation = "eager"
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if variant == "twin":
        return model, TwinAdamW(groups, LEARNING_RATE, BETAS, EPSILON)
    return model, torch.optim.AdamW(groups, LEARNING_RATE, BETAS, EPSILON, fused=True)


def train_step(variant: str, model, optimizer, batch: dict[str, torch.Tensor], marks: dict[str, float]) -> float:
    """One step; `marks` gets the CPU seconds at the end of each phase. Returns the loss."""
    if variant == "twin":
        loss = sum(twin_losses(model, batch).values())
        optimizer.zero_grad()
    else:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "ours-bf16"):
            loss = model(**batch, return_loss=True).loss
    marks["forward"] = cpu_seconds()
    loss.backward()
    marks["backward"] = cpu_seconds()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    marks["clip"] = cpu_seconds()
    optimizer.step()
    if variant != "twin":
        optimizer.zero_grad()
    marks["optimizer"] = cpu_seconds()
    return loss.item()


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_variant(variant: str, steps: int, threads: int, profile: bool = False) -> None:
    """Warms up, measures, prints one line of JSON."""
    torch.set_num_threads(threads)
    model, optimizer = build(variant)
    measured = []
    for step in range(steps + 1):
        batch = make_batch(model.config, seed=step, padded=PADDED_LENGTH if variant == "twin" else None)
        torch.manual_seed(step)
        begun, marks = time.perf_counter(), {"start": cpu_seconds()}
        loss = train_step(variant, model, optimizer, batch, marks)
        wall, ends = time.perf_counter() - begun, list(marks.values())
        phases = {name: end - start for name, start, end in zip(list(marks)[1:], ends[:-1], ends[1:], strict=True)}
        measured.append({"cpu": ends[-1] - ends[0], "wall": wall, "loss": loss, **phases})
    if profile:
        with torch.profiler.profile(profile_memory=True, record_shapes=True) as record:
            train_step(variant, model, optimizer, batch, {})
        for by, shapes in (("self_cpu_time_total", False), ("self_cpu_time_total", True)):
            print(record.key_averages(group_by_input_shape=shapes).table(sort_by=by, row_limit=45))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"steps": measured[1:], "peak": peak, "parameters": parameters}))


# --- the comparison -----------------------------------------------------------------------------------------------


def wait_for_memory() -> None:
    """Returns when so much memory is free; says that it waits."""
    told = False
    while Path("/proc/meminfo").is_file():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        if int(lines["MemAvailable"].split()[0]) / 2**20 > NEEDED_GIB:
            return
        if not told:
            print(f"waiting for {NEEDED_GIB} GiB of free memory", flush=True)
        told = True
        time.sleep(5)


def measure(variant: str, steps: int, threads: int, profile: bool = False) -> dict:
    """Runs a variant in a process of its own."""
    wait_for_memory()
    command = [sys.executable, "-P", __file__, "--variant", variant, "--steps", str(steps), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command += ["--profile"] * profile
    output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    *tables, last = output.splitlines()
    print(*tables, sep="\n", end="\n" if tables else "")
    return json.loads(last)


def report(runs: dict[str, list[dict]]) -> None:
    """Prints medians over all measured steps, their spread, and ratios to the first variant."""
    print(f"{'variant':10} {'CPU s':>6} {'from-to':>11} {'wall s':>7} {'peak GiB':>8}   ratio: CPU  peak   phases")
    first = None
    for variant, results in runs.items():
        steps = [step for result in results for step in result["steps"]]
        median = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
        peak = statistics.median(result["peak"] for result in results)
        first = first or (median["cpu"], peak)
        spread = f"{min(step['cpu'] for step in steps):.1f}-{max(step['cpu'] for step in steps):.1f}"
        phases = ", ".join(f"{name} {median[name]:.2f}" for name in ("forward", "backward", "clip", "optimizer"))
        print(
            f"{variant:10} {median['cpu']:6.2f} {spread:>11} {median['wall']:7.2f} {peak:8.2f}   "
            f"{median['cpu'] / first[0]:10.3f} {peak / first[1]:5.3f}   {phases}"
        )


def main() -> None:
    """Runs the variants in turn, round after round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each variant")
    parser.add_argument("--steps", type=int, default=2, help="measured steps in each, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="ratios: to the first")
    parser.add_argument("--profile", action="store_true", help="print where the time of one more step goes")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        run_variant(args.variant, args.steps, args.threads, args.profile)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}")
    runs: dict[str, list[dict]] = {variant: [] for variant in args.variants}
    for number in range(args.rounds):
        for variant in args.variants:
            result = measure(variant, args.steps, args.threads, args.profile)
            runs[variant].append(result)
            seconds = ", ".join(f"{step['cpu']:.2f}" for step in result["steps"])
            print(f"round {number + 1} {variant}: CPU s {seconds}; peak {result['peak']:.2f} GiB", flush=True)
    print(
        f"{result['parameters']} parameters; {args.rounds} rounds of {args.steps} steps after one to warm up; medians:"
    )
    report(runs)


if __name__ == "__main__":
    main()
