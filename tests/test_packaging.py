from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

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


def room_files(checkout: Path, pattern: str) -> set[str]:
    """Files of the checkout's packages, under the names that they have in a wheel."""
    names = set()
    for init in checkout.glob("*/__init__.py"):
        room = init.parent
        prefix = "ccrk" if room.name == "modeling_ccrk" else f"ccrk/{room.name}"
        names |= {f"{prefix}/{file.relative_to(room).as_posix()}" for file in room.rglob(pattern)}
    return names


def test_wheel_holds_ccrk_and_nothing_beside_it(checkout: Path, built_wheel: Path):
    with zipfile.ZipFile(built_wheel) as wheel:
        names = set(wheel.namelist())
    (info,) = {name.partition("/")[0] for name in names} - {"ccrk"}
    assert re.fullmatch(r"ccrk-[0-9.]+\.dist-info", info)
    assert {name for name in names if name.endswith(".py")} == room_files(checkout, "*.py")
    assert room_files(checkout, "README.md") <= names
    assert room_files(checkout, "requirements.txt") | room_files(checkout, "templates/*.*") <= names
    assert room_files(checkout, "*.yaml") == {name for name in names if name.endswith(".yaml")} != set()
    assert "ccrk/py.typed" in names
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
        "evaluate",
        "lance",
        "milvus",
        "onnx",
        "ray",
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
    # A new environment that sees the libraries of this one but not its ccrk: a folder named in a .pth file does not
    # have its own .pth files read, and that is how an editable install is found.
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    executable = venv / "bin" / "python"
    site = Path(
        python("import sysconfig; print(sysconfig.get_path('purelib'))", tmp_path, executable=executable).strip()
    )
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # the copy of the sources that the wheel was built from
    source = built_wheel.parent / "source"
    target = [part.format(source=source, wheel=built_wheel) for part in how]
    pip = [sys.executable, "-m", "pip", "--python", executable, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--ignore-installed", *target], check=True)

    found = json.loads(python(FIND, tmp_path, "ccrk", "ccrk.cli.main", *GENERIC, executable=executable))
    assert {name for name, origin in found.items() if origin} == {"ccrk", "ccrk.cli.main"}
    assert Path(found["ccrk"]).is_relative_to(source if how[0] == "-e" else venv) or "strict" in how[-1]
    command = subprocess.run([venv / "bin" / "ccrk", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert command.returncode == 0, command.stderr
    assert re.fullmatch(r"ccrk \d+\.\d+\.\d+\n", command.stdout)


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
