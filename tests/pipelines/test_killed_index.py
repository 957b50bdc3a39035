"""`kill -9` at random moments of indexing: nothing acknowledged is lost, no row is half there, the next run completes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ccrk.pipelines.gallery_sources import gallery_items
from ccrk.pipelines.gallery_update import open_gallery_index, update_index
from ccrk.pipelines.indexes import open_index
from ccrk.pipelines.model_fingerprint import embedding_fingerprint

PHOTOS = 96


@pytest.fixture(scope="module")
def saved(model, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Photos that all differ."""
    root = tmp_path_factory.mktemp("many")
    for number in range(PHOTOS):
        Image.new("RGB", (16 + number % 5, 16), (number, 255 - number, 7 * number % 256)).save(root / f"{number}.png")
    return root


def start(saved, many, uri, states, log) -> subprocess.Popen:
    script = Path(__file__).with_name("kill_index.py")
    words = [sys.executable, "-P", str(script), str(saved), str(many), uri, str(states), str(log)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_once(process: subprocess.Popen, wait: float) -> bool:
    """Kills a run so many seconds after it began to index; says whether it was still running."""
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


def check(uri: str, log: Path, states: Path, expected: dict[str, dict]) -> int:
    """What is in the index after a kill: all that was acknowledged, and nothing but whole rows."""
    told = set(log.read_text().split("\n")) - {""} if log.exists() else set()
    try:
        index = open_index(uri)
    except FileNotFoundError:
        assert not told
        return 0
    rows = {row["id"]: row for row in index.scan([*index.columns, "vector"])}
    assert index.count() == len(rows) and told <= rows.keys()
    for identity, row in rows.items():
        assert {name: row[name] for name in index.columns if name != "changed"} == {
            name: expected[identity][name] for name in index.columns if name != "changed"
        }
        torch.testing.assert_close(
            torch.as_tensor(row["vector"]), torch.as_tensor(expected[identity]["vector"]), rtol=1e-5, atol=2e-6
        )
    index.close()
    for shard in states.rglob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            assert file.get_tensor("states").isfinite().all()
    return len(rows)


@pytest.fixture(scope="module")
def expected(many, model, processor) -> dict[str, dict]:
    """The rows of an index that was built undisturbed."""
    from ccrk import CCRkRetrievalPipeline

    pipe = CCRkRetrievalPipeline(model, processor, device="cpu")
    items = gallery_items(many)
    index = open_gallery_index("memory:", embedding_fingerprint(model, processor), items)
    update_index(index, items, pipe, batch_size=4)
    return {row["id"]: row for row in index.scan([*index.columns, "vector"])}


def kill_and_complete(saved, many, tmp_path, expected, waits: list[float]) -> int:
    uri, states, log = f"lance://{tmp_path}/index", tmp_path / "states", tmp_path / "log"
    killed, sizes = 0, []
    for wait in waits:
        killed += kill_once(start(saved, many, uri, states, log), wait)
        sizes.append(check(uri, log, states, expected))
        assert sizes == sorted(sizes), "a run never takes away what an earlier one wrote"
    process = start(saved, many, uri, states, log)
    out, errors = process.communicate()
    assert process.returncode == 0 and out == "ready\ndone\n", errors
    assert check(uri, log, states, expected) == PHOTOS
    return killed


def test_two_kills(saved, many, tmp_path, expected):
    began = time.monotonic()
    start(saved, many, f"lance://{tmp_path}/whole", tmp_path / "s", tmp_path / "l").communicate()
    whole = time.monotonic() - began  # a run's length here and now; most of it is loading
    waits = [random.uniform(0.3, 0.9) * whole * share for share in (0.3, 0.5)]
    print(f"waits {waits}")
    kill_and_complete(saved, many, tmp_path, expected, waits)


@pytest.mark.slow
def test_ten_kills(saved, many, tmp_path, expected):
    seed = random.randrange(2**32)
    random.seed(seed)
    killed = 0
    for number in range(5):
        place = tmp_path / str(number)
        place.mkdir()
        killed += kill_and_complete(saved, many, place, expected, [random.uniform(0.0, 4.0) for _ in range(2)])
    print(f"seed {seed}: {killed} of 10 runs were killed")
    assert killed >= 5
