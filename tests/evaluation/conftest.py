"""Rows, a processor and models as the trainer's tests have them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location(
    "trainer_conftest", Path(__file__).parent.parent / "trainer" / "conftest.py"
)
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
rows, processor, make_model = fixtures.rows, fixtures.processor, fixtures.make_model
