"""The pages of the documentation as the tests read them: blocks, prose, tables and command lines."""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "examples" / "README.md",
    *sorted(ROOT.glob("metrics/*/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/api/*.md")),
    *sorted(ROOT.glob("docs/studies/*.md")),
]
NOTEBOOKS = sorted(ROOT.glob("examples/notebooks/*.ipynb"))
RUN = "<!-- run -->"
RUN_WITH_A_HUB = "<!-- run with a hub -->"  # by tests/hub/test_hub_page.py
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<kind>\w+)\n(?P<body>.*?)\n```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: the word behind the fence, such as python.
        body: what is inside.
        marked: whether the run mark stands above it, for `make test`.
        hub: whether it is run against a Hub, elsewhere.
        output: what the page says that it prints: the text block right below it, if there is one.
    """

    kind: str
    body: str
    marked: bool
    hub: bool
    output: str | None

    @property
    def commands(self) -> list[str]:
        """Command lines of a block for a shell; in one with prompts the other lines are output."""
        lines = re.sub(r"\\\n\s*", " ", self.body).splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return prompted or [line for line in lines if shlex.split(line, comments=True)]


def page_id(page: Path) -> str:
    """Path of a page from the root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *kinds: str) -> list[Block]:
    """Blocks of a page, of these kinds or of all, in their order."""
    text = "\n" + page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        below = re.match(r"\n+```text\n(.*?)\n```", text[match.end() :], flags=re.DOTALL)
        output = below[1] if below and match["kind"] != "text" else None
        if not kinds or match["kind"] in kinds:
            before = match["before"].strip()
            found.append(Block(match["kind"], match["body"], before == RUN, before == RUN_WITH_A_HUB, output))
    return found


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def rows(page: Path) -> list[list[str]]:
    """Cells of every table row; a bar within backticks does not occur."""
    lines = [line for line in prose(page).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def command_lines(page: Path) -> list[list[str]]:
    """Every command line of a page, as words."""
    lines = [line for block in blocks(page, "console", "bash") for line in block.commands]
    return [shlex.split(line, comments=True) for line in lines]


def told_by(name: str) -> list[tuple[Path, list[str]]]:
    """Page and words of every command line of this program."""
    return [(page, line[1:]) for page in PAGES for line in command_lines(page) if line[0] == name]


def load(path: Path):
    """A module from its file; tests are no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
