"""Checkpoints that can be trusted: which one is whole, and what to do when the disk is full."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

STATE = "trainer_state.json"  # written last: where it is whole, everything is
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "pytorch_model_fsdp_0")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def is_complete(folder: str | Path) -> bool:
    """Whether a checkpoint was written to its end."""
    folder = Path(folder)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "global_step" in state and any((folder / name).exists() for name in WEIGHTS)


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The last checkpoint in a folder that was written to its end, or None.

    A process that was killed while saving leaves an incomplete one behind, which is passed over.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if step and is_complete(folder):
            found.append((int(step[1]), folder))
    return max(found)[1] if found else None


def is_disk_error(error: BaseException, folder: str | Path) -> bool:
    """Whether a failure to save is the disk's: full, over quota, or broken.

    Writers in other languages hand on no error number, so their messages and the free space have to tell.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return True
        if re.search(r"no space left|disk quota|file write failed|unexpected pos|inline_container", str(error), re.I):
            return True
        error = error.__cause__ or error.__context__
    try:
        return shutil.disk_usage(Path(folder).parent).free < 2**20
    except OSError:
        return False
