"""The tiny model of the pipeline's tests, for the tests that load it elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("ccrk_tests_tiny", Path(__file__).parents[1] / "pipelines" / "tiny.py")


@pytest.fixture(scope="session")
def tiny():
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    return module
