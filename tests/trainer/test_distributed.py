"""A step of several processes is the step of one on the whole batch; a step in pieces is that of the whole.

The measure: norm of the difference of gradients over all parameters, by the norm of the gradient. The temperature's
gradient is many times larger than all others together, so the rest is measured without it too.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS = Path(__file__).with_name("steps.py")
_spec = importlib.util.spec_from_file_location("ccrk_tests_steps", STEPS)
steps = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(steps)

TOLERANCE = 1e-5


def launch(out: Path, processes: int, mini_batch_size: int = 0) -> Path:
    """Runs all cases in so many processes."""
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    if processes == 1:
        command = [sys.executable, "-P"]
    environment = {**os.environ, "MINI_BATCH_SIZE": str(mini_batch_size), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, STEPS, out], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def in_pieces(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("pieces"), 1, mini_batch_size=3)


def difference(one: dict, other: dict, names: list[str]) -> float:
    squares = sum(float(((one[name] - other[name]) ** 2).sum()) for name in names)
    return (squares / sum(float((one[name] ** 2).sum()) for name in names)) ** 0.5


def compare(one: Path, other: Path, case: str) -> None:
    """Gradients of both steps, logged losses, and what was left out."""
    one, other = load_file(one / f"{case}.safetensors"), load_file(other / f"{case}.safetensors")
    assert one.keys() == other.keys()
    for step in ("0.", "1."):
        names = [name for name in one if name.startswith(step) and ".log." not in name]
        assert len(names) > 20
        assert difference(one, other, names) < TOLERANCE
        rest = [name for name in names if not name.endswith("temperature")]
        assert difference(one, other, rest) < TOLERANCE
    for name in one:
        if ".log." in name:  # logged with four places
            torch.testing.assert_close(one[name], other[name], atol=2e-4, rtol=1e-4)
        if name.startswith("skipped."):
            assert one[name] == other[name] == 4


@pytest.mark.parametrize("case", steps.CASES)
def test_two_processes(case, one_process, two_processes):
    compare(one_process, two_processes, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", steps.CASES)
def test_in_pieces(case, one_process, in_pieces):
    compare(one_process, in_pieces, case)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "mini_batch_size"), [(4, 0), (2, 3), (4, 1)])
def test_four_processes_and_pieces(tmp_path, one_process, processes, mini_batch_size):
    launch(tmp_path, processes, mini_batch_size)
    for case in steps.CASES:
        compare(one_process, tmp_path, case)
