"""Plots of a card, drawn from its results files, as PNG: the Hub does not show every SVG file that a card links."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from ccrk.metrics.report_figures import language_name

_BLUE, _ORANGE, _GREY, _DARK = "#2f5fd0", "#d06a1f", "#c9d0db", "#1c2330"


def draw_plots(part: Mapping[str, Any]) -> dict[str, bytes]:
    """The plots that one part of an evaluation allows.

    Args:
        part: of the `results` of an evaluation file (see `runs.strip_evaluation`).

    Returns:
        `recall` and, where there is what they show, `spread`, `growth` and `rerank`, each a PNG; nothing without
        matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return {}
    wanted: dict[str, tuple[Any, Callable]] = {
        "recall": (part["recall"], _recall),
        "spread": (part.get("spread"), _spread),
        "growth": (part.get("growth"), _growth),
        "rerank": (part.get("rerank"), _rerank),
    }
    return {name: draw(data) for name, (data, draw) in wanted.items() if data}


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Any, *place: int) -> Any:
    axes = figure.add_subplot(*place)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)
    axes.tick_params(colors=_DARK, labelsize=9, length=0)
    axes.set_axisbelow(True)
    return axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # a version there would change equal plots
    return buffer.getvalue()


def _recall(recall: Mapping[str, Any]) -> bytes:
    rows = sorted(recall["languages"].items(), key=lambda row: row[1]["ir@1"])
    figure = _figure(7, 0.9 + 0.3 * len(rows))
    axes = _axes(figure)
    for place, (tag, figures) in enumerate(rows):
        value = 100 * figures["ir@1"]
        worst = tag == recall["worst"] and len(rows) > 1 and recall["gap"] > 0
        axes.barh(place, value, height=0.66, color=_ORANGE if worst else _BLUE)
        end = value
        if figures.get("low") is not None:
            low, high = 100 * figures["low"], 100 * figures["high"]
            axes.plot([low, high], [place, place], color=_DARK, linewidth=1.4)
            axes.plot([low, high], [place, place], "|", color=_DARK, markersize=6)
            end = max(end, high)
        if figures.get("plain") is not None:
            axes.plot(100 * figures["plain"], place, "D", color="white", markeredgecolor=_DARK, markersize=5)
            end = max(end, 100 * figures["plain"])
        axes.text(end + 1.2, place, f"{value:.1f}", va="center", fontsize=9, color=_DARK)
    axes.set_yticks(range(len(rows)), [language_name(tag) for tag, _ in rows])
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="x", color=_GREY, linewidth=0.6)
    axes.set_xlabel("recall at 1, text to image, %", fontsize=9, color=_DARK)
    return _png(figure)


def _spread(spread: Mapping[str, Any]) -> bytes:
    figure = _figure(6, 2.8)
    axes = _axes(figure)
    shares = [100 * share for share in spread["shares"]]
    axes.bar(range(len(shares)), shares, width=0.8, color=_BLUE)
    for place, share in enumerate(shares):
        if share >= 0.5:
            axes.text(place, share, f"{share:.0f}", ha="center", va="bottom", fontsize=8, color=_DARK)
    names = ["none", "below 1"] + [f"{2**n}–{2 ** (n + 1)}" for n in range(len(shares) - 2)]
    axes.set_xticks(range(len(shares)), names[: len(shares)])
    axes.grid(axis="y", color=_GREY, linewidth=0.6)
    axes.set_xlabel("places by which the rank of a photo varies over languages", fontsize=9, color=_DARK)
    axes.set_ylabel("photos, %", fontsize=9, color=_DARK)
    return _png(figure)


def _growth(growth: Mapping[str, Any]) -> bytes:
    figure = _figure(6, 2.8)
    axes = _axes(figure)
    sizes = range(2, 2 + len(growth["closest"]))
    axes.plot(sizes, growth["closest"], "o-", color=_BLUE, markersize=4, label="the languages that are closest")
    axes.plot(sizes, growth["any"], "o--", color=_ORANGE, markersize=4, label="any languages, in the mean")
    axes.set_xticks(list(sizes))
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=_GREY, linewidth=0.6)
    axes.set_xlabel("languages compared", fontsize=9, color=_DARK)
    axes.set_ylabel("MRV, places", fontsize=9, color=_DARK)
    axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def _rerank(points: list[Mapping[str, Any]]) -> bytes:
    panels = [("ir@1", 100, "recall at 1, %", _BLUE), ("mrv", 1, "MRV, places", _ORANGE)]
    panels = [panel for panel in panels if all(point.get(panel[0]) is not None for point in points)]
    figure = _figure(3.3 * len(panels) + 0.4, 2.8)
    tops = [point["top"] for point in points]
    for number, (key, scale, label, color) in enumerate(panels, 1):
        axes = _axes(figure, 1, len(panels), number)
        axes.plot(range(len(tops)), [scale * point[key] for point in points], "o-", color=color, markersize=4)
        axes.set_xticks(range(len(tops)), [str(top) for top in tops])
        axes.set_ylim(0, 1.12 * scale * max(point[key] for point in points) or 1)
        axes.grid(axis="y", color=_GREY, linewidth=0.6)
        axes.set_xlabel("photos re-ranked", fontsize=9, color=_DARK)
        axes.set_ylabel(label, fontsize=9, color=_DARK)
    return _png(figure)
