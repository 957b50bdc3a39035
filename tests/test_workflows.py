"""The workflows of `.github/`: what can be known of them without running them where they run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WRITES = {"publish.yml: pypi": {"id-token": "write"}, "publish.yml: release": {"contents": "write"}}
"""The only jobs that may do more than read the repository."""


def load(file: Path) -> dict:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def steps(file: Path) -> list[dict]:
    return [step for job in load(file)["jobs"].values() for step in job["steps"]]


def test_workflows_are_there():
    assert {file.stem for file in FILES} == {"docs", "lint", "min-versions", "publish", "tests"}


def test_workflows_meet_the_schema_of_github(tmp_path: Path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    result = subprocess.run([*command, *FILES], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    broken = tmp_path / "broken.yml"
    broken.write_text(FILES[0].read_text(encoding="utf-8").replace("runs-on:", "runs_on:"), encoding="utf-8")
    assert subprocess.run([*command, broken], capture_output=True).returncode == 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_job_may_read_and_no_more(file: Path):
    workflow = load(file)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions") == WRITES.get(f"{file.name}: {name}"), name
        assert job["timeout-minutes"] <= 120
    text = file.read_text(encoding="utf-8")
    assert "secrets." not in text and "pull_request_target" not in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_by_major_version(file: Path):
    used = [step["uses"] for step in steps(file) if "uses" in step]
    assert used
    for name in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+|pypa/gh-action-pypi-publish@release/v1", name), name
    for step in steps(file):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_a_step_runs_is_there_and_takes_no_text_from_outside(file: Path):
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for step in steps(file):
        command = step.get("run", "")
        assert "${{" not in command, f"{command}: a title of a pull request may be a command; hand it over by env"
        assert set(re.findall(r"\bmake ([a-z-]+)", command)) <= targets, command
        for script in re.findall(r"\bpython (\S+\.py)", command):
            assert (ROOT / script).is_file(), script


def test_the_oldest_python_is_that_of_the_package():
    versions = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["newest"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.x"]
    assert 'python_requires=">=3.11"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def release_notes(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "release_notes.py", *words], capture_output=True, text=True
    )


def test_release_notes_are_those_of_the_version():
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / "tests" / "release_notes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    right = release_notes("--tag", f"v{module.version()}")
    assert right.returncode == 0, right.stderr
    assert right.stdout.startswith("### Added\n\n- The package `ccrk`")
    assert release_notes("--tag", "v9.9.9").returncode == 1
    text = "# Changelog\n\n## [0.2.0] - 2027-01-02\n\n- one\n  more\n- two\n\n## [0.1.0] - 2026-11-25\n\n- old\n"
    assert module.notes(text, "0.2.0") == "- one more\n- two"
    assert module.notes(text, "0.1.0") == "- old"
    for lacking in ("0.3.0", "0.1", "0x1.0"):
        with pytest.raises(ValueError, match="nothing below a heading"):
            module.notes(text, lacking)
