"""A tiny model and rows of photos with captions in three languages, ragged."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import pytest

# loaded by path: tests are no package, and processes that tests start load it the same way
_spec = importlib.util.spec_from_file_location("ccrk_tests_tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(_spec)
sys.modules["ccrk_tests_tiny"] = tiny
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def rows():
    """Twelve rows; every third has no French, every fourth two English captions."""
    return tiny.make_rows()


@pytest.fixture(scope="module")
def processor():
    """A processor with a tokenizer of a few words."""
    return tiny.make_processor()


@pytest.fixture
def make_model(processor):
    """Builds equal models: same seed, same weights."""
    return functools.partial(tiny.make_model, processor)
