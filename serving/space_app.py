"""What a Space runs: the search page over the photos beside its `app.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .options import ServingOptions

PORT = 7860
"""Where the Hub looks for the page of a Space."""

EMBEDDING = ("https://huggingface.co",)
"""Pages that may show a Space inside them: the Hub's own."""


def space_options(folder: str | os.PathLike, model: str, gallery: str) -> ServingOptions:
    """The options of the service, with the address that the environment names.

    GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are what the Hub sets, SPACE_ID says that this is a Space there; without
    them the page is for this machine alone, on port 7860. A secret CCRK_TOKEN puts a login before the page.

    Args:
        folder: of the Space.
        model: id or folder.
        gallery: folder of photos, relative to that of the Space.

    Raises:
        ValueError: if the port is none, or the gallery is not in the Space.
    """
    photos = (Path(folder) / gallery).resolve()
    if not photos.is_relative_to(Path(folder).resolve()) or not photos.is_dir():
        raise ValueError(f"there is no folder '{gallery}' with photos in the Space")
    port = os.environ.get("GRADIO_SERVER_PORT") or str(PORT)
    if not (port.isascii() and port.isdigit()):
        raise ValueError(f"GRADIO_SERVER_PORT is '{port}'; it is a number")
    return ServingOptions(
        model=model,
        gallery=str(photos),
        host=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1",
        port=int(port),
        embedded_in=EMBEDDING if os.environ.get("SPACE_ID") else (),
    )


def run_space(folder: str | os.PathLike, model: str, gallery: str = "photos", *, revision: str | None = None) -> int:
    """Serves the page until it is told to end.

    Args:
        folder: of the Space.
        model: id or folder.
        gallery: folder of photos, relative to that of the Space.
        revision: of a model on the Hub.

    Returns:
        0, or 1 if the address cannot be listened on.

    Raises:
        ImportError, OSError, ValueError: if model or gallery cannot be loaded.
    """
    from ccrk.pipelines.loading import load_pipeline

    from .run import run_service

    options = space_options(folder, model, gallery)
    wanted: dict[str, Any] = {} if revision is None else {"revision": revision}
    return run_service(options, load_pipeline(options.model, gallery=options.gallery, **wanted))


__all__ = ["run_space", "space_options"]
