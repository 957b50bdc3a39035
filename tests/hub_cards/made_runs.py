"""Run files for tests of cards, with figures that the metrics themselves compute from drawn ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ccrk.metrics.consistency import consistency
from ccrk.metrics.mrv.rank_variation import mean_rank_variance

CAPTION, PHOTO, FOLDER = "a secret caption", "photo-id-17", "/home/somebody/photos"


def make_result(languages=("de", "en", "pt-BR"), count: int = 40, seed: int = 0) -> dict:
    """One result of an evaluation, as `ccrk evaluate` writes it: ranks are drawn, figures are of them."""
    rng = np.random.default_rng(seed)
    ranks = {tag: rng.geometric(0.7 - 0.1 * n, count) - 1 for n, tag in enumerate(languages)}
    found = {tag: [rng.permutation(count)[:10].tolist() for _ in range(count)] for tag in languages}
    recall = {
        tag: {f"{way}@{k}": float((of_tag < k).mean()) for way in ("ir", "tr") for k in (1, 5, 10)}
        | {"queries": count}
        for tag, of_tag in ranks.items()
    }
    several = len(languages) > 1
    return {
        "name": "my-model",
        "benchmark": None,
        "part": "data",
        "protocol": "ccrk",
        "images": count,
        "texts": count * len(languages),
        "languages": recall,
        "mrv": mean_rank_variance({tag: of_tag.tolist() for tag, of_tag in ranks.items()}) if several else None,
        "skipped": {"images": 2, "captions": 4, "examples": [f"{FOLDER}/broken.jpg"]},
        "items": {
            "image_ids": [PHOTO, *(f"photo{n}" for n in range(1, count))],
            "images": [f"{FOLDER}/{n}.jpg" for n in range(count)],
            "texts": {tag: [CAPTION] * count for tag in languages},
            "ranks": {tag: of_tag.tolist() for tag, of_tag in ranks.items()},
            "found": found,
        },
        "consistency": consistency(found, count, k=10) if several else None,
        "prevalence": None,
        "settings": {
            "model": f"{FOLDER}/my-model",
            "data": [f"{FOLDER}/val.jsonl"],
            "cache": f"{FOLDER}/cache",
            "ties": "pessimistic",
            "rerank": 0,
            "bf16": False,
            "wall_s": 12.5,
            "cpu_s": 20.25,
        },
    }


def training_run() -> dict:
    """What a training writes about itself."""
    return {
        "kind": "training",
        "started_from": ["timm/resnet10t.c3_in1k", f"{FOLDER}/my-tower"],
        "data": {"rows": 1200, "captions": {"de": 1200, "en": 2400}, "skipped": {"image file missing": 3}},
        "model": {"parameters": 2130139, "trained": 1000},
        "objectives": [{"name": "contrastive (balanced)", "weight": 1.0}],
        "steps": 24,
        "epochs": 2.0,
        "batch": {"images": 32, "processes": 1},
        "learning_rate": 1e-4,
        "seed": 0,
        "cost": {"wall_s": 65.9, "cpu_s": 9.2, "peak_rss_mib": 1207.9, "processes": 1, "device": "processors alone"},
        "versions": {"ccrk": "0.1.0"},
    }


def write_runs(folder: Path, *results: dict) -> list[Path]:
    """`evaluation.json` and `training_run.json` in a folder."""
    files = {"evaluation.json": list(results) or [make_result()], "training_run.json": training_run()}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return [folder / name for name in files]
