from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


def check(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    script = checkout / "tests" / "check_types.py"
    return subprocess.run([sys.executable, script, site], capture_output=True, text=True, cwd=site.parent)


@pytest.mark.slow
def test_the_tree_is_typed_and_a_planted_error_is_caught(checkout: Path, installed_wheel: Path, tmp_path: Path):
    result = check(checkout, installed_wheel)
    assert result.returncode == 0, result.stdout + result.stderr
    site = tmp_path / "site"
    shutil.copytree(installed_wheel, site)
    with (site / "ccrk" / "metrics" / "significance.py").open("a") as stream:
        stream.write("\n\ndef planted(values: list[str]) -> int:\n    return interval(values)\n")
    result = check(checkout, site)
    assert result.returncode == 1
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2 and all(line.startswith("metrics/significance.py:") for line in errors), result.stdout


def test_modules_that_are_excused_exist(checkout: Path, installed_wheel: Path):
    """A file that was renamed takes its excuse along, or loses it."""
    overrides = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    names = {name for one in overrides if "disable_error_code" in one for name in one["module"]}
    assert names
    for name in names:
        file = installed_wheel.joinpath(*name.split(".")).with_suffix(".py")
        assert file.exists(), f"pyproject.toml excuses {name}, which there is not"


def test_the_type_checker_names_files_of_the_checkout(checkout: Path):
    spec = importlib.util.spec_from_file_location("check_types", checkout / "tests" / "check_types.py")
    sys.path.insert(0, str(checkout / "tests"))
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    assert module.in_checkout("ccrk/losses_ccrk.py:3: error: x") == "modeling_ccrk/losses_ccrk.py:3: error: x"
    assert module.in_checkout("ccrk/metrics/report.py:3: error: x") == "metrics/report.py:3: error: x"
    assert module.in_checkout("Found 1 error") == "Found 1 error"
