"""A Hub on this machine, and processes that talk to it with nothing but its address."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name: str, path: Path):
    """A file of the tests as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny():
    """The tiny model of the pipeline's tests."""
    return load("ccrk_tests_tiny_of_pipelines", HERE.parent / "pipelines" / "tiny.py")


@pytest.fixture(scope="session")
def start_hub() -> Callable[..., contextlib.AbstractContextManager]:
    """Makes a context manager of a running Hub, for tests that want a store or sizes of their own."""
    return load("ccrk_tests_hub_server", HERE / "hub_server.py").running


@pytest.fixture(scope="module")
def hub(start_hub, tmp_path_factory) -> Iterator:
    """A Hub for the tests of one file: `endpoint`, `token`, `environment(home)`, `store`, `fail(...)`."""
    with start_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="session")
def client() -> Callable[..., dict]:
    """Runs a piece of Python in a process of its own and gives what it stored in `seen`, as JSON.

    `client(code, environment, package=False)`: without the package, `import ccrk` raises; `arguments` are `sys.argv`.
    An error in the code is raised here with its last lines, unless `error=True`, which gives those as text.
    """

    def run(code: str, environment: dict, *arguments, package: bool = False, cwd=None, error: bool = False):
        before = ["import json, sys", "seen = {}"]
        if not package:
            before.append("sys.modules['ccrk'] = None  # `import ccrk` raises ImportError from here on")
        whole = "\n".join([*before, code, "print('\\nSEEN ' + json.dumps(seen))"])
        done = subprocess.run(
            [sys.executable, "-P", "-c", whole, *map(str, arguments)],
            env={**environment, "OMP_NUM_THREADS": "1"},
            cwd=cwd or environment["HF_HOME"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if error:
            assert done.returncode != 0, done.stdout[-2000:]
            return done.stderr
        assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
        return json.loads(done.stdout.rpartition("SEEN ")[2])

    return run


@pytest.fixture
def home(tmp_path) -> Path:
    """A home of huggingface_hub that nobody used before."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"
