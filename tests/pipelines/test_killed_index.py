"""`kill -9` at random moments of indexing: nothing acknowledged is lost, no row is half, the next run completes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
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


@pytest.fixture(scope="module")
def runs(saved, many):
    """Starts runs, which share the cost of importing torch: `runs(folder, wait)`."""
    script = Path(__file__).with_name("kill_index.py")
    server = subprocess.Popen(
        [sys.executable, "-P", str(script), str(saved), str(many)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

    def run(place: Path, after: int | None) -> bool:
        """One run, killed a moment after so many rows were acknowledged; says whether it came to its end."""
        log = place / "log"
        before = log.read_text().count("\n") if log.exists() else 0
        server.stdin.write(f"lance://{place}/index\t{place}/states\t{log}\n")
        word, pid = server.stdout.readline().split()
        assert word == "ready"
        if after is not None:
            while after and Path(f"/proc/{pid}").exists():
                if log.exists() and log.read_text().count("\n") - before >= after:
                    break
                time.sleep(0.001)
            time.sleep(random.uniform(0, 1.0 if after == 0 else 0.1))
            with suppress(ProcessLookupError):  # at its end already
                os.kill(int(pid), signal.SIGKILL)
        lines = [server.stdout.readline()]
        if lines[0] == "done\n":
            lines.append(server.stdout.readline())
        code = int(lines[-1].removeprefix("exit "))
        assert code == 0 or (after is not None and code == -signal.SIGKILL)
        return lines[0] == "done\n"

    yield run
    server.stdin.close()
    assert server.wait(60) == 0


def check(place: Path, expected: dict[str, dict]) -> int:
    """What is in the index after a kill: all that was acknowledged, and nothing but whole rows."""
    uri, log, states = f"lance://{place}/index", place / "log", place / "states"
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


def kill_and_complete(runs, place: Path, expected, kills: int) -> int:
    """Kills runs over one index and lets the last one come to its end; says how many were killed before theirs."""
    killed, sizes = 0, [0]
    for _ in range(kills):
        killed += not runs(place, random.randrange(0, max(1, PHOTOS - sizes[-1])))
        sizes.append(check(place, expected))
        assert sizes == sorted(sizes), "a run never takes away what an earlier one wrote"
    assert runs(place, None)
    assert check(place, expected) == PHOTOS
    return killed


def test_two_kills(runs, tmp_path, expected):
    kill_and_complete(runs, tmp_path, expected, 2)


@pytest.mark.slow
def test_ten_kills(runs, tmp_path, expected):
    killed, tried = 0, 0
    while killed < 10:
        place = tmp_path / str(tried)
        place.mkdir()
        killed += kill_and_complete(runs, place, expected, 3)
        tried += 1
        assert tried < 20, "the runs end before they can be killed"
    print(f"{killed} of {3 * tried} runs were killed in the middle")


def test_a_kill_before_there_is_a_first_version(runs, tmp_path, expected):
    """What it leaves in the folder is no index, and the next run makes one there."""
    for left in ("", "vectors.lance", "vectors.lance/_transactions"):
        (tmp_path / "index" / left).mkdir(parents=True, exist_ok=True)
        assert check(tmp_path, expected) == 0
    (tmp_path / "index" / left / "0-a.txn").touch()
    assert runs(tmp_path, None)
    assert check(tmp_path, expected) == PHOTOS
