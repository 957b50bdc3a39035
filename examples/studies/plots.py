"""Plots of the studies, one picture each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from plan import Study
from read import Reading, heading

COLOURS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#5b4b8a", "#8d6a4f")
MARKS = ("o", "s", "^", "D", "v", "P")


def _figure(rows: int, columns: int, width: float = 4.4, height: float = 2.8):
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def _save(figure, study: Study, path: Path) -> None:
    figure.suptitle(study.title, fontsize=11, wrap=True)
    # no date and no version in the file, so that equal results give an equal picture
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def _legend(axis, size: int = 7) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=size, frameon=False)


def _bars(axis, places, reading: Reading, cells, name: str, **style: Any) -> None:
    estimates = [reading.estimate(cell, name) if cell in reading.runs else None for cell in cells]
    there = [(place, one) for place, one in zip(places, estimates, strict=True) if one is not None]
    if there:
        axis.errorbar(
            [place for place, _ in there],
            [one.mean for _, one in there],
            [one.half or 0 for _, one in there],
            capsize=3,
            **style,
        )


def _cell(axis, reading: Reading, name: str) -> None:
    """One figure of a part. Of two axes of its grid one lies along the picture, the other is told by colour."""
    keys = list(reading.part.axes)
    along = next((key for key in keys if all(label.isdigit() for label in reading.part.axes[key])), keys[0])
    labels = list(reading.part.axes[along])
    rest = [key for key in keys if key != along]
    for number, label in enumerate(reading.part.axes[rest[0]] if rest else [None]):
        named = [{along: at} | ({rest[0]: label} if rest else {}) for at in labels]
        cells = [tuple(one[key] for key in keys) for one in named]
        style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKS[number], "label": label, "linewidth": 1}
        if not rest:
            style["linestyle"] = "none"
        _bars(axis, np.arange(len(labels)) + 0.06 * number, reading, cells, name, **style)
    short = max(map(len, labels)) < 6
    axis.set_xticks(
        range(len(labels)),
        labels,
        fontsize=8 if short else 7,
        rotation=0 if short else 30,
        ha="center" if short else "right",
    )
    axis.margins(x=0.08 if len(labels) > 3 else 0.3)
    if rest:
        axis.set_xlabel(along, fontsize=8)
        _legend(axis)


def grid(study: Study, readings: list[Reading], path: Path) -> None:
    """The first three figures of every part, means with intervals."""
    wanted = [[name for name in one.part.columns if name not in ("cpu s", "steps")][:3] for one in readings]
    figure, axes = _figure(len(readings), max(map(len, wanted)))
    for row, (one, names) in enumerate(zip(readings, wanted, strict=True)):
        for column, name in enumerate(names):
            _cell(axes[row, column], one, name)
            axes[row, column].set_title(f"{one.part.name}: {heading(name)[0]}", fontsize=9)
        for axis in axes[row, len(names) :]:
            axis.set_visible(False)
    _save(figure, study, path)


def depths(study: Study, readings: list[Reading], path: Path) -> None:
    """Recall, MRV by depth for both scores; cost beside them."""
    figure, axes = _figure(len(readings), 3)
    for row, one in enumerate(readings):
        (cell,) = one.runs
        of_depths = sorted(one.part.common["depths"])
        for column, name in enumerate(("ir@1", "mrv", "cpu ms")):
            axis = axes[row, column]
            for number, score in enumerate(("itm+sim", "itm")):
                estimates = [None if name == "cpu ms" else one.estimate(cell, name)]
                estimates += [one.estimate(cell, f"depths/{score} {depth}/{name}") for depth in of_depths]
                there = [(d, e) for d, e in zip([0, *of_depths], estimates, strict=True) if e is not None]
                axis.errorbar(
                    [str(d) for d, _ in there],
                    [e.mean for _, e in there],
                    [e.half or 0 for _, e in there],
                    capsize=3,
                    color=COLOURS[number],
                    marker=MARKS[number],
                    label=score,
                )
            axis.set_title(
                f"{one.part.name}: {'CPU-ms a query' if name == 'cpu ms' else heading(name)[0]}", fontsize=9
            )
            axis.set_xlabel("candidates re-ranked", fontsize=8)
            _legend(axis)
    _save(figure, study, path)


def noise(study: Study, readings: list[Reading], path: Path) -> None:
    """Recall of English and of the others by the share of English that is wrong, a line for each way."""
    figure, axes = _figure(len(readings), 3)
    for row, one in enumerate(readings):
        ways, shares = (list(labels) for labels in one.part.axes.values())
        for column, name in enumerate(("ir@1 en", "of kept/ir@1", "mrv")):
            axis = axes[row, column]
            for number, way in enumerate(ways):
                cells = [(way, share) for share in shares]
                style = {"color": COLOURS[number], "marker": MARKS[number], "label": way}
                _bars(axis, np.arange(len(shares)) + 0.05 * number, one, cells, name, **style)
            axis.set_xticks(range(len(shares)), shares)
            titles = {"ir@1 en": "R@1 in English", "of kept/ir@1": "R@1 in de, fr, cs", "mrv": "MRV over all four"}
            axis.set_title(f"{one.part.name}: {titles[name]}", fontsize=9)
            axis.set_xlabel("wrong English captions", fontsize=8)
            _legend(axis)
    _save(figure, study, path)


def geometry(study: Study, readings: list[Reading], path: Path) -> None:
    """Figures of the probe through training, means over seeds."""
    names = ("distance", "distance variance", "spread", "cosine projections", "cosine towers")
    figure, axes = _figure(len(readings), len(names), width=3.4)
    for row, one in enumerate(readings):
        for column, name in enumerate(names):
            axis, drawn = axes[row, column], False
            for number, (cell, runs) in enumerate(one.runs.items()):
                probes = [record["figures"]["probe"] for record in runs.values()]
                if not probes or name not in probes[0][0]:
                    continue
                steps = [look["step"] for look in probes[0]]
                values = np.array([[look[name] for look in probe] for probe in probes])
                axis.plot(steps, values.mean(0), color=COLOURS[number], label=cell[0])
                axis.fill_between(steps, values.min(0), values.max(0), color=COLOURS[number], alpha=0.15)
                drawn = True
            axis.set_visible(drawn)
            axis.set_title(f"{one.part.name}: {name}", fontsize=9)
            axis.set_xlabel("step", fontsize=8)
            if drawn and column == 0:
                _legend(axis)
    _save(figure, study, path)


def searchers(study: Study, runs: dict[str, list[dict]], path: Path) -> None:
    """Every run as a point: MRV or recall against what a searcher sees."""
    names = ("switch@10", "looks apart", "pages lost")
    figure, axes = _figure(len(runs), 2 * len(names), width=2.9)
    for row, (bed, found) in enumerate(runs.items()):
        for column, name in enumerate(names):
            for side, key in enumerate(("mrv", "ir@10")):
                axis = axes[row, 2 * column + side]
                axis.scatter(
                    [r["figures"][key] for r in found], [r["figures"][name] for r in found], s=8, color=COLOURS[side]
                )
                axis.set_xlabel(f"{bed}: {heading(key)[0]}", fontsize=8)
                axis.set_title(heading(name)[0], fontsize=8)
    _save(figure, study, path)


def recall(study: Study, readings: list[Reading], path: Path) -> None:
    """MRV against recall, a point with intervals for each choice."""
    figure, axes = _figure(len(readings), 2, width=6.0, height=4.6)
    for row, one in enumerate(readings):
        for column, name in enumerate(("ir@1", "ir@10")):
            axis = axes[row, column]
            for number, cell in enumerate(one.runs):
                x, y = one.estimate(cell, name), one.estimate(cell, "mrv")
                if x is None or y is None:
                    continue
                axis.errorbar(
                    x.mean,
                    y.mean,
                    y.half or 0,
                    x.half or 0,
                    fmt=MARKS[number // len(COLOURS) % len(MARKS)],
                    color=COLOURS[number % len(COLOURS)],
                    label=", ".join(cell),
                    linewidth=0.8,
                )
            axis.set_xlabel(heading(name)[0], fontsize=9)
            axis.set_ylabel("MRV", fontsize=9)
            axis.set_title(one.part.name, fontsize=9)
            _legend(axis, 6)
    _save(figure, study, path)
