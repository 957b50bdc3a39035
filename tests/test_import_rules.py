from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


def check(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    script = checkout / "tests" / "check_import_rules.py"
    return subprocess.run([sys.executable, script, site], capture_output=True, text=True, cwd=site.parent)


def plant(installed_wheel: Path, tmp_path: Path, file: str, line: str) -> Path:
    site = tmp_path / "site"
    shutil.copytree(installed_wheel, site)
    with (site / "ccrk" / file).open("a") as stream:
        stream.write(f"\n{line}\n")
    return site


def test_the_tree_keeps_the_rules(checkout: Path, installed_wheel: Path):
    result = check(checkout, installed_wheel)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("data/__init__.py", "import ccrk.trainer", "trainer is imported by cli"),
        ("data/planted.py", "from ccrk import CCRkModel", "nothing from ccrk itself"),
        ("losses_ccrk.py", "from .data import planted", "data is imported by"),
        ("metrics/mrv/planted.py", "from ccrk.losses_ccrk import one_to_k", "import no module of the core"),
        ("hub_cards/planted.py", "def late():\n    import ccrk.configuration_ccrk", "import no module of the core"),
        ("trainer/planted.py", "from ccrk.metrics import mrv", "metrics is imported by"),
        ("pipelines/planted.py", "from ..evaluation import planted", "evaluation is imported by"),
        ("serving/planted.py", "import ccrk.cli.main", "cli is imported by nobody"),
    ],
)
def test_a_planted_violation_is_caught(
    checkout: Path, installed_wheel: Path, tmp_path: Path, file: str, line: str, contract: str
):
    result = check(checkout, plant(installed_wheel, tmp_path, file, line))
    # how many imports were ignored may follow
    broken = [row for row in result.stdout.splitlines() if " BROKEN" in row]
    assert result.returncode == 1, result.stdout + result.stderr
    assert any(contract in row for row in broken), result.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("hub_cards/planted.py", "import ccrk.metrics.mrv"),
        ("data/planted.py", "import ccrk.data"),
        ("evaluation/planted.py", "from ccrk import CCRkModel\nimport ccrk.data, ccrk.metrics"),
        ("trainer/planted.py", "import ccrk.losses_ccrk, ccrk.data, ccrk.evaluation, ccrk.hub_cards"),
        ("serving/planted.py", "import ccrk.pipelines, ccrk.metrics, ccrk.losses_ccrk"),
        ("cli/planted.py", "import ccrk.serving, ccrk.trainer, ccrk.data"),
    ],
)
def test_what_the_table_allows_is_kept(checkout: Path, installed_wheel: Path, tmp_path: Path, file: str, line: str):
    result = check(checkout, plant(installed_wheel, tmp_path, file, line))
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_room_has_a_contract(checkout: Path):
    config = tomllib.loads((checkout / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    guarded = {module for contract in contracts for module in contract.get("protected_modules", [])}
    rooms = {f"ccrk.{init.parent.name}" for init in checkout.glob("*/__init__.py")} - {"ccrk.modeling_ccrk"}
    assert guarded == rooms


def test_an_editable_install_would_not_be_linted_by_mistake(checkout: Path, tmp_path: Path):
    result = check(checkout, tmp_path)
    assert result.returncode == 1
    assert f"ccrk was not found in {tmp_path}" in result.stderr
