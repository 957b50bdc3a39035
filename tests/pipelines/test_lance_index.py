from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from ccrk.pipelines import lance_index
from ccrk.pipelines.index import IndexFingerprint
from ccrk.pipelines.indexes import create_index, drop_index, open_index

pytest.importorskip("lancedb", reason="LanceDB is not installed")

FINGERPRINT = IndexFingerprint("org/model", "abc", 16)
WRITER = """
import sys, torch
from ccrk.pipelines.indexes import open_index
index, me = open_index(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for batch in range(12):
    vectors = torch.nn.functional.normalize(torch.randn(20, 16), dim=1)
    index.upsert([f"{batch}-{n}" for n in range(20)], vectors, [{"writer": me}] * 20)
    if batch % 4 == 1:
        index.delete([f"{batch}-0"])
    if batch % 4 == 3 and me:
        index.optimize()
"""


def units(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=1)


def test_two_processes_may_write_the_same_rows_while_a_third_reads(tmp_path):
    uri = f"lance://{tmp_path}/index"
    index = create_index(uri, FINGERPRINT, {"writer": "int64"})
    command = [sys.executable, "-P", "-c", WRITER, uri]
    writers = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        (ids, scores), *_ = index.search(units(1), 400)
        assert len(ids) == len(set(ids)) == len(scores)
        assert index.count() <= 240
    assert [writer.wait() for writer in writers] == [0, 0]
    ids = [row["id"] for row in index.scan()]
    assert len(ids) == len(set(ids)) == index.count()
    assert {f"{batch}-{n}" for batch in range(12) for n in range(1, 20)} <= set(ids)


def test_where_an_index_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match="something else"):
        create_index("lance://photos", FINGERPRINT)
    with pytest.raises(FileExistsError, match="something else"):
        create_index("lance://photos/a.jpg", FINGERPRINT)
    with pytest.raises(ValueError, match="names no folder"):
        create_index("lance:", FINGERPRINT)
    with pytest.raises(FileNotFoundError):
        open_index("lance://photos")
    index = create_index("lance://empty", FINGERPRINT)
    index.upsert(["a"], units(1))
    assert open_index(f"lance://{tmp_path}/empty").count() == 1
    (tmp_path / "empty" / "notes.txt").touch()
    drop_index("lance://empty")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["notes.txt"]
    create_index("lance://deep/er", FINGERPRINT)
    drop_index("lance://deep/er")
    assert not (tmp_path / "deep" / "er").exists()


def test_a_table_of_others_is_refused(tmp_path):
    import lancedb

    lancedb.connect(tmp_path).create_table("vectors", [{"id": "a", "vector": [0.0, 1.0]}])
    with pytest.raises(ValueError, match="no index of this package"):
        open_index(f"lance://{tmp_path}")


def test_optimize_finds_how_much_to_read_and_trains_when_rows_double(tmp_path, monkeypatch):
    monkeypatch.setattr(lance_index, "ANN_FROM", 1000)
    trained = []
    index = create_index(f"lance://{tmp_path}/index", FINGERPRINT)
    for count, expected in ((500, 0), (900, 0), (1100, 1100), (1500, 1100), (2300, 2300)):
        start = index.count()
        index.upsert([str(n) for n in range(start, count)], units(count - start, seed=count))
        index.optimize()
        trained.append(index._setting(lance_index.TRAINED_KEY))
        assert trained[-1] == expected
        assert bool(index._nprobes()) == bool(expected)
        stats = index._table.index_stats("vector_idx")
        assert stats is None if not expected else stats.num_unindexed_rows == 0
    # what is found does not depend on the handle that optimized
    again = open_index(index.uri)
    assert again._nprobes() == index._nprobes() > 0
    assert again.search(units(2, seed=500), 5) == index.search(units(2, seed=500), 5)


def test_small_upserts_are_merged_and_old_versions_kept_for_their_readers(tmp_path):
    index = create_index(f"lance://{tmp_path}/index", FINGERPRINT)
    for number in range(20):
        index.upsert([str(number)], units(1, seed=number))
    reader = index.scan(["vector"])
    first = next(reader)
    index.optimize()
    assert index._table.stats()["fragment_stats"]["num_fragments"] == 1
    assert len([first, *reader]) == index.count() == 20


def test_damage_is_an_oserror_that_names_the_index(tmp_path):
    uri = f"lance://{tmp_path}/index"
    index = create_index(uri, FINGERPRINT)
    index.upsert(["a"], units(1))
    for file in (tmp_path / "index").rglob("data/*"):
        file.unlink()
    for handle in (index, open_index(uri)):
        for act in (lambda: handle.search(units(1), 1), lambda: list(handle.scan())):  # noqa: B023
            with pytest.raises(OSError, match=f"index '{uri}' cannot be read"):
                act()
    shutil.rmtree(tmp_path / "index")
    for act in (index.count, lambda: index.search(units(1), 1), lambda: index.upsert(["b"], units(1))):
        with pytest.raises(OSError, match=f"index '{uri}' cannot be"):
            act()
    (tmp_path / "index" / "vectors.lance" / "data").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no index in"):  # its maker was killed before there was anything
        open_index(uri)
    rows = tmp_path / "index" / "vectors.lance" / "data" / "a.lance"
    rows.touch()
    with pytest.raises(ValueError, match="is no index, or was left half made"):
        open_index(uri)
    with pytest.raises(FileExistsError, match="holds an index"):
        create_index(uri, FINGERPRINT)
    assert rows.exists()
