from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from types import ModuleType

import pytest

from ccrk.cli import main as cli


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch):
    """Add a command `probe` whose run is the function given."""

    def add(run):
        module = ModuleType("ccrk.cli.probe")
        module.HELP = "A command of the tests."
        module.add_arguments = lambda parser: parser.add_argument("--number", type=int, default=0)
        module.run = run
        monkeypatch.setitem(sys.modules, "ccrk.cli.probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", "listed line")

    return add


def raising(error: BaseException):
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_a_listed_command_is_a_module_of_its_own(name: str):
    module = importlib.import_module(f"ccrk.cli.{name}")
    assert name == module.NAME
    assert module.HELP
    parser = cli.build_parser(name)
    assert len(re.findall(rf"^    {name} ", parser.format_help(), re.MULTILINE)) == 1


def test_help_lists_the_commands_and_imports_none_of_them(tmp_path):
    code = """
import ccrk, sys
from ccrk.cli.main import main
before = set(sys.modules)
try:
    main(["--help"])
finally:
    print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(f"    {name} " in result.stdout for name in cli.COMMANDS)
    loaded = {name.partition(".")[0] for name in result.stderr.split()} - set(sys.stdlib_module_names)
    assert not loaded, loaded


def test_options_reach_the_command_and_its_code_comes_back(probe):
    seen = []
    probe(lambda args: seen.append(args) or 7)
    assert cli.main(["--debug", "probe", "--number", "3"]) == 7
    assert cli.main(["probe", "--debug"]) == 7
    assert [(args.command, args.number, args.debug) for args in seen] == [("probe", 3, True), ("probe", 0, True)]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("photo 'a.txt' is no image"), 2, "photo 'a.txt' is no image"),
        (ValueError(), 2, "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "photos"), 2, "photos: No such file or directory"),
        (OSError("no model at 'x'"), 2, "no model at 'x'"),
        (
            ModuleNotFoundError("?", name="peft.tuners"),
            2,
            "peft.tuners is not installed; try: pip install 'ccrk[all]'",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_known_errors_are_one_line(probe, capsys, error: BaseException, code: int, message: str):
    probe(raising(error))
    assert cli.main(["probe"]) == code
    assert capsys.readouterr().err == f"ccrk probe: {message}\n"
    assert cli.main(["probe", "--debug"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback ") and shown.endswith(f"ccrk probe: {message}\n")


@pytest.mark.parametrize("error", [RuntimeError("bug"), ModuleNotFoundError("?", name="ccrk.cli.probe")])
def test_bugs_keep_their_traceback(probe, error: Exception):
    probe(raising(error))
    with pytest.raises(type(error)):
        cli.main(["probe"])


def test_a_reader_that_leaves_is_no_error(tmp_path):
    code = """
import sys
from types import ModuleType
from ccrk.cli import main as cli
module = ModuleType("ccrk.cli.probe")
module.HELP, module.add_arguments = "", lambda parser: None
module.run = lambda args: [print("x" * 1000) for _ in range(1000)] and 0
sys.modules["ccrk.cli.probe"] = module
cli.COMMANDS["probe"] = ""
sys.exit(cli.main(["probe"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait() == 141
    assert errors == ""


def test_a_broken_pipe_that_is_not_the_output_is_reported(probe, capsys):
    probe(raising(BrokenPipeError(32, "Broken pipe")))
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == "ccrk probe: [Errno 32] Broken pipe\n"


def test_an_unknown_command_names_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["serch"])
    error = capsys.readouterr().err
    assert "serch" in error and all(name in error for name in cli.COMMANDS)
