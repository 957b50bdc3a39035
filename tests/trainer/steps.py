"""Takes two training steps for each of several settings and writes down their gradients; one process or several.

`torchrun --nproc_per_node N steps.py OUT` for N processes, `python steps.py OUT` for one. Whatever N, a step sees the
same global batches: eight rows, then the four that are left.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import tiny
from safetensors.torch import save_file
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from ccrk import CCRkForPreTraining, CCRkModel, CCRkTrainer, CCRkTrainingArguments

GLOBAL_BATCH = 8
# name -> arguments of the trainer; all with dropout, stochastic depth, augmentation, masks and ragged captions
CASES = {
    "official": {"contrastive_variant": "official"},
    "balanced": {"contrastive_variant": "balanced", "positive_choice": "similarity"},
    "one-to-one": {"contrastive_variant": "one-to-one", "texts_per_image": 1, "negative_strategy": "random"},
    "sigmoid": {"contrastive_variant": "sigmoid", "negative_strategy": "hardest", "positive_choice": "uniform"},
    "guided": {"contrastive_variant": "balanced", "english_guidance": 0.5, "source_weights": ["machine=0.3"]},
    "tiled": {"contrastive_variant": "balanced", "tiled_contrastive": True, "matching_images": 5},
    "tiled-sigmoid": {"contrastive_variant": "sigmoid", "tiled_contrastive": True},
    "sampled": {"texts_per_image": 2, "language_sampling": "balanced", "negative_ramp": 0.5},
    "matching": {"contrastive_weight": 0.0, "mlm_weight": 0.0},
    "masked": {"contrastive_weight": 0.0, "matching_weight": 0.0},
    "contrastive": {"matching_weight": 0.0, "mlm_weight": 0.0},
    "accumulated": {"gradient_accumulation_steps": 2},
    "checkpointing": {"activation_checkpointing": True},
    "retrieval": {"model_class": "CCRkModel"},
    "stream": {"stream": True},
    "broken": {"broken": (1, 2, 4, 7)},
}


class Stream(IterableDataset):
    """Rows that can only be read in their order."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Gradients(TrainerCallback):
    """Writes down the gradients before each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Called by the trainer."""
        plain = getattr(model, "module", model)
        found = {name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None}
        self.steps.append(found)


def rows_of(broken=()):
    """Twelve rows; some captions are machine translations, two photos are the same."""
    rows = tiny.make_rows()
    for place, row in enumerate(rows):
        sources = ["human", "machine", "human", "human"]
        row["captions"] = [dict(caption, source=sources[i]) for i, caption in enumerate(row["captions"])]
        if place in broken:
            row["image"] = b"no photo"
    rows[5]["image_id"] = rows[3]["image_id"]
    return rows


def run(name: str, out: Path, world_size: int, mini_batch_size: int | None = None):
    """Two steps of a case; returns their gradients, losses and what was left out."""
    options = dict(CASES[name])
    model_class = {"CCRkModel": CCRkModel}.get(options.pop("model_class", ""), CCRkForPreTraining)
    stream, broken = options.pop("stream", False), options.pop("broken", ())
    accumulated = options.get("gradient_accumulation_steps", 1)
    processor = tiny.make_processor()
    model = tiny.make_model(
        processor,
        model_class,
        {"drop_path_rate": 0.3, "ls_init_value": 1.0},  # at timm's 1e-6 no dropped layer would be missed
        {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
        projection_dropout=0.2,
    )
    args = CCRkTrainingArguments(
        str(out / name),
        per_device_train_batch_size=GLOBAL_BATCH // accumulated // world_size,
        max_steps=2,
        learning_rate=1e-4,
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        augmentation="finetune",
        mini_batch_size=mini_batch_size,
        seed=3,
        **options,
    )
    rows = rows_of(broken)
    callback = Gradients()
    trainer = CCRkTrainer(
        model=model,
        args=args,
        train_dataset=Stream(rows) if stream else rows,
        processing_class=processor,
        callbacks=[callback],
    )
    trainer.train()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    return callback.steps, losses, trainer.all_skipped()


def main(out: Path) -> None:
    """Runs every case and writes `NAME.safetensors`."""
    torch.set_num_threads(1)
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    mini_batch_size = int(os.environ.get("MINI_BATCH_SIZE", 0)) or None
    for name in CASES:
        steps, losses, skipped = run(name, out, world_size, mini_batch_size)
        if rank == 0:
            tensors = {f"{i}.{key}": value for i, found in enumerate(steps) for key, value in found.items()}
            for i, entry in enumerate(losses):
                kept = {key: value for key, value in entry.items() if key.startswith("loss")}
                tensors |= {f"{i}.log.{key}": torch.tensor(float(value)) for key, value in kept.items()}
            tensors |= {f"skipped.{cause}": torch.tensor(count) for cause, count in skipped.items()}
            save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
