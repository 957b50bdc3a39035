"""Check which room imports which: `python tests/check_import_rules.py [FOLDER]`.

The rules stand in pyproject.toml. They are checked on an installed wheel, since the package `ccrk` exists only there:
on the one in FOLDER, or on a fresh one.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

from build_wheel import ROOT, install_wheel
from importlinter.cli import EXIT_STATUS_ERROR, lint_imports


def check(site: Path) -> int:
    """Lint the `ccrk` installed in `site` and return the exit code of the linter."""
    sys.path.insert(0, str(site))
    spec = importlib.util.find_spec("ccrk")
    # A checkout installed as editable must not get in front, or the linter would see a part of the rooms.
    if spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(site):
        print(f"import rules: ccrk was not found in {site} but at {spec and spec.origin}", file=sys.stderr)
        return EXIT_STATUS_ERROR
    return lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)


def main() -> int:
    """Check the folder that was named, or a wheel built and installed for the purpose."""
    if len(sys.argv) > 1:
        return check(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        return check(install_wheel(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
