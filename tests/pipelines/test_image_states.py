"""The store of image states: what is put in comes out, room is kept to, and nothing half written is ever read."""

from __future__ import annotations

import os

import pytest
import torch

from ccrk.pipelines import image_states
from ccrk.pipelines.image_states import ImageStateStore


def states(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 5, 8, generator=torch.Generator().manual_seed(seed))


def names(count: int, start: int = 0) -> list[str]:
    return [f"{number:032x}" for number in range(start, start + count)]


def shards(store: ImageStateStore) -> list:
    return sorted(store.folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_round_trip(tmp_path, dtype):
    store = ImageStateStore(tmp_path / "s", "model", dtype=dtype)
    assert not (tmp_path / "s").exists(), "nothing is made before something is written"
    assert store.put(names(3), states(3)) == 3 and store.put(names(3), states(3, 1)) == 0
    for opened in (store, None):
        if opened is None:
            store.close()
            opened = ImageStateStore(tmp_path / "s", "model")
        assert len(opened) == 3 and names(1)[0] in opened
        found = opened.get([*names(3)[::-1], "missing"])
        assert found[3] is None
        torch.testing.assert_close(torch.stack(found[:3]), states(3).flip(0).to(dtype), rtol=0, atol=0)
    assert len(ImageStateStore(tmp_path / "s", "another model")) == 0


def test_shards_are_written_when_there_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(image_states, "SHARD_BYTES", 3 * 80)
    store = ImageStateStore(tmp_path, "m")
    store.put(names(2), states(2))
    assert shards(store) == []
    store.put(names(2, 2), states(2, 1))
    assert len(shards(store)) == 1 and len(ImageStateStore(tmp_path, "m")) == 4


def test_room_is_kept_to(tmp_path):
    store = ImageStateStore(tmp_path, "m", max_bytes=10 * 80 + 400)
    assert store.put(names(4), states(4)) == 4
    store.flush()
    store.put(names(20, 4), states(20))
    store.close()
    assert sum(shard.stat().st_size for shard in shards(store)) <= 10 * 80 + 2 * 400
    assert store.full and not store.wants("new") and 8 <= len(store) < 15
    again = ImageStateStore(tmp_path, "m", max_bytes=10 * 80 + 400)
    assert again.full and not again.wants("new"), "or every update would try once more"
    assert not ImageStateStore(tmp_path, "m").full


def test_what_half_precision_cannot_hold_is_left_out(tmp_path):
    values = states(3)
    values[1, 0, 0] = 1e6
    store = ImageStateStore(tmp_path, "m")
    assert store.put(names(3), values) == 2
    assert store.get(names(3))[1] is None


def test_damaged_shards_are_computed_again(tmp_path, caplog):
    store = ImageStateStore(tmp_path, "m")
    store.put(names(2), states(2))
    store.close()
    (shard,) = shards(store)
    data = shard.read_bytes()
    for broken in (b"", data[:40], data[:-1], b"\xff" * len(data)):
        shard.write_bytes(broken)
        again = ImageStateStore(tmp_path, "m")
        assert len(again) == 0 and again.get(names(2)) == [None, None]
        assert "computed again" in caplog.text
        caplog.clear()
    again.prune(names(2))
    assert shards(again) == []


def test_a_write_that_fails_leaves_nothing_half(tmp_path, monkeypatch):
    store = ImageStateStore(tmp_path, "m")
    store.put(names(2), states(2))
    store.flush()
    store.put(names(1, 2), states(1))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left.*make room"):
        store.flush()
    assert len(list(store.folder.iterdir())) == 1
    assert len(ImageStateStore(tmp_path, "m")) == 2


def test_prune_frees_room_and_joins_shards(tmp_path):
    store = ImageStateStore(tmp_path, "m")
    for start in range(0, 12, 3):
        store.put(names(3, start), states(3, start))
        store.flush()
    assert len(shards(store)) == 4
    other = ImageStateStore(tmp_path, "m")
    other.get(names(1))
    keep = names(2) + names(1, 7)
    before = store.get(keep)
    store.prune(keep)
    assert len(shards(store)) == 1 and len(store) == 3
    torch.testing.assert_close(torch.stack(store.get(keep)), torch.stack(before), rtol=0, atol=0)
    assert store.nbytes == shards(store)[0].stat().st_size
    written = shards(store)[0].stat().st_mtime_ns
    store.prune(keep)
    assert shards(store)[0].stat().st_mtime_ns == written, "nothing to free, nothing written"
    assert other.get(names(1, 4)) == [None], "a reader of before finds them gone, and no error"
    store.prune([])
    assert shards(store) == [] and len(store) == 0 and store.nbytes == 0


def test_prune_leaves_large_shards_that_are_mostly_live(tmp_path, monkeypatch):
    monkeypatch.setattr(image_states, "SHARD_BYTES", 8 * 80)
    store = ImageStateStore(tmp_path, "m")
    for start in (0, 8):
        store.put(names(8, start), states(8, start))
    first, second = shards(store)
    store.prune(names(15))
    assert shards(store) == [first, second]
    store.prune(names(3) + names(8, 8))
    assert len(store) == 11 and len({first, second} & set(shards(store))) == 1


def test_left_behind_files_go_when_they_are_old(tmp_path):
    store = ImageStateStore(tmp_path, "m")
    store.put(names(1), states(1))
    store.flush()
    for name, age in (("old", 7200), ("new", 10)):
        file = store.folder / f"{name}.partial"
        file.touch()
        os.utime(file, (os.stat(file).st_atime, os.stat(file).st_mtime - age))
    store.prune(names(1))
    assert [file.name for file in store.folder.glob("*.partial")] == ["new.partial"]
