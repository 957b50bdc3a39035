"""One training of a study and what is measured of it; results that accumulate, line by line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from learning import TRUE_ENGLISH, StudyTrainer
from measure import measure
from photos import PhotoBed, PhotoSettings
from plan import merged
from probes import GeometryProbe
from scenes import SceneBed, SceneSettings
from transformers import set_seed

import ccrk
from ccrk import CCRkTrainingArguments

# of every run, unless a study says otherwise
DEFAULTS: dict[str, dict[str, Any]] = {
    "scenes": {
        "train": {
            "max_steps": 400,
            "per_device_train_batch_size": 48,
            "learning_rate": 2e-3,
            "weight_decay": 0.02,
            "train_sampling_strategy": "sequential",  # the pool is in random order; families of twins stay together
            "matching_weight": 0.0,
            "mlm_weight": 0.0,
            "contrastive_variant": "balanced",
        },
        "model": {},
    },
    "photos": {
        "train": {
            "max_steps": 240,  # 10 times through the 5,993 photos
            "per_device_train_batch_size": 256,
            "learning_rate": 1e-4,
            "new_layer_multiplier": 10.0,
            "weight_decay": 0.05,
            "freeze": "towers",
            "matching_weight": 0.0,
            "contrastive_variant": "balanced",
        },
        "model": {"mlm_weight": 0.0},
    },
}


@dataclass(frozen=True)
class Folders:
    """Where photos and pretrained towers are, and where features are kept.

    Attributes:
        data: folder of `train.jsonl` and photos.
        towers: folder of pretrained towers.
        work: of features.
    """

    data: Path
    towers: Path
    work: Path


@lru_cache(maxsize=1)
def photo_bed(folders: Folders) -> PhotoBed:
    """The photos and their features, read once in a process."""
    return PhotoBed(folders.data, folders.towers, folders.work)


def resolved(bed: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of the bed written out, as they are kept beside a result."""
    full = merged(DEFAULTS[bed], settings)
    full["bed"] = asdict((SceneSettings if bed == "scenes" else PhotoSettings)(**full.get("bed", {})))
    return {name: value for name, value in full.items() if value is not None}


def key_of(bed: str, settings: dict[str, Any], seed: int) -> str:
    """The name of a run: of its settings and seed. Photos, towers, versions and code are not in it."""
    words = json.dumps([bed, resolved(bed, settings), seed], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _arguments(settings: dict[str, Any], seed: int, folder: str) -> CCRkTrainingArguments:
    return CCRkTrainingArguments(
        output_dir=folder,
        warmup_steps=0.05,
        seed=seed,
        save_strategy="no",
        logging_steps=1_000_000,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
        **settings["train"],
    )


def _trainer(model, rows, processor, settings: dict[str, Any], of_bed, arguments, cache=None):
    """A trainer of a run and, where it has one, its probe, which reads the cache, too."""
    trainer = StudyTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)
    trainer.objective, trainer.data_collator.cache = settings.get("objective"), cache
    languages = [*of_bed.languages, *([TRUE_ENGLISH] if of_bed.true_english else [])]
    trainer.data_collator.languages, trainer.data_collator.tags = settings.get("learn", languages), languages
    probe = None
    if settings.get("probe"):
        probe = GeometryProbe(trainer, rows, settings["probe"])
        trainer.add_callback(probe)
    return trainer, probe


def train_and_measure(bed_name: str, settings: dict[str, Any], seed: int, folders: Folders) -> dict[str, Any]:
    """One run, in this process.

    Args:
        bed_name: `scenes` or `photos`.
        settings: `bed` (see `SceneSettings`, `PhotoSettings`), `train` (arguments of the trainer), `model` (of the
            configuration), `objective`, `depths`, `probe` (steps between two looks at the geometry), `kept`, `learn`
            (languages to train on, where they are not all).
        seed: of everything random.
        folders: of data.

    Returns:
        A record: `figures`, `cpu_seconds` of training and of all, settings, seed, versions.
    """
    settings = merged(DEFAULTS[bed_name], settings)
    begun = time.process_time()
    of_bed: Any = (SceneSettings if bed_name == "scenes" else PhotoSettings)(**settings.get("bed", {}))
    if bed_name == "scenes":
        bed: Any = SceneBed()
        set_seed(seed)
        rows, model, processor = bed.start(of_bed, seed)
        for name, value in settings["model"].items():
            setattr(model.config, name, value)
    else:
        bed = photo_bed(folders)
        set_seed(seed)  # after it: the first of a process builds a tower, which draws numbers
        model, processor = bed.model(of_bed, **settings["model"]), bed.processor
        rows = bed.training_rows(of_bed, seed)
    cache = bed.view(model, of_bed, seed) if bed_name == "photos" else None
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(None):
        arguments = _arguments(settings, seed, scratch)
        trainer, probe = _trainer(model, rows, processor, settings, of_bed, arguments, cache)
        started = time.process_time()
        trainer.train()
        trained = time.process_time() - started - (probe.cpu_seconds if probe else 0.0)
    model.eval()
    if bed_name == "scenes":
        features = bed.features(model, processor, of_bed, seed, states=bool(settings.get("depths")))
    else:
        features = bed.features(model, of_bed, states=bool(settings.get("depths")))
    figures = measure(model, features, settings.get("depths", ()), settings.get("kept"))
    figures["temperature"] = model.retriever.temperature.item()
    if probe is not None:
        figures["probe"] = probe.seen
    return {
        "key": key_of(bed_name, settings, seed),
        "bed": bed_name,
        "seed": seed,
        "settings": resolved(bed_name, settings),
        "figures": figures,
        "cpu_seconds": {"training": round(trained, 1), "all": round(time.process_time() - begun, 1)},
        "steps": settings["train"]["max_steps"],
        "versions": versions(),
    }


def versions() -> dict[str, Any]:
    """What a figure depends on beside settings and seed."""
    return {
        "ccrk": ccrk.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "timm": version("timm"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


class Results:
    """A file of records, one line each, that only grows.

    A line that was cut off by a kill is left out when the file is read, and its run is run again.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, dict[str, Any]]:
        """Key -> record."""
        found: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    record = json.loads(line)
                    found[record["key"]] = record
        return found

    def add(self, record: dict[str, Any]) -> None:
        """Writes a record and waits until it is on the disk."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        start = "\n" if text and not text.endswith("\n") else ""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(start + json.dumps(_rounded(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _rounded(value: Any) -> Any:
    """Numbers to six significant digits: what is finer is noise of the processor."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
