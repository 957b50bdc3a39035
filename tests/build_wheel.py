"""Build a wheel from a copy of the checkout and install it beside: `python tests/build_wheel.py FOLDER`.

From a copy, because a build in place leaves `build/` behind, and files deleted since would still get into the next
wheel from there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "Makefile")


def copy_sources(target: Path) -> Path:
    """Copy what a build reads: the files that describe the package, and every folder that is a package."""
    target.mkdir(parents=True)
    for name in FILES:
        shutil.copy2(ROOT / name, target / name)
    for init in ROOT.glob("*/__init__.py"):
        shutil.copytree(init.parent, target / init.parent.name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def build_wheel(out: Path) -> Path:
    """Build into `out` with the setuptools that is installed, which needs no network."""
    source = copy_sources(out / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", out, source], check=True)
    (wheel,) = out.glob("ccrk-*.whl")
    return wheel


def install_wheel(out: Path) -> Path:
    """Build a wheel in `out` and install it, alone, into the folder that is returned."""
    site = out.resolve() / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, site, build_wheel(out)], check=True)
    return site


if __name__ == "__main__":
    print(install_wheel(Path(sys.argv[1])))
