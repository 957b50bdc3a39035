"""Two processes report what one does, to the last bit, and fail together."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccrk.evaluation.sharing import Share

SCRIPT = Path(__file__).resolve().parent / "evaluate_process.py"
spec = importlib.util.spec_from_file_location("evaluate_process", SCRIPT)
evaluate_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evaluate_process)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_processes_report_what_one_does(tmp_path, one_thread):
    evaluate_process.write_rows(tmp_path)
    words = [sys.executable, "-P", str(SCRIPT)]
    running = [subprocess.Popen([*words, str(rank), str(tmp_path)]) for rank in range(2)]
    alone = evaluate_process.evaluate(tmp_path, 0, 1)
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    first, second = (json.loads((tmp_path / f"report{rank}.json").read_text()) for rank in range(2))
    for report in alone[:3]:
        assert report["images"] == 8
        assert report["skipped"]["images"] == 1
        assert report["skipped"]["captions"] == 2
        assert "4.png" in report["skipped"]["examples"][0]
        assert report["reranked"]["languages"]["en"]["ir@1"] < 1
    assert alone[:3] == first[:3] == second[:3]
    assert "4.png" in alone[3]["error"]
    assert alone[3] in (first[3], second[3])  # the process that met it raises the image's own error,
    for report in (first[3], second[3]):  # the other one says the same
        assert "4.png" in report["error"]


def test_several_processes_have_to_be_connected():
    with pytest.raises(ValueError, match="world_size is 2, but torch.distributed connects 1 process"):
        Share(0, 2)
    with pytest.raises(ValueError, match="rank is 3"):
        Share(3, 2)


def test_alone_everything_is_mine():
    share = Share()
    assert share.mine([[1], [2]]) == [[1], [2]]
    assert share.gather(torch.ones(2))[0].tolist() == [1, 1]
    assert share.gather_json({"a": 1}) == [{"a": 1}]
