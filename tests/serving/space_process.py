"""A Space as the Hub runs it: `python app.py` in its folder, at the address that the environment names."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def started(folder: Path, **environment: str) -> Iterator[str]:
    """`python app.py` in the folder of a Space, until it answers; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    left = ("CCRK_TOKEN", "PYTHONSAFEPATH", "SPACE_ID")
    given = {name: value for name, value in os.environ.items() if name not in left}
    given |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    log = folder.parent / f"{folder.name}.log"
    with log.open("w") as out:
        words = [sys.executable, "app.py"]
        process = subprocess.Popen(words, cwd=folder, env={**given, **environment}, stdout=out, stderr=out)
    try:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30):
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.2)
        assert process.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}/"
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
