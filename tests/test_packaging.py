from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

GENERIC = [
    "cli",
    "data",
    "evaluation",
    "hub_cards",
    "metrics",
    "modeling_ccrk",
    "pipelines",
    "serving",
    "tests",
    "trainer",
]


def python(code: str, cwd: Path, *argv: str, executable: Path | str = sys.executable, **env: str) -> str:
    result = subprocess.run(
        [executable, "-c", code, *argv], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def new_environment(folder: Path) -> Path:
    """The Python of a new environment that sees the libraries of this one but not its ccrk.

    A folder named in a .pth file does not have its own .pth files read, and that is how an editable install is found.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    executable = folder / "bin" / "python"
    site = python("import sysconfig; print(sysconfig.get_path('purelib'))", folder, executable=executable).strip()
    # that of this interpreter, and what it is given in the same way itself
    places = [path for path in sys.path if path.endswith("site-packages")]
    Path(site, "libraries.pth").write_text("\n".join([sysconfig.get_path("purelib"), *places]) + "\n")
    return executable


def install(executable: Path, *target: Path | str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", executable, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--ignore-installed", *target], check=True)


def room_files(checkout: Path, pattern: str) -> set[str]:
    """Files of the checkout's packages, under the names that they have in a wheel."""
    names = set()
    for init in checkout.glob("*/__init__.py"):
        room = init.parent
        prefix = "ccrk" if room.name == "modeling_ccrk" else f"ccrk/{room.name}"
        files = (file for file in room.rglob(pattern) if file.is_file() and "__pycache__" not in file.parts)
        names |= {f"{prefix}/{file.relative_to(room).as_posix()}" for file in files}
    return names


def test_wheel_holds_ccrk_and_nothing_beside_it(checkout: Path, built_wheel: Path):
    with zipfile.ZipFile(built_wheel) as wheel:
        names = set(wheel.namelist())
    (info,) = {name.partition("/")[0] for name in names} - {"ccrk"}
    assert re.fullmatch(r"ccrk-[0-9.]+\.dist-info", info)
    # code, recipes, templates, cards: all that a room holds, and no test, page or data set beside it
    assert {name for name in names if name.startswith("ccrk/")} == room_files(checkout, "*")
    assert {"ccrk/py.typed", "ccrk/metrics/mrv/README.md", "ccrk/trainer/recipes/small-cpu.yaml"} <= names
    assert f"{info}/licenses/LICENSE" in names


def test_wheel_metadata(checkout: Path, built_wheel: Path):
    source = (checkout / "modeling_ccrk" / "__init__.py").read_text()
    with zipfile.ZipFile(built_wheel) as wheel:
        (info,) = {name.partition("/")[0] for name in wheel.namelist()} - {"ccrk"}
        metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert f'__version__ = "{metadata["Version"]}"' in source
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra")) == {
        "all",
        "dev",
        "docs",
        "evaluate",
        "lance",
        "milvus",
        "mteb",
        "onnx",
        "ray",
        "sentence-transformers",
        "serve",
        "train",
    }
    assert scripts.split("\n")[:2] == ["[console_scripts]", "ccrk = ccrk.cli.main:main"]


FIND = """
import importlib.util, json, sys
print(json.dumps({n: (s := importlib.util.find_spec(n)) and s.origin for n in sys.argv[1:]}))
"""


def test_only_ccrk_is_importable(installed_wheel: Path, tmp_path: Path):
    found = json.loads(python(FIND, tmp_path, "ccrk", *GENERIC, PYTHONPATH=str(installed_wheel)))
    assert found == {"ccrk": str(installed_wheel / "ccrk" / "__init__.py"), **dict.fromkeys(GENERIC)}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["{source}"], id="plain", marks=pytest.mark.slow),
        pytest.param(["-e", "{source}"], id="editable"),
        pytest.param(
            ["-e", "{source}", "--config-settings", "editable_mode=strict"], id="strict", marks=pytest.mark.slow
        ),
        pytest.param(["{wheel}"], id="wheel", marks=pytest.mark.slow),
    ],
)
def test_every_way_to_install(how: list[str], built_wheel: Path, tmp_path: Path):
    venv = tmp_path / "venv"
    executable = new_environment(venv)
    # the copy of the sources that the wheel was built from
    source = built_wheel.parent / "source"
    install(executable, *(part.format(source=source, wheel=built_wheel) for part in how))

    found = json.loads(python(FIND, tmp_path, "ccrk", "ccrk.cli.main", *GENERIC, executable=executable))
    assert {name for name, origin in found.items() if origin} == {"ccrk", "ccrk.cli.main"}
    assert Path(found["ccrk"]).is_relative_to(source if how[0] == "-e" else venv) or "strict" in how[-1]
    command = subprocess.run([venv / "bin" / "ccrk", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert command.returncode == 0, command.stderr
    assert re.fullmatch(r"ccrk \d+\.\d+\.\d+\n", command.stdout)


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two files of a release, built from a copy as `make dist` builds them."""
    folder = tmp_path_factory.mktemp("dist")
    left_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "_build")
    shutil.copytree(checkout, folder / "source", ignore=left_out, symlinks=True)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    check = [sys.executable, "-m", "twine", "check", "--strict", sdist, wheel]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    return {"sdist": sdist, "wheel": wheel}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_release_works_in_a_clean_environment(
    checkout: Path, distributions: dict[str, Path], kind: str, tmp_path: Path
):
    executable = new_environment(tmp_path / "venv")
    install(executable, distributions[kind])
    script = checkout / "tests" / "check_installed.py"
    result = subprocess.run([executable, "-P", script, checkout], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"\d+ commands, a search, two metrics", result.stdout)


@pytest.mark.slow
def test_the_source_archive_can_test_itself(checkout: Path, distributions: dict[str, Path], tmp_path: Path):
    with tarfile.open(distributions["sdist"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("ccrk-*")
    executable = new_environment(tmp_path / "venv")
    install(executable, distributions["wheel"])
    collect = [executable, "-P", "-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow"]

    def collected(folder: Path) -> list[str]:
        result = subprocess.run(collect, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return [line for line in result.stdout.splitlines() if "::" in line]

    assert collected(source) == collected(checkout) != []


IMPORT = """
import json, sys, time
import torch, transformers, transformers.pipelines
before = set(sys.modules)
start = time.perf_counter()
import ccrk
print(json.dumps([time.perf_counter() - start, sorted(set(sys.modules) - before)]))
"""


def test_import_is_light(installed_wheel: Path, tmp_path: Path):
    seconds, new = json.loads(python(IMPORT, tmp_path, PYTHONPATH=str(installed_wheel)))
    print(f"import ccrk after torch and transformers: {seconds:.2f} s, {len(new)} modules")
    assert "ccrk" in new
    heavy = {"timm", "datasets", "evaluate", "peft", "transformers.trainer", "ccrk.trainer"}
    assert not heavy.intersection(new)
    assert seconds < 2


def test_version_and_date_are_the_same_everywhere(checkout: Path):
    citation = yaml.safe_load((checkout / "CITATION.cff").read_text(encoding="utf-8"))
    source = (checkout / "modeling_ccrk" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{citation["version"]}"' in source
    heading = f"## [{citation['version']}] - {citation['date-released']}"
    assert heading in (checkout / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert citation["license"] == "Apache-2.0" and citation["preferred-citation"]["year"] == 2024


def test_coverage_counts_every_room(checkout: Path):
    config = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["coverage"]
    rooms = {init.parent.name for init in checkout.glob("*/__init__.py")}
    assert set(config["run"]["source_dirs"]) == rooms == set(config["paths"])
    assert list(config["paths"])[-1] == "modeling_ccrk"
