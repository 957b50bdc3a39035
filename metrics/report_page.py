"""The page of a report: one HTML file that loads nothing, for a phone and a desktop, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ccrk.metrics.report_figures import language_name
from ccrk.metrics.report_plots import COLORS, heat_map, line_plot, percent, recall_bars, spread_plot, tagged
from ccrk.metrics.report_style import STYLE
from ccrk.metrics.report_words import comparison_rows, settings
from ccrk.metrics.thumbnails import Thumbnails

FOUND = 5
"""Photos found first that are shown for each language."""

PHOTO_SIDE, FOUND_SIDE = 160, 96
"""Pixels of the longer side of a photo, and of one that was found."""


def build_page(document: Mapping, results: Sequence[Mapping], *, photos: bool = True) -> tuple[str, dict | None]:
    """The page, and how many photos it shows and lacks (None without photos).

    Args:
        document: of `build_document`.
        results: that it was built from, in the same order.
        photos: put photos into it.
    """
    models = document["models"]
    thumbnails = Thumbnails() if photos else None
    # The photos that the page is about get their place before those that were found.
    if thumbnails:
        for model, result in zip(models, results, strict=True):
            for row in model["worst"]:
                path = _path(result, row["row"])
                if path is not None:
                    thumbnails.name(path, PHOTO_SIDE)
    sections = [
        _short(document),
        _recall(models),
        _spread(models),
        *(_comparison(comparison) for comparison in document["comparisons"]),
        _agreement(models),
        _reranking(models),
        *(_worst(m, r, n, thumbnails, len(models)) for n, (m, r) in enumerate(zip(models, results, strict=True))),
        _published(models),
        _settings(models, thumbnails),
    ]
    heading = escape(document["title"])
    rules = "\n".join(thumbnails.rules) if thumbnails else ""
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{STYLE}{rules}\n</style>\n</head>\n<body>\n<main>\n"
        f"{_header(models)}\n{chr(10).join(section for section in sections if section)}\n</main>\n</body>\n</html>\n"
    )
    return page, thumbnails.counts() if thumbnails else None


# --- top ----------------------------------------------------------------------------------------------------------


def _header(models: Sequence[Mapping]) -> str:
    names = "".join(
        f'<li class="name">{_dot(n, models)}{escape(model["name"])}</li>' for n, model in enumerate(models)
    )
    first = models[0]
    facts = [
        first["benchmark"],
        f"{first['images']:,} photos" if first["images"] else None,
        f"{first['texts']:,} captions" if first["texts"] else None,
        f"{len(first['recall']['languages'])} languages" if len(first["recall"]["languages"]) > 1 else None,
        f"protocol {first['protocol']}" if first["protocol"] else None,
    ]
    facts = " · ".join(escape(str(fact)) for fact in facts if fact)
    return (
        f'<header><h1>Do the languages agree?</h1><ul class="names">{names}</ul><p class="facts">{facts}</p></header>'
    )


def _dot(number: int, models: Sequence) -> str:
    return f'<i class="dot m{number % COLORS}"></i>' if len(models) > 1 else ""


def _section(heading: str, *parts: str, name: str = "") -> str:
    place = f' id="{name}"' if name else ""
    return f'<section class="card"{place}><h2>{escape(heading)}</h2>{"".join(parts)}</section>'


def _policy(models: Sequence[Mapping], key: str) -> str:
    """The rules of a figure: once if they are the same for all models."""
    texts = [model["policies"][key] for model in models]
    if len(set(texts)) > 1:
        texts = [f"{model['name']}: {text}" for model, text in zip(models, texts, strict=True)]
    return "".join(f'<p class="policy">{escape(text)}</p>' for text in dict.fromkeys(texts))


def _short(document: Mapping) -> str:
    models = document["models"]
    parts = []
    if len(models) > 1:
        names = [name for name, _, _ in _headlines(models[0])]
        rows = [[name, *(_headlines(model)[n][1] for model in models)] for n, name in enumerate(names)]
        parts.append(_table(["", *(model["name"] for model in models)], rows, numbers=range(1, len(models) + 1)))
    else:
        tiles = "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(beside)}</small></div>'
            for name, value, beside in _headlines(models[0])
        )
        parts.append(f'<div class="tiles">{tiles}</div>')
    for number, model in enumerate(models):
        if len(models) > 1:
            parts.append(f"<h3>{_dot(number, models)}{escape(model['name'])}</h3>")
        parts.append(f'<ul class="words">{"".join(f"<li>{_say(text)}</li>" for text in model["words"])}</ul>')
        if model["diagnoses"]:
            items = "".join(f"<li>{_lead(text)}</li>" for text in model["diagnoses"])
            parts.append(f'<ul class="diagnoses">{items}</ul>')
    parts += [f"<p>{_say(comparison['words'])}</p>" for comparison in document["comparisons"]]
    parts.append(f'<p class="explained">{_lead(document["mrv_explained"])}</p>')
    with_mrv = [model for model in models if model["mrv"]]
    return _section("In short", *parts, _policy(with_mrv, "mrv") if with_mrv else "", name="short")


def _say(text: str) -> str:
    """A sentence as HTML; a number stays on the line of its percent sign."""
    return escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


def _lead(text: str) -> str:
    """The text with what stands before its first colon in bold."""
    lead, colon, rest = text.partition(":")
    return f"<b>{_say(lead)}{colon}</b>{_say(rest)}"


def _headlines(model: Mapping) -> list[tuple[str, str, str]]:
    """Name, value and remark of the figures that stand on top."""
    recall, mrv, agreement = model["recall"], model["mrv"], model["agreement"]
    worst = language_name(recall["worst"])
    within = f"{mrv['low']:.2f} to {mrv['high']:.2f}" if mrv and mrv.get("low") is not None else ""
    agreed = f"{agreement['k'] * agreement['mean']:.1f} of {agreement['k']}" if agreement else "–"
    several = len(recall["languages"]) > 1
    return [
        ("recall at 1, mean of languages", f"{percent(recall['mean'])} %", f"worst: {worst}" if several else worst),
        ("best less worst language", percent(recall["gap"]) if several else "–", "points" if several else ""),
        ("MRV, lower is better", f"{mrv['mrv']:.2f}" if mrv else "–", within),
        ("photos in common on the first page", agreed, "two languages, on average" if agreement else ""),
    ]


# --- plots --------------------------------------------------------------------------------------------------------


def _recall(models: Sequence[Mapping]) -> str:
    recall = models[0]["recall"]
    alone = len(models) == 1
    note = ""
    if alone and recall["gap"] > 0:
        best, worst = (language_name(recall[end]) for end in ("best", "worst"))
        note = f"The shaded band is the gap between {best} and {worst}: {percent(recall['gap'])} points."
    if any("plain" in figures for model in models for figures in model["recall"]["languages"].values()):
        note += " The hollow mark is recall before re-ranking."
    legend = _legend([(model["name"], f"m{n % COLORS}") for n, model in enumerate(models)]) if not alone else ""
    note = f"<p>{_say('The full width is 100 %. ' + note.strip())}</p>"
    tables = "".join(_recall_table(number, models) for number in range(len(models)))
    details = f"<details><summary>All recalls</summary>{tables}</details>"
    bars = recall_bars([model["recall"] for model in models])
    return _section("Recall by language", note, legend, bars, _policy(models, "recall"), details, name="recall")


def _recall_table(number: int, models: Sequence[Mapping]) -> str:
    languages = models[number]["recall"]["languages"]
    keys = list(dict.fromkeys(key for figures in languages.values() for key in figures if "@" in key))
    rows = [
        [
            language_name(tag),
            *(None if figures.get(key) is None else percent(figures[key]) for key in keys),
            None if figures["low"] is None else f"{percent(figures['low'])}–{percent(figures['high'])}",
            figures.get("queries"),
        ]
        for tag, figures in languages.items()
    ]
    title = f"<h3>{_dot(number, models)}{escape(models[number]['name'])}</h3>" if len(models) > 1 else ""
    header = ["language", *keys, "ir@1, 95 %", "captions"]
    return title + _table(header, rows, numbers=range(1, len(keys) + 3))


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><i class="dot {classes}"></i>{escape(name)}</li>' for name, classes in entries)
    return f'<ul class="legend">{items}</ul>'


def _spread(models: Sequence[Mapping]) -> str:
    spreads = [model["spread"] for model in models]
    if not any(spreads):
        return ""
    several = len(models) > 1
    legend = _legend([(model["name"], f"m{n % COLORS}") for n, model in enumerate(models)]) if several else ""
    sentences = "".join(f"<p>{_say(_spread_in_words(model, several))}</p>" for model in models if model["spread"])
    with_spread = [model for model in models if model["spread"]]
    plots = [f"<figure><figcaption>Share of photos</figcaption>{legend}{spread_plot(spreads)}</figure>"]
    grown = [(n, model) for n, model in enumerate(models) if model["growth"]]
    note = ""
    if grown:
        plots.append(_growth(grown, several))
        note = (
            '<p class="policy">MRV by number of languages: mean standard deviation over photos with a rank in every '
            "language. Solid: the two languages that are closest, then whichever raises it least. Dashed: mean over "
            "all sets of so many languages, as interchangeable languages would have it; it rises by itself.</p>"
        )
    return _section(
        "How far a photo moves from language to language",
        sentences,
        f'<div class="plots">{"".join(plots)}</div>',
        _policy(with_spread, "spread"),
        note,
        name="spread",
    )


def _spread_in_words(model: Mapping, several: bool) -> str:
    spread = model["spread"]
    who = f"{model['name']}: " if several else ""
    return (
        f"{who}{percent(spread['still'])} % of the photos stand at the same place in every language; half vary by "
        f"{spread['median']:.2f} or less, one in ten by {spread['p90']:.1f} or more, the worst by "
        f"{spread['largest']:.1f}."
    )


def _growth(grown: Sequence[tuple[int, Mapping]], several: bool) -> str:
    lines, entries = [], []
    for number, model in grown:
        color, prefix = f"m{number % COLORS}", f"{model['name']}, " if several else ""
        for key, name, classes in (("closest", "closest languages first", ""), ("any", "any languages", " dashed")):
            lines.append((prefix + name, model["growth"][key], color + classes))
            entries.append((prefix + name, color + classes))
    longest = max(len(model["growth"]["any"]) for _, model in grown)
    lines = [(name, [*values, *[None] * (longest - len(values))], classes) for name, values, classes in lines]
    plot = line_plot(
        lines, range(2, longest + 2), axis="languages", label="MRV by number of languages", shown="MRV {:.2f}"
    )
    return f"<figure><figcaption>MRV by number of languages</figcaption>{_legend(entries)}{plot}</figure>"


def _agreement(models: Sequence[Mapping]) -> str:
    shown = [(n, model) for n, model in enumerate(models) if model["agreement"]]
    if not shown:
        return ""
    maps = []
    for number, model in shown:
        title = f"<figcaption>{_dot(number, models)}{escape(model['name'])}</figcaption>" if len(models) > 1 else ""
        maps.append(f"<figure>{title}{heat_map(model['agreement'])}</figure>{_beside(model, number, models)}")
    k = shown[0][1]["agreement"]["k"]
    intro = f"<p>Percent of the first {k} photos that two languages have in common, pale for least, dark for most.</p>"
    policy = _policy([model for _, model in shown], "agreement")
    return _section(
        "The same first page?", intro, f'<div class="plots">{"".join(maps)}</div>', policy, name="agreement"
    )


def _beside(model: Mapping, number: int, models: Sequence[Mapping]) -> str:
    """Agreement of each language with the reference, in order and on the first page."""
    agreement = model["agreement"]
    if not agreement["overlap"]:
        return ""
    orders, k = agreement["correlation"] or {}, agreement["k"]
    rows = [
        [language_name(tag), None if value is None else f"{k * value:.1f}", _two(orders.get(tag))]
        for tag, value in agreement["overlap"].items()
    ]
    caption = f"{_dot(number, models)}Compared with {escape(language_name(agreement['reference']))}"
    table = _table(["language", f"in common of {k}", "order (−1 to 1)"], rows, numbers=(1, 2))
    return f"<figure><figcaption>{caption}</figcaption>{table}</figure>"


def _two(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _reranking(models: Sequence[Mapping]) -> str:
    shown = [(n, model) for n, model in enumerate(models) if model["rerank"]]
    if not shown:
        return ""
    tops = sorted({point["top"] for _, model in shown for point in model["rerank"]})
    plots = []
    for key, scale, title, form in (
        ("ir@1", 100, "Recall at 1, mean of languages, %", "{:.1f}"),
        ("mrv", 1, "MRV, lower is better", "{:.2f}"),
    ):
        lines = []
        for number, model in shown:
            values = {point["top"]: point[key] for point in model["rerank"]}
            values = [None if values.get(top) is None else scale * values[top] for top in tops]
            if any(value is not None for value in values):
                lines.append((model["name"], values, f"m{number % COLORS}"))
        if lines:
            plot = line_plot(lines, tops, axis="photos re-ranked", label=title, shown=form)
            plots.append(f"<figure><figcaption>{escape(title)}</figcaption>{plot}</figure>")
    legend = _legend([(model["name"], f"m{n % COLORS}") for n, model in shown]) if len(models) > 1 else ""
    policy = _policy([model for _, model in shown], "rerank")
    plots = f'<div class="plots">{"".join(plots)}</div>'
    return _section("What re-ranking gains", legend, plots, policy, name="rerank")


# --- photos -------------------------------------------------------------------------------------------------------


def _path(result: Mapping, row: int) -> str | None:
    images = result["items"].get("images")
    return images[row] if images else None


def _worst(model: Mapping, result: Mapping, number: int, thumbnails: Thumbnails | None, models: int) -> str:
    if not model["worst"]:
        return ""
    heading = "Photos that vary most" + (f": {model['name']}" if models > 1 else "")
    cards = "".join(_item(row, result, thumbnails) for row in model["worst"])
    legend = ""
    if thumbnails and result["items"].get("found"):
        legend = (
            f"<p>Beside each caption, the first {FOUND} photos that it finds; the right one has a green frame.</p>"
        )
    return _section(heading, legend, cards, _policy([model], "worst"), name=f"worst-{number + 1}")


def _item(row: Mapping, result: Mapping, thumbnails: Thumbnails | None) -> str:
    """One photo: itself, and for each language its place, the caption and what the caption finds."""
    items, place = result["items"], row["row"]
    ranks = {tag: rank for tag, rank in row["ranks"].items() if rank is not None}
    lines = []
    for tag in sorted(ranks, key=ranks.__getitem__):
        text = ((items.get("texts") or {}).get(tag) or [None] * (place + 1))[place]
        caption = f'<p class="caption" lang="{escape(tag)}" dir="auto">{escape(text)}</p>' if text else ""
        found = ((items.get("found") or {}).get(tag) or [None] * (place + 1))[place]
        tiles = "".join(_found(result, other, place, thumbnails) for other in found[:FOUND]) if found else ""
        strip = f'<div class="found">{tiles}</div>' if tiles and thumbnails else ""
        good = " first" if ranks[tag] < 1 else ""
        lines.append(
            f'<div class="ask"><div class="who">{tagged(tag)}<span class="place{good}">place {ranks[tag] + 1:g}</span>'
            f"</div>{caption}{strip}</div>"
        )
    absent = [tag for tag, rank in row["ranks"].items() if rank is None]
    none = f'<p class="policy">No rank in {escape(", ".join(absent))}.</p>' if absent else ""
    tile = ""
    if thumbnails:
        name = thumbnails.name(_path(result, place), PHOTO_SIDE)
        tile = f'<div class="photo {name or "missing"}" role="img" aria-label="photo {escape(row["image_id"])}"></div>'
    return (
        f'<article class="item"><div class="what">{tile}<div><b>{escape(row["image_id"])}</b>'
        f"<small>standard deviation {row['std']:.2f}</small></div></div>"
        f"<div>{''.join(lines)}{none}</div></article>"
    )


def _found(result: Mapping, row: int, right: int, thumbnails: Thumbnails | None) -> str:
    if thumbnails is None:
        return ""
    name = thumbnails.name(_path(result, row), FOUND_SIDE)
    label = escape(f"photo {result['items']['image_ids'][row]}" + (", the right one" if row == right else ""))
    good = " right" if row == right else ""
    return f'<span class="tiny {name or "missing"}{good}" role="img" aria-label="{label}" title="{label}"></span>'


# --- tables -------------------------------------------------------------------------------------------------------


def _table(header: Sequence, rows: Sequence[Sequence], numbers: Sequence[int] = (), strong: Sequence[int] = ()) -> str:
    """A table that scrolls by itself; `numbers` are columns set to the right, `strong` rows that stand out."""

    def cell(kind: str, column: int, value: Any) -> str:
        right = ' class="number"' if column in numbers else ""
        return f"<{kind}{right}>{escape('–' if value is None else str(value))}</{kind}>"

    head = "".join(cell("th", column, value) for column, value in enumerate(header))
    body = "".join(
        f"<tr{' class=strong' if number in strong else ''}>"
        f"{''.join(cell('td', column, value) for column, value in enumerate(row))}</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _comparison(comparison: Mapping) -> str:
    first, second = comparison["names"]
    rows = comparison_rows(comparison)
    table = ""
    if rows:
        tests = [test for test in comparison["languages"].values() if test]
        tests += [test for test in (comparison["hits"], comparison["variation"]) if test]
        clear = [number for number, test in enumerate(tests) if test["low"] > 0 or test["high"] < 0]
        header = ["", first, second, "difference", "95 % interval", "p"]
        table = _table(header, rows, numbers=range(1, 6), strong=clear)
    heading = f"{second} beside {first}"
    note = '<p class="policy">Bold: the interval does not hold 0.</p>' if rows else ""
    policy = f'<p class="policy">{escape(comparison["policy"])}</p>'
    return _section(heading, f"<p>{escape(comparison['words'])}</p>", table, note, policy)


def _published(models: Sequence[Mapping]) -> str:
    measured = [model for model in models if model["published"]]
    if not measured:
        return ""
    table = measured[0]["published"]

    rows = [[model["name"], "measured here", *map(_two, model["published"]["own"])] for model in measured]
    rows += [[name, setting, *map(_two, figures)] for name, setting, *figures in table["rows"]]
    header = ["model", "setting", *table["columns"]]
    body = _table(header, rows, numbers=range(2, len(header)), strong=range(len(measured)))
    policy = f'<p class="policy">Source: {escape(table["source"])}. {escape(table["note"])}</p>'
    return _section("Published figures", body, policy, name="published")


def _settings(models: Sequence[Mapping], thumbnails: Thumbnails | None) -> str:
    tables = [settings(model) for model in models]
    keys = dict.fromkeys(key for table in tables for key in table)
    header = ["setting", *(model["name"] for model in models)]
    parts = [_table(header, [[key, *(table.get(key) for table in tables)] for key in keys])]
    if thumbnails:
        counts = thumbnails.counts()
        text = f"{counts['shown']} photos are in this page."
        if counts["unreadable"]:
            text += f" {counts['unreadable']} could not be read and are grey."
        if counts["unknown"]:
            text += f" {counts['unknown']} grey tiles are of photos without a file."
        if counts["left_out"]:
            text += f" {counts['left_out']} are grey to keep the page small."
        parts.append(f'<p class="policy">{text}</p>')
    return _section("How it was measured", *parts, name="settings")
