"""Rows, a processor and models as the trainer's tests have them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "trainer_conftest", Path(__file__).parent.parent / "trainer" / "conftest.py"
)
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
rows, processor, make_model = fixtures.rows, fixtures.processor, fixtures.make_model


@pytest.fixture
def lively_model(make_model):
    """A model that tells pairs apart; a fresh one scores all alike."""
    model = make_model().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.ccrk.temperature.data.fill_(0.07)
    return model
