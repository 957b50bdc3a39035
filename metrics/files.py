"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


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
