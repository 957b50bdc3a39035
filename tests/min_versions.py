"""Run the tests with the oldest dependencies that setup.py allows: `python tests/min_versions.py [PYTEST OPTIONS]`.

Every `>=` of the installed package's requirements becomes `==` in a new virtual environment. This takes minutes and
several gigabytes, so it is run before a floor is moved (`make test-min`) and not with every change.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# They build and lint the package, which does not depend on the versions of its libraries.
LEFT_OUT = ("test_packaging.py", "test_import_rules.py")


def floors(lines: list[str]) -> list[str]:
    """Turn requirements as the package declares them into pins at their floors.

    Raises:
        ValueError: If a requirement has no floor.
    """
    pins = set()
    for line in lines:
        requirement = Requirement(line)
        versions = [part.version for part in requirement.specifier if part.operator == ">="]
        if not versions:
            raise ValueError(f"requirement '{line}' has no floor; write it as {requirement.name}>=VERSION")
        pins.add(f"{requirement.name}=={versions[0]}")
    return sorted(pins)


def main() -> int:
    """Install the floors and the package, run pytest, return its exit code."""
    pins = floors(requires("ccrk") or [])
    print("floors:", *pins, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *pins], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)
        skipped = [f"--ignore=tests/{name}" for name in LEFT_OUT]
        return subprocess.run([Path(folder) / "bin" / "pytest", *skipped, *sys.argv[1:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
