"""What an evaluation has computed, kept on disk piece by piece, so that a run that was cut off goes on."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

logger = logging.getLogger(__name__)


class Shards:
    """A folder of pieces, each written whole or not at all.

    Several processes may share it, as long as each writes pieces of its own.

    Args:
        folder: parent folder.
        name: of the folder below it: what the pieces depend on, see `fingerprints`.
    """

    def __init__(self, folder: str | os.PathLike, name: str):
        self.folder = Path(folder) / name

    def path(self, piece: str) -> Path:
        """The file of a piece."""
        return self.folder / f"{piece}.safetensors"

    def load(self, piece: str, skip: tuple[str, ...] = ()) -> tuple[dict[str, torch.Tensor], dict] | None:
        """The tensors of a piece and the notes beside them; None if it is not there or not whole.

        Args:
            piece: its name.
            skip: tensors that are not wanted.
        """
        path = self.path(piece)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes = json.loads(file.metadata()["notes"])
                return {name: file.get_tensor(name) for name in file.keys() if name not in skip}, notes  # noqa: SIM118
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            logger.warning(f"'{path}' cannot be read ({error}) and is computed again")
            return None

    def save(self, piece: str, tensors: dict[str, torch.Tensor], notes: dict) -> None:
        """Writes a piece.

        Raises:
            OSError: if it cannot be written, such as on a full disk; the pieces that are there stay.
        """
        path = self.path(piece)
        partial = path.with_suffix(f".partial{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
                partial,
                metadata={"notes": json.dumps(notes)},
            )
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # or a crash of the machine could leave the name without the content
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise OSError(
                getattr(error, "errno", None),
                f"'{path}' cannot be written ({error}). What was computed before is kept; make room, or name another "
                "cache folder, and start again",
            ) from error
