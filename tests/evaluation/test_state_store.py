"""Hidden states come back bit for bit, from memory and from a file; a full disk is told."""

from __future__ import annotations

import resource

import pytest
import torch

from ccrk.evaluation.state_store import StateStore


@pytest.mark.parametrize("in_memory", [1 << 20, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_written_comes_back(tmp_path, dtype, in_memory):
    store = StateStore(tmp_path, in_memory)
    states = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (3, 1, 7, 2)]
    for tensor in states[:3]:
        store.append(tensor)
    assert torch.equal(store.read(1), states[1])
    store.append(states[3])
    assert len(store) == 4
    assert store.nbytes == 13 * 8 * dtype.itemsize
    for number in (2, 0, 3, 1):
        assert torch.equal(store.read(number), states[number])
        assert store.read(number).dtype == dtype
    assert (store._file._rolled) == (in_memory == 100)
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_an_error_that_says_where(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = StateStore(tmp_path, in_memory=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match=f"do not fit into '{tmp_path}'.*scratch=FOLDER") as caught:
            for _ in range(5):
                store.append(torch.zeros(1024, 128))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno
    assert len(store) == 2
