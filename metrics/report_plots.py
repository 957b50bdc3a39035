"""The plots of a report as HTML and inline SVG: text stays text, colours follow the page in light and in dark.

Colours are the classes `m0` to `m5` of the page's style, one for each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ccrk.metrics.report_figures import language_name

COLORS = 6
"""Distinct colours; the seventh model has the first one's again."""

_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 22, 46
_INNER_WIDTH, _INNER_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


def percent(share: float) -> str:
    """A share in percent, to one decimal, without the sign."""
    return f"{100 * share:.1f}"


def tagged(tag: str) -> str:
    """Name and tag of a language, as HTML."""
    name = language_name(tag)
    return f"{escape(name)}" + (f' <span class="tag">{escape(tag)}</span>' if name != tag else "")


# --- recall by language -------------------------------------------------------------------------------------------


def recall_bars(recalls: Sequence[dict]) -> str:
    """A bar for each language and model, best first, with interval and, if re-ranked, a mark for before.

    Args:
        recalls: `recall` of each summary.
    """
    tags = list(dict.fromkeys(tag for recall in recalls for tag in recall["languages"]))
    first = recalls[0]["languages"]
    tags.sort(key=lambda tag: -first[tag]["ir@1"] if tag in first else 1)
    alone = recalls[0] if len(recalls) == 1 and len(tags) > 1 else None
    band = ""
    if alone:
        low, high = (alone["languages"][alone[end]]["ir@1"] for end in ("worst", "best"))
        band = f'<i class="band" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
    rows = []
    for tag in tags:
        tracks = "".join(
            _track(recall["languages"][tag], number % COLORS, band)
            for number, recall in enumerate(recalls)
            if tag in recall["languages"]
        )
        worst = alone is not None and tag == alone["worst"] and alone["gap"] > 0
        mark = '<span class="note">worst</span>' if worst else ""
        rows.append(
            f'<div class="bar-row{" worst" if worst else ""}"><div class="bar-name">{tagged(tag)}{mark}</div>'
            f'<div class="tracks">{tracks}</div></div>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def _track(figures: dict, color: int, band: str) -> str:
    value, low, high = figures["ir@1"], figures.get("low"), figures.get("high")
    marks, ends = "", ""
    if figures.get("plain") is not None:
        marks += f'<i class="before" style="left:{100 * figures["plain"]:.2f}%"></i>'
    if low is not None and high is not None:
        marks += f'<i class="whisker" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
        ends = f"<small>{percent(low)}–{percent(high)}</small>"
    return (
        f'<div class="line"><div class="track">{band}<i class="fill m{color}" style="width:{100 * value:.2f}%"></i>'
        f'{marks}</div><div class="value"><b>{percent(value)}</b>{ends}</div></div>'
    )


# --- distribution -------------------------------------------------------------------------------------------------


def spread_plot(spreads: Sequence[dict | None]) -> str:
    """Bars of the shares of photos by how far their rank varies, in powers of two.

    Args:
        spreads: `spread` of each summary.
    """
    bins = max(len(spread["shares"]) for spread in spreads if spread)
    top = nice_ceiling(max(max(spread["shares"]) for spread in spreads if spread))
    step = _INNER_WIDTH / (bins + 0.5)  # half a bin between those that do not move and the rest
    width = step * 0.84 / len(spreads)
    parts = _grid([(_y(part * top / 4, top), f"{25 * part * top:g}%") for part in range(5)])
    for number, spread in enumerate(spreads):
        for place, share in enumerate(spread["shares"] if spread else ()):
            left = _LEFT + step * (place + 0.5 * (place > 0) + 0.08) + number * width
            y = _y(share, top)
            title = escape(f"{_bin_name(place)}: {percent(share)} % of the photos")
            height = _TOP + _INNER_HEIGHT - y
            parts.append(
                f'<rect class="m{number % COLORS}" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" rx="1.5"><title>{title}</title></rect>'
            )
            if len(spreads) == 1 and share >= 0.005:
                label = f"{100 * share:.0f}"
                parts.append(f'<text class="small" x="{left + width / 2:.1f}" y="{y - 4:.1f}">{label}</text>')
    parts.append(_text(_LEFT + step / 2, _HEIGHT - _BOTTOM + 17, "none"))
    for place in range(2, bins + 1):
        edge = 2 ** (place - 2)
        label = f"{edge // 1024}k" if edge >= 1024 else str(edge)
        if place < bins or bins == 2:
            parts.append(_text(_LEFT + step * (place + 0.5), _HEIGHT - _BOTTOM + 17, label))
    parts.append(_text(_LEFT + _INNER_WIDTH / 2, _HEIGHT - 6, "standard deviation of the rank (places)", "axis"))
    return _svg(parts, "Share of the photos by the standard deviation of their rank over languages")


def _bin_name(place: int) -> str:
    if place < 2:
        return ("no variation", "less than 1")[place]
    return f"{2 ** (place - 2)} to {2 ** (place - 1)}"


# --- lines --------------------------------------------------------------------------------------------------------


def line_plot(
    lines: Sequence[tuple[str, Sequence[float | None], str]],
    places: Sequence[object],
    *,
    axis: str,
    label: str,
    shown: str = "{:.1f}",
) -> str:
    """Lines over named places at equal distances, from zero up.

    Args:
        lines: name, a value for each place (None where there is none) and classes: a colour and maybe `dashed`.
        places: what stands below.
        axis: what they are.
        label: of the plot, for those who cannot see it.
        shown: format of a value.
    """
    top = nice_ceiling(max((value for _, values, _ in lines for value in values if value is not None), default=1))
    step = _INNER_WIDTH / max(len(places) - 1, 1)
    parts = _grid([(_y(part * top / 4, top), f"{part * top / 4:g}") for part in range(5)])
    stride = max(1, -(-len(places) // 10))
    for number, place in enumerate(places):
        if number % stride == 0:
            parts.append(_text(_LEFT + number * step, _HEIGHT - _BOTTOM + 17, str(place)))
    parts.append(_text(_LEFT + _INNER_WIDTH / 2, _HEIGHT - 6, axis, "axis"))
    for name, values, classes in lines:
        points = [(_LEFT + n * step, _y(value, top), value) for n, value in enumerate(values) if value is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline class="{classes}" points="{path}"/>')
        for x, y, value in points:
            title = escape(f"{name}: {shown.format(value)}")
            parts.append(
                f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{title}</title></circle>'
            )
        if len(lines) == 1:
            for x, y, value in points[:: max(len(points) - 1, 1)]:
                side = "first" if x < _WIDTH / 2 else "last"
                parts.append(f'<text class="small {side}" x="{x:.1f}" y="{y - 8:.1f}">{shown.format(value)}</text>')
    return _svg(parts, label)


# --- agreement ----------------------------------------------------------------------------------------------------


def heat_map(agreement: dict) -> str:
    """Matrix of the languages as a table whose cells run from pale (least in common) to dark (most).

    Args:
        agreement: `agreement` of a summary.
    """
    tags, matrix = agreement["languages"], agreement["matrix"]
    values = [v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j and v is not None]
    least, reach = min(values), (max(values) - min(values)) or 1.0
    head = "".join(f'<th scope="col" title="{escape(language_name(tag))}">{escape(tag)}</th>' for tag in tags)
    rows = []
    for i, tag in enumerate(tags):
        cells = []
        for j, value in enumerate(matrix[i]):
            if i == j or value is None:
                cells.append('<td class="none">–</td>' if i != j else '<td class="none"></td>')
                continue
            depth = 0.1 + 0.75 * (value - least) / reach
            title = escape(f"{language_name(tag)} and {language_name(tags[j])}")
            dark = ' class="deep"' if depth > 0.72 else ""
            cells.append(
                f'<td{dark} style="background:rgba(47,95,208,{depth:.2f})" title="{title}">{percent(value)}</td>'
            )
        rows.append(
            f'<tr><th scope="row" title="{escape(language_name(tag))}">{escape(tag)}</th>{"".join(cells)}</tr>'
        )
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


# --- parts --------------------------------------------------------------------------------------------------------


def nice_ceiling(value: float) -> float:
    """The least of 1, 1.2, 1.6, 2, 3, 4, 6, 8 times a power of ten that is no less, so that quarters read well."""
    if value <= 0:
        return 1.0
    power = 1.0
    while value > 10 * power:
        power *= 10
    while value <= power:
        power /= 10
    return next(factor * power for factor in (1.2, 1.6, 2, 3, 4, 6, 8, 10) if value <= factor * power * (1 + 1e-9))


def _y(value: float, top: float) -> float:
    return _TOP + _INNER_HEIGHT * (1 - value / top)


def _grid(ticks: Sequence[tuple[float, str]]) -> list[str]:
    parts = []
    for y, label in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 6, y + 4, label, "end"))
    return parts


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    of_class = f' class="{kind}"' if kind else ""
    return f'<text{of_class} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
