"""What re-ranking needs of photos, kept on disk: the tokens of the image tower, in half precision.

Tokens are kept and not the keys and values that the fusion encoder makes of them: these would take twelve times the
room at the paper's size, and save a small part of what the tokens save (docs/benchmarks.md has both).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
"""Size of a shard: what is written at once, and what a crash can cost."""

MAX_BYTES = 8 * 2**30
"""Room that a store takes unless it is told otherwise; 80,000 photos at the paper's size and 224 px."""

OPEN_SHARDS = 64
STALE_SECONDS = 3600
"""Age at which a file that was never finished counts as left behind by a process that died."""


class ImageStateStore:
    """Tokens of the image tower (tokens, width) under the hash of a photo's content.

    A folder of shards in the format of safetensors, each written whole or not at all, and mapped into memory when it
    is read. Photos of equal content share one entry, and a photo that is moved keeps it. Several processes may read
    one store and add to it. What the room does not suffice for is not kept; whoever reads computes it again.

    Args:
        folder: is made when something is written. There is a folder below it for each model.
        name: what the states depend on, from `states_name`; states of another model are never seen.
        max_bytes: room for the states of this model.
        dtype: in which they are kept.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        name: str,
        max_bytes: int = MAX_BYTES,
        dtype: torch.dtype = torch.float16,
    ):
        self.folder = Path(folder) / name
        self.max_bytes, self.dtype = max_bytes, dtype
        self.nbytes = 0
        self._each = 0  # bytes of one state, once there is one
        self._places: dict[str, tuple[Path, int]] = {}
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._open: OrderedDict[Path, Any] = OrderedDict()
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._add(shard)

    def __len__(self) -> int:
        return len(self._places) + len(self._pending)

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._pending

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return self.nbytes + self._pending_bytes + max(1, self._each) > self.max_bytes

    def wants(self, key: str) -> bool:
        """Whether the state of this photo is missing and there is room for it."""
        return key not in self and not self.full

    def put(self, keys: Sequence[str], states: torch.Tensor) -> int:
        """Keeps states; they are on disk after `flush`, or once there are enough for a shard.

        What has no room, and what half precision cannot hold, is left out.

        Args:
            keys: hashes of the photos' contents.
            states: (N, tokens, width), anywhere and of any type.

        Returns:
            How many were kept that were not there.

        Raises:
            OSError: if a shard cannot be written; those that are there stay.
        """
        before = len(self)
        kept = states.detach().to("cpu", self.dtype)
        fits = kept.flatten(1).isfinite().all(1).tolist()
        for key, state, fine in zip(keys, kept, fits, strict=True):
            self._each = state.nbytes
            if fine and self.wants(key):
                self._pending[key] = state.clone()  # or it would hold on to the whole batch
                self._pending_bytes += state.nbytes
        added = len(self) - before
        if self._pending_bytes >= SHARD_BYTES:
            self.flush()
        return added

    def get(self, keys: Sequence[str]) -> list[torch.Tensor | None]:
        """States (tokens, width) in the type of the store; None for what is not there."""
        return [self._pending.get(key) if key in self._pending else self._read(key) for key in keys]

    def _read(self, key: str) -> torch.Tensor | None:
        if key not in self._places:
            return None
        shard, row = self._places[key]
        try:
            if shard not in self._open:
                self._open[shard] = safe_open(shard, framework="pt").get_slice("states")
                while len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard][row]
        except (OSError, SafetensorError):  # another process has tidied up
            del self._places[key]
            return None

    def flush(self) -> None:
        """Writes what was put and is not on disk yet.

        Raises:
            OSError: if it cannot be written.
        """
        for same in _of_one_shape(self._pending):
            self._write(same)
        self._pending, self._pending_bytes = {}, 0

    def _write(self, states: dict[str, torch.Tensor]) -> None:
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        partial = shard.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {"states": torch.stack(list(states.values()))}, partial, metadata={"keys": json.dumps(list(states))}
            )
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # or a crash of the machine could leave the name without the content
            os.replace(partial, shard)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OSError(
                getattr(error, "errno", None),
                f"the image states cannot be written to '{self.folder}' ({error}); make room, allow them less, or go "
                "on without",
            ) from error
        self._add(shard)

    def _add(self, shard: Path) -> None:
        try:
            with safe_open(shard, framework="pt") as file:
                keys = json.loads(file.metadata()["keys"])
                states = file.get_slice("states")
                if states.get_shape()[0] != len(keys) or not keys:
                    raise ValueError("keys and states differ in number")
                self._each = states[0].nbytes
            self.nbytes += shard.stat().st_size
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            logger.warning(f"'{shard}' cannot be read ({error}); its states are computed again")
            return
        for row, key in enumerate(keys):
            self._places.setdefault(str(key), (shard, row))

    def prune(self, live: Iterable[str]) -> None:
        """Frees the room of photos that are gone, and joins small shards.

        Args:
            live: hashes of the photos that there are.

        Raises:
            OSError: if a shard cannot be written.
        """
        self.flush()
        live = set(live)
        kept: dict[Any, list] = {}
        for key, (shard, _) in self._places.items():
            kept.setdefault(shard, []).append(key)
        old = []
        for shard, keys in kept.items():
            left = [key for key in keys if key in live]
            if 2 * len(left) <= len(keys) or len(keys) * self._each < SHARD_BYTES // 2:
                old.append((shard, left))
        if len(old) == 1 and len(old[0][1]) == len(kept[old[0][0]]):
            old = []  # one small shard, and nothing to free in it
        for shard, left in old:
            for key, state in zip(left, self.get(left), strict=True):
                if state is not None:
                    self._pending[key] = state.clone()
                    self._pending_bytes += state.nbytes
            for key in kept[shard]:
                self._places.pop(key, None)
            if self._pending_bytes >= SHARD_BYTES:
                self.flush()
        self.flush()
        used = {shard for shard, _ in self._places.values()}
        for shard in self.folder.glob("*.safetensors"):
            if shard not in used:
                self._open.pop(shard, None)
                shard.unlink(missing_ok=True)
        for partial in self.folder.glob("*.partial"):
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink(missing_ok=True)
        self.nbytes = sum(shard.stat().st_size for shard in used)

    def close(self) -> None:
        """Writes what is left and lets go of the files."""
        self.flush()
        self._open.clear()


def _of_one_shape(states: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """States apart by their shapes, for a shard is one tensor."""
    parts: dict[torch.Size, dict[str, torch.Tensor]] = {}
    for key, state in states.items():
        parts.setdefault(state.shape, {})[key] = state
    return list(parts.values())


__all__ = ["MAX_BYTES", "ImageStateStore"]
