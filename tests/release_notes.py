"""Print what CHANGELOG.md says of the version: `python tests/release_notes.py [--tag v1.2.3]`.

With a tag it is checked to be that of the version in `modeling_ccrk/__init__.py`. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version() -> str:
    """`__version__` of the package."""
    source = (ROOT / "modeling_ccrk" / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)[0]


def notes(changelog: str, of: str) -> str:
    """The section of a version, without its heading; a line that was wrapped becomes one again, as GitHub wants it.

    Raises:
        ValueError: If the version has no section of the form `## [1.2.3] - 2026-01-31`, or an empty one.
    """
    found = re.search(
        rf"^## \[{re.escape(of)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", changelog, flags=re.MULTILINE | re.DOTALL
    )
    if found is None or not found[1].strip():
        raise ValueError(f"CHANGELOG.md has nothing below a heading '## [{of}] - YEAR-MONTH-DAY'")
    return re.sub(r"\n +", " ", found[1].strip())


def main() -> int:
    """Print the notes."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--tag", help="tag that has to be v and the version")
    tag, own = parser.parse_args().tag, version()
    if tag is not None and tag != f"v{own}":
        print(f"the tag is '{tag}', but the version in modeling_ccrk/__init__.py is {own}", file=sys.stderr)
        return 1
    try:
        print(notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), own))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
