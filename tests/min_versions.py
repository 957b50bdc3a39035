"""Run the tests with the oldest dependencies that setup.py allows: `python tests/min_versions.py [PYTEST OPTIONS]`.

Every `>=` of the installed package's requirements becomes `==` in a new virtual environment. This takes minutes and
several gigabytes, so it is run before a floor is moved (`make test-min`) and not with every change. `--venv FOLDER`
keeps the environment there and uses it again, to look at a test that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from importlib.metadata import metadata, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# They build and lint the package. Types of libraries differ between versions, and are checked with the newest.
LEFT_OUT = ("test_packaging.py", "test_import_rules.py", "test_types.py")


def floors(lines: list[str], extras: list[str]) -> list[str]:
    """Turn requirements as the package declares them into pins at their floors.

    Args:
        lines: Requirements as in the metadata of a package, each with its marker.
        extras: Names of the extras that count; what belongs to another one, or to another platform, is left out.

    Raises:
        ValueError: If a requirement has no floor.
    """
    pins = set()
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        versions = [part.version for part in requirement.specifier if part.operator == ">="]
        if not versions:
            raise ValueError(f"requirement '{line}' has no floor; write it as {requirement.name}>=VERSION")
        wanted = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        pins.add(f"{requirement.name}{wanted}=={versions[0]}")
    return sorted(pins)


def main() -> int:
    """Install the floors and the package, run pytest, return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--venv", metavar="FOLDER", help="keep the environment there, and use it if it exists")
    args, options = parser.parse_known_args()
    pins = floors(requires("ccrk") or [], metadata("ccrk").get_all("Provides-Extra") or [])
    print("floors:", *pins, flush=True)
    with contextlib.nullcontext(args.venv) if args.venv else tempfile.TemporaryDirectory() as folder:
        python = Path(folder).resolve() / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *pins], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)
        skipped = [f"--ignore=tests/{name}" for name in LEFT_OUT]
        return subprocess.run([python, "-P", "-m", "pytest", *skipped, *options], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
