"""Exchange among three processes, one of which has no rows; one launch for all checks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccrk.objectives_ccrk import SingleProcess

SCRIPT = Path(__file__).with_name("exchange_checks.py")
_spec = importlib.util.spec_from_file_location("ccrk_tests_exchange_checks", SCRIPT)
checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict[str, str]]:
    out = tmp_path_factory.mktemp("exchange")
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", SCRIPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, out], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.parametrize("name", checks.CHECKS)
def test_three_processes(reports, name):
    for rank, report in enumerate(reports):
        assert report[name] == "", f"process {rank}: {report[name]}"


def test_a_single_process_has_it_all():
    exchange, rows = SingleProcess(), torch.arange(6.0).reshape(3, 2)
    assert exchange.gather(rows) is rows and exchange.gather_rows(rows) is rows
    assert exchange.fetch(rows, 0, torch.zeros(0, dtype=torch.long)).shape == (0, 2)
    assert exchange.total(rows[2, 1]) == exchange.largest(rows[2, 1]) == 5
