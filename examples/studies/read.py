"""Tables of a study's results: means over seeds with intervals, paired differences, and what is not shown."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import Any

from plan import HERE, Part, Study
from scipy import stats

DOCS = HERE.parents[1] / "docs" / "studies"
# figure -> heading, and decimals
HEADINGS = {
    "ir@1": ("R@1", 1),
    "ir@5": ("R@5", 1),
    "ir@10": ("R@10", 1),
    "tr@1": ("image to text R@1", 1),
    "tr@10": ("image to text R@10", 1),
    "mrv": ("MRV", 2),
    "mad": ("MRV (mad)", 2),
    "mean rank": ("mean rank", 1),
    "overlap@10": ("first page in common, %", 1),
    "switch@10": ("on one first page alone, %", 1),
    "looks apart": ("looked at in one alone, %", 1),
    "pages lost": ("page turns lost", 3),
    "cpu s": ("CPU-s", 0),
    "steps": ("steps", 0),
}


@dataclass
class Estimate:
    """A mean over seeds and half the width of its 95 % interval (Student's t).

    Attributes:
        mean: of the values.
        half: half the width; None for a single value.
        count: number of values.
    """

    mean: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Estimate:
        """From one value for each seed."""
        mean, count = statistics.fmean(values), len(values)
        if count < 2:
            return cls(mean, None, count)
        error = statistics.stdev(values) / count**0.5
        return cls(mean, float(stats.t.ppf(0.975, count - 1)) * error, count)

    @property
    def shown(self) -> bool:
        """Whether the interval of a difference leaves out zero."""
        return self.half is not None and abs(self.mean) > self.half

    def text(self, decimals: int, sign: bool = False) -> str:
        """As in a table."""
        if self.half == 0 and not sign:
            return f"{self.mean:.{decimals}f}"
        mean = f"{self.mean:{'+' if sign else ''}.{decimals}f}"
        return mean if self.half is None else f"{mean} ± {self.half:.{decimals}f}"


def figure(record: dict[str, Any], name: str) -> float | None:
    """A figure of a run by its name: a path such as `of kept/mrv`, `cpu s` (of training) or `steps`."""
    if name == "cpu s":
        return record["cpu_seconds"]["training"]
    if name == "steps":
        return record["steps"]
    value: Any = record["figures"]
    for word in name.split("/"):
        if not isinstance(value, dict) or word not in value:
            return None
        value = value[word]
    return value


def heading(name: str) -> tuple[str, int]:
    """Heading and decimals of a figure."""
    *path, last = name.split("/")
    words, decimals = HEADINGS.get(last, (last, 2))
    if last not in HEADINGS and last.startswith("ir@1 "):
        words, decimals = f"R@1 {last.split()[1]}", 1
    path = [word for word in path if word != "depths"]
    return f"{words} ({', '.join(path)})" if path else words, decimals


class Reading:
    """Results of a part, by cell and seed.

    Args:
        part: of a study.
        records: key -> record.
        seeds: all that a record is there for, by default.
    """

    def __init__(self, part: Part, records: dict[str, dict[str, Any]]):
        from runs import key_of

        self.part = part
        seeds = sorted({record["seed"] for record in records.values()})
        self.runs: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
        for cell in part.cells():
            settings = part.settings(cell)
            keys = {seed: key_of(part.bed, settings, seed) for seed in seeds}
            self.runs[cell] = {seed: records[key] for seed, key in keys.items() if key in records}

    def values(self, cell: tuple[str, ...], name: str) -> dict[int, float]:
        """Seed -> figure."""
        found = {seed: figure(record, name) for seed, record in self.runs[cell].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, cell: tuple[str, ...], name: str) -> Estimate | None:
        """Of a cell; None where there is nothing."""
        values = list(self.values(cell, name).values())
        return Estimate.of(values) if values else None

    def difference(self, cell: tuple[str, ...], name: str, other: tuple[str, ...] | None = None) -> Estimate | None:
        """Of a cell less another, seed by seed; the other is the cell that it is compared with, by default."""
        other = self.part.baseline(cell) if other is None else other
        if other is None or other not in self.runs:
            return None
        first, second = self.values(other, name), self.values(cell, name)
        both = [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]
        return Estimate.of(both) if both else None

    def times(self, cell: tuple[str, ...], name: str) -> Estimate | None:
        """What a cell's figure is of that of the cell that it is compared with, seed by seed."""
        first, second = self.values(self.part.baseline(cell), name), self.values(cell, name)
        both = [second[seed] / first[seed] for seed in sorted(first.keys() & second.keys())]
        return Estimate.of(both) if both else None


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def table(reading: Reading, columns: list[str]) -> str:
    """A table in Markdown: a line for each cell, with its difference from the cell that it is compared with."""
    part = reading.part
    compared = " and ".join(f"{axis} {label}" for axis, label in part.against.items())
    rows = []
    for cell in reading.runs:
        estimates = [(reading.estimate(cell, name), heading(name)[1]) for name in columns]
        figures = ["" if estimate is None else estimate.text(decimals) for estimate, decimals in estimates]
        rows.append([*cell, *figures, str(len(reading.runs[cell]))])
    first = markdown([*part.axes, *(heading(name)[0] for name in columns), "seeds"], rows)
    rows, costs = [], "cpu s" in columns
    columns = [name for name in columns if name not in ("cpu s", "steps")]
    for cell in reading.runs:
        if part.baseline(cell) is not None:
            row = [*cell, *(told(reading.difference(cell, name), heading(name)[1]) for name in columns)]
            if costs:
                ratio = reading.times(cell, "cpu s")
                row.append("" if ratio is None else ratio.text(2))
            rows.append(row)
    heads = [*part.axes, *(heading(name)[0] for name in columns), *(["CPU-s, ratio"] if costs else [])]
    second = markdown(heads, rows)
    return f"{first}\n\nDifferences from {compared}, paired by seed; in brackets what is not shown:\n\n{second}"


def told(difference: Estimate | None, decimals: int) -> str:
    """A difference, in brackets where it is not shown."""
    if difference is None:
        return ""
    text = difference.text(decimals, sign=True)
    return text if difference.shown else f"({text})"


def into_page(study: Study, texts: dict[str, str]) -> None:
    """Puts tables into the study's page of the docs, between `<!-- table NAME -->` and `<!-- end -->`."""
    page = DOCS / f"{study.name}.md"
    if not page.exists():
        print("\n\n".join(f"{name}\n\n{text}" for name, text in texts.items()))
        return
    old = page.read_text(encoding="utf-8")
    new = old
    for name, text in texts.items():
        marks = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        new = marks.sub(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", new)
    if new != old:
        page.write_text(new, encoding="utf-8")


def write(study: Study) -> None:
    """Tables into the page, and the plot into the folder of the study."""
    from views import VIEWS

    texts, draw = VIEWS[study.view](study)
    into_page(study, texts)
    draw(study.folder / "plot.png")
