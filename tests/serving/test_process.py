"""`ccrk serve` as a process of its own: it starts, answers, bears slow and endless clients, and ends when told to."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

TOKEN = "the-token-of-a-process"


class Process:
    """`ccrk serve`, and what it prints."""

    def __init__(self, *words: str, token: str | None = None):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("CCRK_TOKEN", None)
        if token is not None:
            environment["CCRK_TOKEN"] = token
        command = [sys.executable, "-P", "-m", "ccrk.cli.main", "serve", *words, "--port", "0"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.said, self.port = "", 0
        while not self.port:
            assert select.select([self.process.stderr], [], [], 120)[0], self.said
            part = os.read(self.process.stderr.fileno(), 65536).decode()
            assert part, self.said
            self.said += part
            found = re.search(r"running on http://[\d.]+:(\d+)", self.said)
            self.port = int(found[1]) if found else 0

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def end(self) -> str:
        """Ends it as a terminal or a system does; gives all that it printed."""
        self.process.send_signal(signal.SIGTERM)
        self.said += self.process.communicate(timeout=60)[1].decode()
        return self.said


@pytest.fixture(scope="module")
def saved(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def process(saved, uris):
    process = Process(saved, uris["lance"], "--no-page", "--body-timeout", "1", "--threads", "1", token=TOKEN)
    yield process
    process.process.kill()
    process.process.wait()


AUTHORIZED = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"


def test_it_answers(process):
    status, body = process.ask("POST", "/search", b'{"queries": ["a dog", "un chat"], "k": 3}', **AUTHORIZED)
    assert status == 200 and [len(row["hits"]) for row in json.loads(body)["results"]] == [3, 3]
    assert process.ask("GET", "/info")[0] == 401


SLOW = {
    "says nothing": (b"", b""),
    "half a head": (b"GET /health HTTP/1.1\r\nHost: lo", b""),
    "half a body": (f"POST /search HTTP/1.1\r\n{HEAD}Content-Length: 50\r\n\r\n{{".encode(), b"HTTP/1.1 408"),
    "no chunk": (f"POST /search HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode(), b"HTTP/1.1 408"),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_clients_are_let_go(process, name):
    sent, expected = SLOW[name]
    with process.connect() as client:
        client.sendall(sent)
        received = b""
        while part := client.recv(65536):  # ends when the service closes; the socket's own time limit is an error
            received += part
    assert received.startswith(expected)
    assert process.ask("GET", "/health")[0] == 200


def test_bytes_one_by_one_are_slow_too(process):
    with process.connect() as client:
        client.sendall(f"POST /search HTTP/1.1\r\n{HEAD}Content-Length: 100000\r\n\r\n".encode())
        received = b""
        while not received:
            client.sendall(b" ")
            if select.select([client], [], [], 0.05)[0]:
                received = client.recv(65536)
    assert received.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("chunk", [b"10000\r\n" + b" " * 65536 + b"\r\n", b"1\r\n \r\n" * 1000])
def test_a_body_without_end_is_cut(process, chunk):
    received = b""
    with process.connect() as client:
        client.sendall(f"POST /search HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            while not select.select([client], [], [], 0)[0]:
                client.sendall(chunk)
            received = client.recv(65536)
        except ConnectionError:
            pass  # closed while we were sending
    assert not received or received.startswith((b"HTTP/1.1 413", b"HTTP/1.1 408"))
    assert process.ask("GET", "/health")[0] == 200


BROKEN = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "an old version": b"GET /health HTTP/0.9\r\n\r\n",
    "NUL in the path": b"GET /items/\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a line that folds": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n  b\r\n\r\n",
    "headers of 1 MB": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**20 + b"\r\n\r\n",
    "50,000 headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 50_000 + b"\r\n",
    "a path of 1 MB": b"GET /items/" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two lengths": f"POST /search HTTP/1.1\r\n{HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345".encode(),
    "a negative length": f"POST /search HTTP/1.1\r\n{HEAD}Content-Length: -5\r\n\r\n".encode(),
    "a length and chunks": (
        f"POST /search HTTP/1.1\r\n{HEAD}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
    ),
    "a chunk of 2**70": f"POST /search HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n{2**70:x}\r\nx".encode(),
    "a length of 20 digits": f"POST /search HTTP/1.1\r\n{HEAD}Content-Length: {10**20 - 1}\r\n\r\n".encode(),
    "a length of 5,000 digits": f"POST /search HTTP/1.1\r\n{HEAD}Content-Length: {'9' * 5000}\r\n\r\n".encode(),
    "a WebSocket": (
        b"GET /search HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
    "no host": b"GET /info HTTP/1.1\r\n\r\n",
    "an address in the place of a path": b"GET http://evil.example/info HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "CONNECT": b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_requests(process, name):
    received = b""
    with process.connect() as client:
        try:
            client.sendall(BROKEN[name])
            received = client.recv(65536)
        except ConnectionError:
            pass
    assert not received or re.match(rb"HTTP/1\.[01] [24]\d\d", received), received[:200]
    assert process.ask("GET", "/health")[0] == 200


def test_many_silent_clients_leave_it_working(process):
    clients = [process.connect() for _ in range(200)]
    try:
        assert process.ask("POST", "/search", b'{"queries": "a dog"}', **AUTHORIZED)[0] == 200
    finally:
        for client in clients:
            client.close()


def test_it_ends_when_told_to_and_never_printed_the_token(process):
    """The last test of this process."""
    with process.connect() as client:  # one that is still there does not hold it up
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        said = process.end()
    assert process.process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in said and TOKEN not in said and "warning" not in said
    assert "a dog" not in said, "queries are people's own"


def test_others_are_warned_of(saved, uris):
    process = Process(saved, uris["lance"], "--no-page", "--host", "0.0.0.0", "--threads", "1")
    try:
        assert "ccrk serve: warning: there is no token, so everyone who can reach 0.0.0.0:0" in process.said
        started = time.monotonic()
        process.process.send_signal(signal.SIGINT)
        process.process.communicate(timeout=60)
        assert process.process.returncode in (0, 130, -signal.SIGINT), time.monotonic() - started
    finally:
        process.process.kill()
