"""Hidden states that wait for re-ranking: in memory, in a temporary file, or in the shards of a cache."""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

IN_MEMORY = 64 * 2**20
"""Bytes up to which a store stays in memory."""


class StateStore:
    """Tensors (n, width) of differing n, written once and read back by number, bit for bit.

    They are read with plain file access, not mapped, so what was written does not count as memory of the process.
    The file has no name and is gone with the process, however it ends.

    Args:
        scratch: folder of the temporary file; the system's by default (on some systems that is memory).
        in_memory: bytes up to which there is no file.
    """

    def __init__(self, scratch: str | os.PathLike | None = None, in_memory: int = IN_MEMORY):
        self.scratch = scratch
        folder = None if scratch is None else os.fspath(scratch)
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory, dir=folder)  # noqa: SIM115 (see close)
        self._ends = array("q", [0])
        self._width = 0
        self._dtype = torch.float32

    def __len__(self) -> int:
        return len(self._ends) - 1

    def close(self) -> None:
        """Frees the memory and removes the file."""
        self._file.close()

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._ends[-1]

    def append(self, states: torch.Tensor) -> None:
        """Writes the next tensor; all have the same width and type.

        Raises:
            OSError: if the disk is full, saying of what and where there is room to be made.
        """
        self._width, self._dtype = states.shape[1], states.dtype
        data = states.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()
        try:
            self._file.seek(self.nbytes)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            folder = self.scratch or tempfile.gettempdir()
            raise OSError(
                error.errno,
                f"the hidden states for re-ranking do not fit into '{folder}' ({error.strerror}): {len(self)} were "
                f"written in {self.nbytes / 2**20:.0f} MiB; pass scratch=FOLDER with more room, or rerank=0",
            ) from error
        self._ends.append(self.nbytes + len(data))

    def read(self, number: int) -> torch.Tensor:
        """The tensor that was written as `number`."""
        start, end = self._ends[number], self._ends[number + 1]
        self._file.seek(start)
        data = bytearray(self._file.read(end - start))
        return torch.frombuffer(data, dtype=self._dtype).reshape(-1, self._width)


class ShardStates:
    """The same, read from shards that a cache has on disk: files of safetensors, memory-mapped.

    A shard holds `states (tokens, width)`, the tensors of its items one after the other.
    """

    def __init__(self):
        self._places: list[tuple[Path, int, int]] = []
        self._open: tuple[Path, Any] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def add(self, shard: Path, lengths: list[int]) -> None:
        """The next items are those of a shard, with so many rows each."""
        start = 0
        for length in lengths:
            self._places.append((shard, start, start + length))
            start += length

    def read(self, number: int) -> torch.Tensor:
        """The tensor of the item that was added as `number`."""
        shard, start, end = self._places[number]
        if self._open is None or self._open[0] != shard:
            self._open = (shard, safe_open(shard, framework="pt").get_slice("states"))
        return self._open[1][start:end]

    def close(self) -> None:
        """Lets go of the file that was read last."""
        self._open = None
