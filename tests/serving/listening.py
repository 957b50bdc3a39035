"""An application that listens on a port of this machine, as `ccrk serve` lets it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from ccrk.serving.protocol import patient_protocol


@contextlib.contextmanager
def listening(app, seconds: float = 5.0) -> Iterator[int]:
    """Gives the port; ends the server afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        config = uvicorn.Config(app, http=patient_protocol(seconds), ws="none", log_level="error", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            assert server.started
            yield place.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
