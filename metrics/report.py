"""The report of one evaluation or of several side by side: JSON for programs, Markdown, and a page to look at."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ccrk.metrics.diagnosis import diagnose
from ccrk.metrics.files import write_whole
from ccrk.metrics.report_figures import check_results, compare, language_name, summarise
from ccrk.metrics.report_page import build_page
from ccrk.metrics.report_plots import percent
from ccrk.metrics.report_words import (
    comparison_in_words,
    comparison_policy,
    comparison_rows,
    mrv_explained,
    policies,
    settings,
    title,
    words,
)

__all__ = ["diagnose", "write_report"]

RECALLS = ("ir@1", "ir@5", "ir@10", "tr@1", "tr@5", "tr@10")


def write_report(
    results: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    photos: bool = True,
    worst: int = 12,
) -> dict[str, Path]:
    """Writes `report.json`, `report.md` and `report.html` of one evaluation, or of several models side by side.

    The page is one file without scripts that loads nothing: plots and small photos are inside it. Photos that are
    missing or broken leave a grey tile and are counted. Every further model is compared with the first one by paired
    tests over the photos that both were asked for. The same results give the same files. `results` in `report.json`
    holds what was given, so reports can be joined: read them, and pass their results on.

    Args:
        results: what an evaluation returns, or a list of that.
        folder: is created where it does not exist; older reports there are replaced, each file in one step.
        photos: put small photos into the page; otherwise it has captions and places only.
        worst: how many of the photos whose rank varies most are shown for each model.

    Returns:
        `json`, `md` and `html`: the paths.

    Raises:
        ValueError: if there is no result, one lacks what is needed or contradicts itself, or `worst` is negative.
        OSError: if a file cannot be written.
    """
    if worst < 0:
        raise ValueError(f"worst is {worst}; it is the number of photos to show, 0 for none")
    checked = check_results(results)
    document = build_document(checked, worst)
    page, counts = build_page(document, checked, photos=photos)
    document["photos"] = counts
    folder = Path(folder)
    data = json.dumps({**document, "results": checked}, ensure_ascii=False, allow_nan=False, indent=1)
    files = {"json": data + "\n", "md": markdown(document), "html": page}
    paths = {kind: folder / f"report.{kind}" for kind in files}
    for kind, text in files.items():
        write_whole(paths[kind], text, "report")
    return paths


def build_document(results: Sequence[dict], worst: int = 12) -> dict:
    """All that a report says, before it is laid out.

    Args:
        results: of `check_results`.
        worst: see `write_report`.

    Returns:
        `title`; `mrv_explained`; `models`: for each result its figures (see `summarise`) with `words`, `diagnoses`,
        `policies`, `settings` and `skipped`; `comparisons` of each further model with the first (see `compare`) with
        `words` and `policy`.
    """
    models = []
    for result in results:
        summary = summarise(result, worst)
        summary |= {"words": words(summary), "diagnoses": diagnose(result), "policies": policies(summary, result)}
        models.append({**summary, "settings": result.get("settings") or {}, "skipped": result.get("skipped") or {}})
    comparisons = [compare(results[0], other) for other in results[1:]]
    for comparison in comparisons:
        comparison |= {"words": comparison_in_words(comparison), "policy": comparison_policy(comparison)}
    explained = mrv_explained(models[0])
    return {"title": title(models), "mrv_explained": explained, "models": models, "comparisons": comparisons}


# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown(document: Mapping) -> str:
    """The report as Markdown, without photos."""
    models = document["models"]
    lines = [f"# {_md(document['title'])}", "", _md(document["mrv_explained"]), ""]
    for model in models:
        lines += [f"## {_md(model['name'])}", "", *(f"* {_md(text)}" for text in model["words"]), ""]
        if model["diagnoses"]:
            lines += ["What stands out:", "", *(f"* {_md(text)}" for text in model["diagnoses"]), ""]
        lines += _recall_table(model)
        if model["rerank"]:
            rows = [[p["top"], percent(p["ir@1"]), percent(p["worst"]), _number(p["mrv"])] for p in model["rerank"]]
            header = ["re-ranked", "mean recall at 1", "worst language", "MRV"]
            lines += ["### Re-ranking", "", *_table(header, rows), "", _md(model["policies"]["rerank"]), ""]
        if model["agreement"]:
            lines += _agreement_table(model)
        if model["worst"]:
            tags = list(model["worst"][0]["ranks"])
            rows = [
                [row["image_id"], f"{row['std']:.2f}", *(_place(row["ranks"][tag]) for tag in tags)]
                for row in model["worst"]
            ]
            lines += ["### Photos that vary most", "", *_table(["photo", "std", *tags], rows)]
            lines += ["", _md(model["policies"]["worst"]), ""]
    for comparison in document["comparisons"]:
        first, second = comparison["names"]
        lines += [f"## {_md(second)} beside {_md(first)}", "", _md(comparison["words"]), ""]
        rows = comparison_rows(comparison)
        if rows:
            lines += [*_table(["figure", first, second, "difference", "interval", "p"], rows), ""]
        lines += [_md(comparison["policy"]), ""]
    lines += _published(models)
    lines += ["## Settings", ""]
    for model in models:
        rows = list(settings(model).items())
        lines += [f"### {_md(model['name'])}", "", *_table(["setting", "value"], rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _recall_table(model: Mapping) -> list[str]:
    keys = [key for key in RECALLS if any(key in figures for figures in model["recall"]["languages"].values())]
    rows = []
    for tag, figures in model["recall"]["languages"].items():
        within = "" if figures["low"] is None else f"{percent(figures['low'])} to {percent(figures['high'])}"
        cells = ["" if figures.get(key) is None else percent(figures[key]) for key in keys]
        rows.append([f"{language_name(tag)} ({tag})", *cells, within, figures.get("queries", "")])
    header = ["language", *keys, "ir@1, 95 %", "captions"]
    lines = ["### Recall by language", "", *_table(header, rows), "", _md(model["policies"]["recall"]), ""]
    return [*lines, _md(model["policies"]["mrv"]), ""] if model["mrv"] else lines


def _agreement_table(model: Mapping) -> list[str]:
    tags, matrix = model["agreement"]["languages"], model["agreement"]["matrix"]
    rows = [
        [tag, *("" if i == j or value is None else percent(value) for j, value in enumerate(matrix[i]))]
        for i, tag in enumerate(tags)
    ]
    lines = ["### The same first page", "", *_table(["", *tags], rows)]
    return [*lines, "", _md(model["policies"]["agreement"]), ""]


def _published(models: Sequence[Mapping]) -> list[str]:
    measured = [model for model in models if model["published"]]
    if not measured:
        return []
    table = measured[0]["published"]
    rows = [[model["name"], "measured here", *map(_number, model["published"]["own"])] for model in measured]
    rows += [[name, setting, *map(_number, figures)] for name, setting, *figures in table["rows"]]
    lines = ["## Published figures", "", *_table(["model", "setting", *table["columns"]], rows), ""]
    return [*lines, _md(f"Source: {table['source']}. {table['note']}"), ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _place(rank: float | None) -> str:
    return "" if rank is None else f"{rank + 1:g}"


def _table(header: Sequence, rows: Sequence[Sequence]) -> list[str]:
    """Lines of a Markdown table, cells escaped."""
    body = ["| " + " | ".join(_md(cell) for cell in row) + " |" for row in (header, *rows)]
    return [body[0], "| " + " | ".join("---" for _ in header) + " |", *body[1:]]


def _md(text: Any) -> str:
    """Text that Markdown shows as it is: one line, without markup of its own."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escape(line, quote=False))
