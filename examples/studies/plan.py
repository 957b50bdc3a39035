"""What a study consists of: parts, each a grid of settings on one test bed, read from its `study.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
BEDS = ("scenes", "photos")


def merged(*parts: dict[str, Any] | None) -> dict[str, Any]:
    """Settings put together; later ones count, and groups are joined."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in (part or {}).items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = {**result[key], **value} if both else value
    return result


@dataclass
class Part:
    """A grid of settings on one test bed.

    Attributes:
        name: of the part.
        bed: `scenes` or `photos`.
        seeds: of the runs.
        common: settings of all runs.
        axes: axis -> label -> settings; a cell of the grid is a label of each axis.
        against: axis and label that the other labels of that axis are compared with.
        columns: figures of the table.
        leave_out: cells that are not run, by the labels that they have together.
    """

    name: str
    bed: str
    axes: dict[str, dict[str, dict[str, Any] | None]]
    against: dict[str, str]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    common: dict[str, Any] = field(default_factory=dict)
    columns: list[str] = field(default_factory=lambda: ["ir@1", "ir@10", "mrv"])
    leave_out: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.bed not in BEDS:
            raise ValueError(f"the bed of '{self.name}' is '{self.bed}'; it is one of {', '.join(BEDS)}")
        self.axes = {axis: {str(label): part for label, part in of.items()} for axis, of in self.axes.items()}
        self.against = {axis: str(label) for axis, label in self.against.items()}
        for axis, label in self.against.items():
            if label not in self.axes.get(axis, {}):
                raise ValueError(f"'{self.name}' compares with {axis}='{label}', which is not in its grid")

    def cells(self) -> Iterator[tuple[str, ...]]:
        """The labels of every cell that is run, in the order of the axes."""
        for labels in product(*self.axes.values()):
            named = dict(zip(self.axes, labels, strict=True))
            if not any(all(named.get(axis) == str(label) for axis, label in out.items()) for out in self.leave_out):
                yield labels

    def settings(self, cell: tuple[str, ...]) -> dict[str, Any]:
        """Settings of a cell: the common ones, then those of each axis in turn."""
        return merged(self.common, *(self.axes[axis][label] for axis, label in zip(self.axes, cell, strict=True)))

    def baseline(self, cell: tuple[str, ...]) -> tuple[str, ...] | None:
        """The cell that a cell is compared with; None for that one itself."""
        named = dict(zip(self.axes, cell, strict=True)) | self.against
        found = tuple(named[axis] for axis in self.axes)
        return None if found == cell else found


@dataclass
class Study:
    """A question and the parts that answer it.

    Attributes:
        folder: of its configuration, results and plot.
        title: the question.
        parts: of the study.
        view: how its results are told and drawn, see `views`.
    """

    folder: Path
    title: str
    parts: list[Part]
    view: str = "grid"

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name


def study_names() -> list[str]:
    """Folders with a study, in order."""
    return sorted(path.parent.name for path in HERE.glob("*/study.yaml"))


def load_study(name: str) -> Study:
    """Reads a study by the name of its folder, or by the number that the name begins with.

    Raises:
        ValueError: if there is none, or its file says something that is not understood.
    """
    found = [one for one in study_names() if one == name or one.split("-")[0].lstrip("0") == name.lstrip("0")]
    if len(found) != 1:
        raise ValueError(f"there is no study '{name}'; there are {', '.join(study_names())}")
    folder = HERE / found[0]
    values = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    try:
        parts = [Part(**part) for part in values.pop("parts", [])]
        return Study(folder, parts=parts, **values)
    except TypeError as error:
        raise ValueError(f"'{folder / 'study.yaml'}': {error}") from error
