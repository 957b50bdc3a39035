"""Check the types of the package: `python tests/check_types.py [FOLDER]`.

How strictly stands in pyproject.toml. Types are checked on an installed wheel, since the package `ccrk` exists only
there: on the one in FOLDER, or on a fresh one. Places are told as in the checkout.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from build_wheel import ROOT, install_wheel


def in_checkout(line: str) -> str:
    """A line of mypy's with the file that was installed replaced by the one that it was built from."""
    found = re.match(r"ccrk/([^:]+)", line)
    if found is None:
        return line
    own = found[1] if (ROOT / found[1]).exists() else f"modeling_ccrk/{found[1]}"
    return own + line[found.end() :]


def check(site: Path) -> int:
    """Check the `ccrk` installed in `site`, print what is wrong, and return the exit code of mypy."""
    # Run in the folder, so that paths, and with them what is kept in the cache, are the same for every folder.
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--package", "ccrk"]
    result = subprocess.run(
        [*command, "--cache-dir", ROOT / ".mypy_cache"], cwd=site, capture_output=True, text=True, check=False
    )
    print(*map(in_checkout, result.stdout.splitlines()), sep="\n")
    print(result.stderr, end="", file=sys.stderr)
    return result.returncode


def main() -> int:
    """Check the folder that was named, or a wheel built and installed for the purpose."""
    if len(sys.argv) > 1:
        return check(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        return check(install_wheel(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
