"""Files that are there whole or not at all, and the checksums that tie figures to weights."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors")
"""Names of weight files in a model's folder."""


def weights_in(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Weight files of a folder and their SHA-256: what an evaluation was of, and a card is of. None for a Hub id."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        if WEIGHTS.fullmatch(path.name) and path.is_file():
            with open(path, "rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_whole(path: str | os.PathLike[str], text: str, what: str = "file") -> None:
    """Writes beside the target and moves into place: a reader never sees half of it.

    Args:
        path: of the file; missing folders are made, an older file is replaced in one step.
        text: what it holds, in UTF-8.
        what: it is called in an error.

    Raises:
        OSError: if it cannot be written; nothing is left behind and an older file stays as it was.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files that only their owner reads; this one gets what any new file gets
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise OSError(
            f"cannot write the {what} '{path}': {error.strerror or error} "
            f"(expected a file name in a folder that can be written)"
        ) from error
