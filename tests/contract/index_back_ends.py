"""Where the contract of indexes is run: one `BackEnd` for each kind of index, with servers of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch

from ccrk.pipelines.index import IndexFingerprint

STANDALONE = """
import sys
from milvus import MilvusServer
server = MilvusServer()
server.set_base_dir(sys.argv[1])
server.listen_port = int(sys.argv[2])
with server:
    print("started", flush=True)
    sys.stdin.read()
"""


@dataclass
class BackEnd:
    """One kind of index.

    Attributes:
        name: for messages.
        make: a new URI from a number.
        shared: whether two processes can have an index open at once.
        lasting: whether it outlives its process.
    """

    name: str
    make: Callable[[int], str]
    shared: bool = True
    lasting: bool = True
    _numbers = count()

    def uri(self) -> str:
        """A URI that nothing is at yet."""
        return self.make(next(self._numbers))


def free_port() -> int:
    """A port of this machine that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen, seconds: float = 60) -> None:
    """Until something listens there, or the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens at port {port}; the server's exit code is {process.poll()}")


def start_lite_server(folder: Path, port: int) -> subprocess.Popen:
    """Milvus Lite as a server of its own."""
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", folder, "--host", "127.0.0.1"]
    with open(f"{folder}.log", "ab") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
    wait_for_port(port, process)
    return process


def lite_server(folder: Path) -> Iterator[BackEnd]:
    pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
    port = free_port()
    process = start_lite_server(folder / "server", port)
    try:
        yield BackEnd("lite server", lambda n: f"milvus://127.0.0.1:{port}/contract_{n}")
    finally:
        process.terminate()
        process.wait(20)


def standalone(folder: Path) -> Iterator[BackEnd]:
    """A whole Milvus: the one at $CCRK_MILVUS (HOST:PORT), or 2.3 from its wheel, in a process of its own.

    The wheel's server takes port 2380 whatever it is told, so there can be one on a machine.
    """
    given = os.environ.get("CCRK_MILVUS")
    if given:
        yield BackEnd("standalone", lambda n: f"milvus://{given}/contract_{os.getpid()}_{n}")
        return
    pytest.importorskip("milvus", reason="the wheel of Milvus' server is not installed: pip install milvus")
    port = free_port()
    environment = {**os.environ, "HOME": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", STANDALONE, folder / "milvus", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        if process.stdout.readline() != "started\n":
            raise RuntimeError(f"Milvus did not start; its logs are in {folder / 'milvus' / 'logs'}")
        yield BackEnd("standalone", lambda n: f"milvus://127.0.0.1:{port}/contract_{n}")
    finally:
        process.stdin.close()  # it then stops the server
        process.wait(60)


def local(kind: str, folder: Path) -> BackEnd:
    """Back ends without a server."""
    if kind == "memory":
        return BackEnd("memory", lambda n: f"memory:contract-{n}", shared=False, lasting=False)
    if kind == "lance":
        pytest.importorskip("lancedb", reason="LanceDB is not installed")
        return BackEnd("lance", lambda n: f"lance://{folder}/index {n} ü%20#")
    pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed")
    return BackEnd("lite file", lambda n: f"milvus://{folder}/{n}.db", shared=False)


def fingerprint(dimension: int = 16, **changed) -> IndexFingerprint:
    return IndexFingerprint("org/model", "abc", dimension, **{"preprocessing": "p1", **changed})


def units(count: int, dimension: int = 16, seed: int = 0) -> torch.Tensor:
    """Random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dimension, generator=generator), dim=1)


def clustered(count: int, dimension: int, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors in clusters that all lie in one cone, as embeddings do, and queries from beside it."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, dimension + 1).float() ** -0.5
    centres = torch.randn(max(20, count // 50), dimension, generator=generator) * spread
    cone = torch.zeros(dimension)
    cone[0], gap = 1.0, torch.zeros(dimension)
    gap[1] = 0.7

    def draw(number: int, noise: float) -> torch.Tensor:
        of = torch.randint(len(centres), (number,), generator=generator)
        return centres[of] + noise * spread * torch.randn(number, dimension, generator=generator) + cone

    drawn = draw(count, 0.6), draw(queries, 0.8) + gap
    return tuple(torch.nn.functional.normalize(vectors, dim=1) for vectors in drawn)
