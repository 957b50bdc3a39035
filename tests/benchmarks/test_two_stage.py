"""The twin of the two-stage benchmark scores as ours does, so the comparison is one of equals."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from ccrk import CCRkConfig, CCRkModel

FOLDER = Path(__file__).resolve().parent


def load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_twin_and_ours_score_alike():
    script = load("two_stage", FOLDER.parents[1] / "benchmarks" / "two_stage.py")
    small = load("test_train_step", FOLDER / "test_train_step.py")
    torch.manual_seed(0)
    sizes = {"num_text_layers": 2, "num_fusion_layers": 2, "projection_dim": 12, "initializer_range": 0.2}
    model = CCRkModel(CCRkConfig(vision_config=small.VISION, text_config=dict(small.TEXT), **sizes)).eval()
    numbers = script.Numbers(model.config, script.Setting(7, 32, 40, None))
    ours = script.our_scores(model, numbers, False, top=3)
    model.config.text_config._attn_implementation = "eager"
    twin = script.twin_scores(model, numbers, 40, top=3)
    for name in ("t2i", "i2t"):
        assert (ours[name] != script.MISS).sum() == 3 * 7
        assert torch.equal(ours[name] == script.MISS, twin[name] == script.MISS)
        assert ours[name] == pytest.approx(twin[name], abs=1e-5)
        assert twin[name][twin[name] != script.MISS].std() > 0.01
    assert "equal first 1.000" in script.compare(ours, twin)
