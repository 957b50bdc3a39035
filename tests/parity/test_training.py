"""The authors' optimizer steps against those of our trainer: groups, rates, norms, losses, weights.

Their `optim.torch` set: four steps of AdamW on one batch with pinned draws, the model in evaluation mode, gradients
clipped at 1, a linear schedule of ten steps with two of warm-up. Run as a script it prints the differences.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback

from ccrk import CCRkTrainer, CCRkTrainingArguments
from ccrk.conversion_ccrk import official_config, read_checkpoint, read_official_config, rename
from ccrk.trainer.parameters import decays, is_new

TESTS = Path(__file__).parents[1]


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(f"ccrk_tests_{path.parent.name}_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = _load(TESTS / "parity" / "test_parity.py")
tiny = _load(TESTS / "trainer" / "tiny.py")
TOLERANCE = (1e-5, 0.0)
NORM = (0.0, 1e-5)  # norms are about 13, where float32 numbers lie 1e-6 apart
STEPS = 4
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")


class PinnedTrainer(CCRkTrainer):
    """The trainer with the model in evaluation mode, as the reference was, and its losses written down."""

    losses: list[float]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss without dropout."""
        loss = super().compute_loss(model.eval(), inputs, return_outputs, num_items_in_batch)
        self.losses.append(loss.detach().clone())
        return loss


class Steps(TrainerCallback):
    """Writes down rates and norms before each step and weights after it; ends after so many steps."""

    def __init__(self, steps: int = STEPS):
        self.steps, self.rates, self.norms, self.weights = steps, [], [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Called with the gradients already clipped."""
        self.rates.append([group["lr"] for group in getattr(optimizer, "optimizer", optimizer).param_groups])

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Called after the optimizer's step."""
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_step_end(self, args, state, control, **kwargs):
        """Ends the run."""
        control.should_training_stop = state.global_step >= self.steps

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keeps the norm of the gradients before they were clipped."""
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))


def make_trainer(model, batch: dict, out: Path, callback: Steps, **options) -> PinnedTrainer:
    """A trainer that takes the same batch at every step, with the arguments of the reference."""
    arguments = {
        "per_device_train_batch_size": len(batch["pixel_values"]),
        "max_steps": 10,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "new_layer_multiplier": 2.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "decay_rules": "official",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = PinnedTrainer(
        model=model,
        args=CCRkTrainingArguments(str(out), **(arguments | options)),
        train_dataset=[{"row": row} for row in range(len(batch["pixel_values"]))],
        data_collator=lambda rows: dict(batch),
        processing_class=tiny.make_processor(),
        callbacks=[callback],
    )
    trainer.losses = []
    trainer.remove_callback(PrinterCallback)
    return trainer


def our_groups(trainer: CCRkTrainer) -> dict[tuple[float, float], set[str]]:
    """Names of parameters by (weight decay, factor of the learning rate)."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {
        (group["weight_decay"], group["lr"] / trainer.args.learning_rate): {names[id(p)] for p in group["params"]}
        for group in trainer.create_optimizer().param_groups
    }


def has_a_true_gradient(name: str) -> bool:
    """Whether more than rounding noise moves a weight: a key's bias shifts all scores of a query alike."""
    return not name.endswith(".key.bias")


def without_keys(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A Swin's joint bias without the part that belongs to the keys."""
    if not name.endswith("qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def trained_rows(reference, ext: dict[str, torch.Tensor], out: Path, optimizer: str) -> Iterator:
    """`optim.torch.*`: four steps."""
    pairs = parity.pairs_of(reference.tensors, "itm_", 3, ("positive_text", "negative_image", "negative_text"))
    callback = Steps()
    trainer = make_trainer(
        reference.model, {**reference.batch, "matching_pairs": pairs}, out, callback, optim=optimizer
    )
    trainer.train()
    groups = trainer.optimizer.param_groups
    order = {key: place for place, key in enumerate((decay, new) for new in (False, True) for decay in (True, False))}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    columns = [order[group["weight_decay"] > 0, is_new(names[id(group["params"][0])])] for group in groups]
    rates = torch.tensor(callback.rates, dtype=torch.float64)[:, torch.tensor(columns).argsort()]
    prefix = "optim.torch."
    yield parity.compare(prefix + "lrs", rates, ext[prefix + "lrs"], (1e-12, 0.0))
    yield parity.compare(prefix + "losses", torch.stack(trainer.losses), ext[prefix + "losses"], TOLERANCE)
    yield parity.compare(prefix + "grad_norms", torch.tensor(callback.norms), ext[prefix + "grad_norms"], NORM)
    layers = reference.config.num_text_layers
    for key in sorted(key for key in ext if key.startswith((prefix + "after3.norm.", prefix + "after4."))):
        steps, _, theirs = key.removeprefix(prefix + "after").partition(".")
        name = rename(theirs.removeprefix("norm."), layers, "ccrk.")
        if not has_a_true_gradient(name) or (name.endswith("qkv.bias") and "norm." in theirs):
            continue  # of a joint bias only the norm is there, the keys' noise in it
        ours = callback.weights[int(steps) - 1][name]
        ours = ours.norm() if theirs.startswith("norm.") else without_keys(name, ours)
        yield parity.compare(key, ours, without_keys(name, ext[key]), TOLERANCE)


@pytest.fixture(scope="module")
def golden_folder(shared) -> Path:
    return shared / "reference" / "golden_ext"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_four_steps(golden_folder, tmp_path, optimizer):
    ext = load_file(golden_folder / "ext.safetensors")
    parity.check(trained_rows(parity.Reference(golden_folder), ext, tmp_path, optimizer))


def test_groups_are_the_authors(golden_folder, tmp_path):
    reference = parity.Reference(golden_folder)
    trainer = make_trainer(reference.model, reference.batch, tmp_path, Steps())
    expected = {}
    for group in json.loads((golden_folder / "meta.json").read_text())["optimizer_groups"]:
        names = {rename(name, reference.config.num_text_layers, "ccrk.") for name in group["names"]}
        expected[group["weight_decay"], float(group["lr_mult"])] = names
    assert our_groups(trainer) == expected


def test_groups_by_the_rules_of_the_authors_names():
    """Their rules applied to their names, at the size that is part of the checkout."""
    folder = TESTS / "fixtures" / "official_tiny"
    config = official_config(read_official_config(folder / "config.json"))
    state = read_checkpoint(folder / "ccrk_official.th")
    spared = ("bias", "LayerNorm.bias", "LayerNorm.weight", "norm.bias", "norm.weight")
    spared += ("norm1.bias", "norm1.weight", "norm2.bias", "norm2.weight")
    seen = set()
    for theirs in state:
        name = rename(theirs, config.num_text_layers, "ccrk.")
        if name is None or not state[theirs].is_floating_point() or theirs.endswith("attn_mask"):
            continue
        new = any(part in theirs for part in ("crossattention", "text_proj", "vision_proj", "itm_head", "temp"))
        decayed = not any(part in theirs for part in spared)
        assert (is_new(name), decays(name, set(), "official")) == (new, decayed), theirs
        seen.add((new, decayed))
    assert len(seen) == 4


def test_steps_from_the_weights_of_the_checkout(tmp_path):
    """The trainer's steps are those of AdamW written out by hand: rates, clipping, decay after the official rules."""
    reference = parity.Reference(TESTS / "fixtures" / "official_tiny")
    by_hand = parity.Reference(TESTS / "fixtures" / "official_tiny").model
    pairs = parity.pairs_of(reference.tensors, "itm_", 3, ("positive_text", "negative_image", "negative_text"))
    batch = {**reference.batch, "matching_pairs": pairs}
    callback = Steps(3)
    trainer = make_trainer(reference.model, batch, tmp_path, callback)
    trainer.train()
    first, second = ({n: torch.zeros_like(p) for n, p in by_hand.named_parameters()} for _ in range(2))
    for step, rate in enumerate((0.0, 5e-4, 1e-3), 1):
        by_hand.zero_grad()
        loss = by_hand(**batch).loss
        loss.backward()
        loss = loss.detach()
        norm = torch.stack([p.grad.norm() for p in by_hand.parameters()]).norm()
        assert abs(float(trainer.losses[step - 1] - loss)) < 1e-5
        assert abs(callback.norms[step - 1] - float(norm)) < 1e-4
        for name, p in by_hand.named_parameters():
            grad = p.grad / max(1.0, float(norm) + 1e-6)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.98 * second[name] + 0.02 * grad**2
            mean, spread = first[name] / (1 - 0.9**step), (second[name] / (1 - 0.98**step)).sqrt()
            lr = rate * (2 if is_new(name) else 1)
            decay = 0.01 if decays(name, set(), "official") else 0.0
            with torch.no_grad():
                p.mul_(1 - lr * decay).sub_(lr * mean / (spread + 1e-8))
        for name, p in by_hand.named_parameters():
            if has_a_true_gradient(name):
                ours = without_keys(name, callback.weights[step - 1][name])
                torch.testing.assert_close(ours, without_keys(name, p.detach()), atol=1e-5, rtol=0)


def allowed(tolerance: tuple[float, float]) -> str:
    """A tolerance as it is read."""
    return f"{tolerance[0]:g}" if tolerance[0] else f"{tolerance[1]:g} of the value"


def main() -> int:
    """Prints the largest differences of each kind in Markdown."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CCRK_SHARED", "../shared")) / "reference"
    folder, failed = folder / "golden_ext", 0
    ext = load_file(folder / "ext.safetensors")
    print("| optimizer | tensors | number | largest difference | allowed |\n| --- | --- | --- | --- | --- |")
    for optimizer in OPTIMIZERS:
        kinds: dict[str, list] = {}
        with tempfile.TemporaryDirectory() as out:
            for row in trained_rows(parity.Reference(folder), ext, Path(out), optimizer):
                kind = row.name.removeprefix("optim.torch.")
                kind = "after3.norm.*" if kind.startswith("after3") else kind
                kinds.setdefault("after4.*" if kind.startswith("after4") else kind, []).append(row)
        for kind, rows in kinds.items():
            failed += sum(not row.ok for row in rows)
            largest = max(row.difference for row in rows)
            print(f"| `{optimizer}` | `{kind}` | {len(rows)} | {largest:.1e} | {allowed(rows[0].tolerance)} |")
            for row in rows:
                if not row.ok:
                    print(f"OUTSIDE {row.name} {row.difference:.2e}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
