"""What a training was, as a file for programs: `training_run.json`, of which the model card is made."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ccrk.trainer.summary import TrainingSummaryCallback

PACKAGES = ("ccrk", "torch", "transformers", "timm", "accelerate", "peft")
OBJECTIVES = {
    "contrastive_weight": "contrastive",
    "matching_weight": "image-text matching",
    "mlm_weight": "masked language",
}


def training_facts(trainer, started_from: list[str] | None = None, files: list[str] | None = None) -> dict[str, Any]:
    """The facts of the training that a trainer has done; its steps are 0 if it has not trained.

    Args:
        trainer: a [`CCRkTrainer`].
        started_from: models or towers that the weights are from; by default what the configuration knows.
        files: names of the data.

    Returns:
        `kind` ("training"), `started_from`, `data` (see `data_facts`), `model` (`parameters`, `trained`),
        `objectives` (`name`, `weight`), `steps`, `epochs`, `batch` (`images` of a step, `processes`),
        `learning_rate`, `weight_decay`, `schedule`, `precision`, `seed`, `frozen`, `lora`, `cost` (`wall_s`, `cpu_s`,
        `peak_rss_mib`, `processes`, `device`) and `versions`.
    """
    args, state, config = trainer.args, trainer.state, trainer.model.config
    if started_from is None:
        started_from = [getattr(config, "_name_or_path", "")]
    parameters = list(trainer.model.parameters())
    return {
        "kind": "training",
        "started_from": [name_of(one) for one in started_from if one],
        "data": {**data_facts(trainer.train_dataset), **({"files": [name_of(one) for one in files]} if files else {})},
        "model": {
            "parameters": sum(one.numel() for one in parameters),
            "trained": sum(one.numel() for one in parameters if one.requires_grad),
        },
        "objectives": objectives(config),
        "steps": state.global_step,
        "epochs": None if state.epoch is None else round(float(state.epoch), 4),
        "batch": {
            "images": args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "processes": args.world_size,
        },
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "precision": "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32",
        "seed": args.seed,
        "frozen": None if args.freeze == "none" else args.freeze,
        "lora": args.lora,
        "cost": cost(trainer),
        "versions": {"Python": platform.python_version(), **versions()},
    }


def objectives(config) -> list[dict[str, Any]]:
    """Losses that have a weight, the contrastive one with its variant."""
    found = []
    for field, name in OBJECTIVES.items():
        weight = getattr(config, field, 0)
        if weight:
            variant = f" ({config.contrastive_variant})" if field == "contrastive_weight" else ""
            found.append({"name": name + variant, "weight": weight})
    return found


def data_facts(dataset) -> dict[str, Any]:
    """`rows`, `captions` (language -> number) and `skipped` (cause -> number) of a data set; `kind` of a stream.

    Captions are counted where rows are at hand without opening photos.
    """
    while hasattr(dataset, "dataset"):  # cached or otherwise wrapped rows
        dataset = dataset.dataset
    if dataset is None:
        return {}
    skipped = getattr(dataset, "skipped", None)
    facts: dict[str, Any] = {}
    if isinstance(skipped, Mapping) and skipped:
        facts["skipped"] = {str(cause): int(number) for cause, number in skipped.items()}
    if not hasattr(dataset, "__len__"):
        return {"kind": "a stream, of which nothing is counted beforehand", **facts}
    rows = dataset if isinstance(dataset, list) else getattr(dataset, "rows", None)
    if rows is None and "captions" in (getattr(dataset, "column_names", None) or ()):
        rows = dataset.select_columns("captions")
    if rows is not None:
        counts = Counter(caption["language"] for row in rows for caption in row["captions"])
        facts["captions"] = dict(sorted(counts.items()))
    return {"rows": len(dataset), **facts}


def cost(trainer) -> dict[str, Any]:
    """Time and memory, over all parts of a run that was resumed where [`TrainingSummaryCallback`] watched it."""
    watching = [one for one in trainer.callback_handler.callbacks if isinstance(one, TrainingSummaryCallback)]
    spent = dict(watching[0].spent) if watching else {}
    if not spent.get("wall_s"):
        times = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
        spent = {"wall_s": times[-1]} if times else {}
    device = trainer.args.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processors alone"
    rounded = {key: round(value, 1) for key, value in spent.items() if value}
    return {**rounded, "processes": trainer.args.world_size, "device": name}


def versions() -> dict[str, str]:
    """Of the packages that a training depends on, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def name_of(source: str) -> str:
    """Of a file or folder its name, told now that it can be told from a Hub id, which stays as it is."""
    return Path(source).resolve().name if Path(source).exists() else source
