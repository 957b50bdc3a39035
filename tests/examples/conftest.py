"""The modules of `examples/studies`, imported as its command imports them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).resolve().parents[2] / "examples" / "studies"


@pytest.fixture(scope="session")
def studies():
    """Gives a module of the studies by its name."""
    sys.path.insert(0, str(STUDIES))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(STUDIES))
