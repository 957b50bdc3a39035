"""What every test can count on: no network, few threads, and the places of fixtures and of the built wheel."""

from __future__ import annotations

import os

# Read when huggingface_hub is imported, so before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(int(os.environ.get("CCRK_TEST_THREADS", "2")))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Small files that the tests read, kept with them."""
    return ROOT / "tests" / "fixtures"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data sets and weights too large for the repository: `$CCRK_SHARED`, or `shared/` beside the checkout."""
    given = os.environ.get("CCRK_SHARED")
    folder = Path(given) if given else ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with data sets and weights; CCRK_SHARED names another one")
    return folder


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout, built and installed beside it once."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, ROOT / "tests" / "build_wheel.py", out], check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def installed_wheel(built_wheel: Path) -> Path:
    """A folder, empty but for the wheel installed into it; read it, do not write there."""
    return built_wheel.parent / "site"
