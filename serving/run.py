"""Runs the service until it is told to end."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from .app import create_app
from .options import TOKEN_VARIABLE, ServingOptions
from .protocol import patient_protocol

BACKLOG = 128
HEAD_BYTES = 64 * 2**10
"""Of a request line with all headers."""

GRACE = 15
"""Seconds that running requests have once the service is told to end."""


def check_exposure(options: ServingOptions) -> str | None:
    """What there is to say about who can reach the service; None if only this machine can, or a token is needed."""
    if options.loopback or options.token is not None:
        return None
    return (
        f"there is no token, so everyone who can reach {options.host}:{options.port} can search this gallery and see "
        f"its photos: set {TOKEN_VARIABLE}, or listen on 127.0.0.1"
    )


def run_service(options: ServingOptions, pipe: Any = None) -> int:
    """Loads model and gallery, answers requests, and ends after SIGINT or SIGTERM.

    Args:
        options: what to serve, and within which limits.
        pipe: as `create_app` takes it.

    Returns:
        0, or 1 if the address cannot be listened on.

    Raises:
        ImportError, OSError, ValueError: if model or gallery cannot be loaded.
    """
    import uvicorn

    exposed = check_exposure(options)
    if exposed is not None:
        print(f"ccrk serve: warning: {exposed}", file=sys.stderr)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        app = create_app(options, pipe)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"ccrk serve: {warning.message}", file=sys.stderr)
    gallery = app.state.service.gallery
    if gallery.modality == "image" and not gallery.folders:
        print("ccrk serve: photos are not shown: name the folder they lie in, --photos FOLDER", file=sys.stderr)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        http=patient_protocol(options.body_timeout),
        ws="none",
        lifespan="on",
        access_log=False,  # queries are people's own; /metrics counts requests
        log_level="info",
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=options.keep_alive,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1


__all__ = ["check_exposure", "run_service"]
