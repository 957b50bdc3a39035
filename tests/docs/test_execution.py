"""Executes every block, command line and notebook, or `docs_not_executed.py` says why not; and counts them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
try:
    import docs_not_executed as not_executed
    import docs_workplace as workplaces
    from docs_pages import NOTEBOOKS, PAGES, ROOT, Block, blocks, load, page_id
finally:
    sys.path.remove(str(HERE))

pytestmark = pytest.mark.slow

COUNTS: Counter = Counter()
SKIPPED: Counter = Counter()
RUNNING = [page for page in PAGES if blocks(page, "python", "console", "bash")]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The folder of `docs_workplace.py`, built once."""
    folder = tmp_path_factory.mktemp("template") / "workplace"
    folder.mkdir()
    workplaces.build(folder, load(ROOT / "tests" / "pipelines" / "tiny.py"), ROOT, photos=80, copies=4)
    return folder


@pytest.fixture
def workplace(template: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of it, which is the current folder."""
    place = tmp_path / "workplace"
    shutil.copytree(template, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return place


@pytest.fixture(scope="module", autouse=True)
def told(request):
    """Prints the counts at the end, past what captures the output of tests."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        tell(COUNTS)


def tell(count: Counter) -> None:
    print(f"\n{count['pages']} pages: {count['python']} Python blocks and {count['commands']} command lines executed,")
    print(f"{count['compared']} outputs compared; {count['notebooks']} notebooks executed;")
    print(f"{sum(SKIPPED.values())} blocks and lines not executed:")
    for reason, count in SKIPPED.most_common():
        print(f"  {count:3} {reason}")


def reason_against(line: str) -> str | None:
    return next((reason for pattern, reason in not_executed.COMMANDS if re.search(pattern, line)), None)


def run_command(line: str) -> None:
    """Runs a command line: those of ccrk in this process, others as processes of this Python."""
    from ccrk.cli.main import main

    program, *words = shlex.split(line, comments=True)
    if program == "ccrk":
        code = main(words)
    elif program in ("python", "torchrun"):
        launcher = ["-m", "torch.distributed.run"] if program == "torchrun" else []
        code = subprocess.run([sys.executable, *launcher, *words], timeout=900).returncode
    else:
        pytest.fail(f"'{line}': neither executed nor listed in tests/docs/docs_not_executed.py")
    assert code == 0, f"'{line}' ended with {code}"


def run_block(page: Path, block: Block, namespace: dict, capsys) -> None:
    capsys.readouterr()
    exec(compile(block.body, f"{page_id(page)}: {block.body.splitlines()[0]}", "exec"), namespace)
    printed = capsys.readouterr().out.strip()
    COUNTS["python"] += 1
    if block.output is not None:
        assert printed == block.output.strip(), f"{page_id(page)} says otherwise"
        COUNTS["compared"] += 1


@pytest.mark.parametrize("page", RUNNING, ids=page_id)
def test_page(page: Path, workplace: Path, capsys, monkeypatch):
    """In the order of the page: Python in one namespace, command lines in one folder, as a reader would."""
    import torch.distributed as dist

    # for the one block that is meant to be started by torchrun
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    namespace: dict = {"__name__": "__docs__"}
    for block in blocks(page, "python", "console", "bash"):
        if block.hub:
            SKIPPED[not_executed.WITH_A_HUB] += 1 if block.kind == "python" else len(block.commands)
            continue
        if block.kind == "python":
            against = [why for name, part, why in not_executed.BLOCKS if name == page_id(page) and part in block.body]
            if against:
                SKIPPED[against[0]] += 1
                continue
            with monkeypatch.context() as patched:
                for name, value in group.items() if "init_process_group" in block.body else ():
                    patched.setenv(name, value)
                run_block(page, block, namespace, capsys)
            if dist.is_initialized():
                dist.destroy_process_group()
            continue
        for line in block.commands:
            reason = reason_against(line)
            if reason:
                SKIPPED[reason] += 1
            else:
                run_command(line)
                COUNTS["commands"] += 1
    COUNTS["pages"] += 1


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=page_id)
def test_notebook(notebook: Path, workplace: Path):
    """Runs from its first cell to its last, in an empty folder and without a network."""
    import nbformat
    from nbclient import NotebookClient

    read = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in read.cells), "notebooks are kept without output"
    folder = workplace.parent / "empty"
    folder.mkdir()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    NotebookClient(read, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    COUNTS["notebooks"] += 1


def test_every_exception_is_needed():
    """What is listed as not executed is on some page."""
    lines = [line for page in PAGES for block in blocks(page, "console", "bash") for line in block.commands]
    for pattern, _ in not_executed.COMMANDS:
        assert any(re.search(pattern, line) for line in lines), f"no command line matches '{pattern}' any more"
    for name, part, _ in not_executed.BLOCKS:
        assert any(part in block.body for block in blocks(ROOT / name, "python")), f"{name} has no '{part}' any more"
