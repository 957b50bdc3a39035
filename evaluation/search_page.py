"""A web page, in one file, that shows what a model finds for the same question in several languages.

The page needs nothing from the net: pictures are inside it, each distinct one once, and there is no script. It reads
on a phone and on a desktop, in light and in dark.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ccrk.metrics.files import write_whole

_MAX_SIDE = 320
"""Longest side in pixels of a picture in the page; larger ones are scaled down, smaller ones kept."""

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --text: #1c2330; --soft: #5b6677;
  --line: #dde2ea; --good: #137a43; --good-soft: #dcf3e5; --accent: #2f5fd0; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --text: #e8ecf3; --soft: #a2adbd;
  --line: #323a48; --good: #58d68d; --good-soft: #173826; --accent: #8fb1ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 0 0 .25rem; }
.intro { color: var(--soft); max-width: 46rem; margin: 0 0 1.5rem; white-space: pre-line; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1rem 1.1rem;
  margin: 0 0 1.25rem; }
.row { display: grid; grid-template-columns: minmax(11rem, 17rem) minmax(0, 1fr); gap: .4rem 1.25rem;
  padding: .85rem 0; border-top: 1px solid var(--line); align-items: center; }
.language { font-size: .8rem; color: var(--soft); }
.tag { border: 1px solid var(--line); border-radius: 5px; padding: 0 .3rem; margin-inline-start: .35rem; }
.query { margin: .1rem 0; font-weight: 600; overflow-wrap: anywhere; }
.place { font-size: .8rem; color: var(--soft); }
.place.found { color: var(--good); }
.results { list-style: none; margin: 0; padding: .45rem; display: flex; gap: .65rem; overflow-x: auto; }
.result { flex: 0 0 7.4rem; width: 7.4rem; border: 2px solid var(--line); border-radius: 11px; padding: .3rem;
  position: relative; }
.result.correct { border-color: var(--good); background: var(--good-soft); }
.photo { display: block; width: 100%; aspect-ratio: 1; border-radius: 7px; background: center / contain no-repeat;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.mark { position: absolute; top: -.35rem; inset-inline-end: -.35rem; background: var(--good); color: var(--card);
  width: 1.4rem; height: 1.4rem; border-radius: 50%; font-size: .85rem; line-height: 1.4rem; text-align: center; }
.facts { display: flex; justify-content: space-between; font-size: .75rem; color: var(--soft);
  font-variant-numeric: tabular-nums; margin: .25rem .1rem 0; }
.caption { font-size: .75rem; line-height: 1.3; margin: .1rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 60%; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: start; white-space: nowrap; }
th { font-size: .85rem; color: var(--soft); font-weight: 600; }
.number { text-align: end; }
@media (max-width: 46rem) { .row { grid-template-columns: minmax(0, 1fr); } .result { flex-basis: 6.4rem; } }
"""


class _Pictures:
    """Gives every distinct picture one style class, so that its bytes are in the page once."""

    def __init__(self) -> None:
        self._names: dict[tuple[tuple[int, int], bytes], str] = {}
        self.rules: list[str] = []

    def name(self, image: Image.Image) -> str:
        """The style class of `image`; equal pixels share one."""
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))  # in place; convert() always copies, so the caller's stays as it was
        key = (image.size, image.tobytes())
        if key not in self._names:
            self._names[key] = f"p{len(self._names)}"
            self.rules.append(f".{self._names[key]} {{ background-image: url({_data_uri(image)}); }}")
        return self._names[key]


def _data_uri(image: Image.Image) -> str:
    """The picture as a `data:` address: PNG, or JPEG where that is smaller by far (photographs)."""
    png = io.BytesIO()
    image.save(png, format="PNG", optimize=True)
    kind, data = "png", png.getvalue()
    if image.mode == "RGB" and len(data) > 20_000:
        jpeg = io.BytesIO()
        image.save(jpeg, format="JPEG", quality=88)
        if len(jpeg.getvalue()) < 0.7 * len(data):
            kind, data = "jpeg", jpeg.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _need(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raises a ValueError that names the place and the missing keys."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is a {type(entry).__name__} (expected a dict with {', '.join(keys)})")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise ValueError(
            f"{where} has no {', '.join(repr(key) for key in missing)} (expected a dict with {', '.join(keys)})"
        )


def _result(result: Mapping[str, Any], rank: int, pictures: _Pictures, where: str) -> str:
    """One found picture with its place, score, caption and, if it is the wanted one, its mark."""
    _need(result, ("image", "caption", "score", "correct"), where)
    if not isinstance(result["image"], Image.Image):
        raise ValueError(f"{where} has an 'image' of type {type(result['image']).__name__} (expected a PIL.Image)")
    caption = escape(str(result["caption"]))
    correct = bool(result["correct"])
    mark = '<span class="mark" role="img" aria-label="correct">✓</span>' if correct else ""
    return (
        f'<li class="result{" correct" if correct else ""}">{mark}'
        f'<span class="photo {pictures.name(result["image"])}" role="img" aria-label="{caption}"></span>'
        f'<div class="facts"><span>{rank}.</span><span>{float(result["score"]):.3f}</span></div>'
        f'<p class="caption" dir="auto">{caption}</p></li>'
    )


def _row(row: Mapping[str, Any], pictures: _Pictures, where: str) -> str:
    """One language: its query and what was found for it."""
    _need(row, ("language", "language_name", "text", "results"), where)
    language, results = escape(str(row["language"])), list(row["results"])
    items = [_result(result, rank, pictures, f"{where}, result {rank}") for rank, result in enumerate(results, 1)]
    ranks = [rank for rank, result in enumerate(results, 1) if result["correct"]]
    if ranks:
        place = f'<div class="place found">found in place {ranks[0]}</div>'
    else:
        place = f'<div class="place">not among the first {len(results)}</div>'
    return (
        f'<div class="row"><div><div class="language"><span lang="{language}">'
        f'{escape(str(row["language_name"]))}</span><span class="tag">{language}</span></div>'
        f'<p class="query" lang="{language}" dir="auto">{escape(str(row["text"]))}</p>{place}</div>'
        f'<ol class="results">{"".join(items)}</ol></div>'
    )


def _query(query: Mapping[str, Any], pictures: _Pictures, where: str) -> str:
    """One question in all its languages."""
    _need(query, ("heading", "rows"), where)
    rows = [_row(row, pictures, f"{where}, row {number}") for number, row in enumerate(query["rows"], 1)]
    return f'<section class="card"><h2>{escape(str(query["heading"]))}</h2>{"".join(rows)}</section>'


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    """One table cell: numbers to the right, floats to four digits, None as a dash."""
    if value is None:
        return "<td>–</td>"
    if _is_number(value):
        return f'<td class="number">{format(value, ".4g") if isinstance(value, float) else value}</td>'
    return f"<td>{escape(str(value))}</td>"


def _table(table: Mapping[str, Any], where: str) -> str:
    """One table with its title."""
    _need(table, ("title", "header", "rows"), where)
    header, rows = list(table["header"]), [list(row) for row in table["rows"]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(
                f"{where} ({table['title']!r}), row {number} has {len(row)} cells "
                f"(expected {len(header)}, as in its header)"
            )
    # A heading stands over its column: to the right if the column holds numbers.
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    starts = ['<th scope="col" class="number">' if right else '<th scope="col">' for right in numeric]
    head = "".join(f"{start}{escape(str(name))}</th>" for start, name in zip(starts, header, strict=True))
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return (
        f'<section class="card"><h2>{escape(str(table["title"]))}</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def write_search_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    intro: str,
    queries: Sequence[Mapping[str, Any]],
    tables: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes one self-contained HTML page of search results and tables of numbers.

    Args:
        path: The HTML file. Missing folders are created; an older file is replaced in one step.
        title: Heading of the page and title of its window.
        intro: A paragraph below it; line breaks are kept.
        queries: One dict per question: `heading` (str) and `rows`, one dict per language with `language` (BCP-47
            tag), `language_name`, `text` (the query) and `results`, best first, one dict per found picture with
            `image` (PIL.Image), `caption` (str), `score` (float) and `correct` (bool).
        tables: One dict per table: `title`, `header` (list of names) and `rows` (lists as long as the header). Floats
            are shown to four digits, None as a dash, anything else as its text; give a string to choose the format.

    Returns:
        The path of the page.

    Raises:
        ValueError: If an entry lacks a key or has the wrong shape; the message names the entry.
        OSError: If the file cannot be written; nothing is left behind and an older page stays as it was.
    """
    pictures = _Pictures()
    body = [_query(query, pictures, f"query {number}") for number, query in enumerate(queries, 1)]
    body += [_table(table, f"table {number}") for number, table in enumerate(tables, 1)]
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{chr(10).join(pictures.rules)}\n</style>\n</head>\n"
        f'<body>\n<main>\n<h1>{escape(title)}</h1>\n<p class="intro">{escape(intro)}</p>\n'
        f"{chr(10).join(body)}\n</main>\n</body>\n</html>\n"
    )
    target = Path(path)
    write_whole(target, page, "page")
    return target
