"""The Space of cross-lingual recall: paste what was found, see recall by language. `python app.py` starts it."""

from __future__ import annotations

import html
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported

import gradio as gr  # noqa: E402
from recall import recall_figures, top_ranks  # noqa: E402

EXAMPLE = """language;found;right
en;dog.jpg boat.jpg cat.jpg;dog.jpg
en;cat.jpg tree.jpg dog.jpg;tree.jpg
de;boat.jpg dog.jpg cat.jpg;dog.jpg
de;tree.jpg cat.jpg boat.jpg;tree.jpg fir.jpg
ja;cat.jpg boat.jpg tree.jpg;dog.jpg
"""
MOST = 500_000  # characters
CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important }
.recall-table { border-collapse: collapse; width: 100%; font-size: .9rem; border: 0 !important }
.recall-table th, .recall-table td { padding: 6px 9px; text-align: right; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; font-variant-numeric: tabular-nums }
.recall-table th:first-child, .recall-table td:first-child { text-align: left }
.recall-table tr { border: 0 !important }
.recall-table .mean td { font-weight: 650 }
.recall-scroll { overflow-x: auto }
.recall-wrong { color: #b91c1c; font-weight: 500 }
.dark .recall-wrong { color: #fca5a5 }
"""
WORDS = """# Recall at k, by language

One line for each query: its language, what was found (best first, between spaces), and what is right. The share of
queries for which a right answer is among the first k.
"""


def read_queries(text: str) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Languages, lists of what was found and of what is right, from lines that are pasted.

    Args:
        text: lines of three cells between semicolons or tabs; a first line that begins with "language" is a heading.

    Raises:
        ValueError: saying which line is wrong.
    """
    if len(text) > MOST:
        raise ValueError(f"there are {len(text)} characters; at most {MOST} are taken here")
    languages, found, right = [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        mark = "\t" if "\t" in line else ";"
        cells = [cell.strip() for cell in line.split(mark)]
        if not line.strip() or cells[0].lower() == "language":
            continue
        if len(cells) != 3:
            raise ValueError(f"line {number} has {len(cells)} cells; it takes three: language; found; right")
        if not all(cells):
            raise ValueError(f"line {number} has an empty cell")
        languages.append(cells[0])
        found.append(cells[1].split())
        right.append(cells[2].split())
    if not languages:
        raise ValueError("write at least one query")
    return languages, found, right


def read_ks(text: str, longest: int) -> list[int]:
    """The k, as numbers up to the length of the shortest list."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise ValueError(f"k is '{text[:40]}'; it is one number or more, such as 1, 5, 10")
    ks = sorted({int(word) for word in words})
    if ks[-1] > longest:
        raise ValueError(f"recall at {ks[-1]} cannot be told from a list of {longest}")
    return ks


def measure(text: str, ks: str) -> str:
    """Recall by language, as HTML."""
    try:
        languages, found, right = read_queries(text)
        numbers = read_ks(ks, min(map(len, found)))
        result = recall_figures({"ir": top_ranks(found, right)}, {"ir": languages}, numbers)
    except ValueError as error:
        return f'<div class="recall-wrong" role="alert">{html.escape(str(error))}</div>'
    names = [f"ir@{k}" for k in numbers]
    head = "".join(f"<th>{name}</th>" for name in ("language", "queries", *(f"recall@{k}" for k in numbers)))
    rows = [(tag, str(languages.count(tag)), figures) for tag, figures in result["languages"].items()]
    body = "".join(_line(*row, names) for row in rows)
    mean = _line("mean", str(len(languages)), result, names).replace("<tr>", '<tr class="mean">', 1)
    table = f'<table class="recall-table"><tr>{head}</tr>{body}{mean}</table>'
    return f'<div class="recall-scroll" role="status">{table}</div>'


def _line(tag: str, count: str, figures: dict, names: list[str]) -> str:
    cells = [html.escape(tag), count, *(f"{figures[name]:.4f}" for name in names)]
    return "".join(["<tr>", *(f"<td>{cell}</td>" for cell in cells), "</tr>"])


def theme() -> gr.themes.Base:
    """Fonts of the machine, so that nothing is fetched from elsewhere."""
    fonts = {"font": ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"], "font_mono": ["monospace"]}
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="md", **fonts)


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="Recall by language", analytics_enabled=False) as page:
        gr.Markdown(WORDS)
        with gr.Row():
            with gr.Column(min_width=320):
                queries = gr.Textbox(
                    EXAMPLE, label="Queries", lines=9, max_lines=20, elem_id="queries", max_length=MOST
                )
                ks = gr.Textbox("1, 2, 3", label="k", elem_id="ks", max_length=100)
                button = gr.Button("Measure", variant="primary", elem_id="measure")
            with gr.Column(min_width=320):
                shown = gr.HTML(elem_id="figures")
        button.click(measure, [queries, ks], shown, api_visibility="private", show_progress="minimal")
        page.load(measure, [queries, ks], shown, api_visibility="private", show_progress="hidden")
    return page


if __name__ == "__main__":
    # the address is that of GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, which the Hub sets
    build().launch(
        theme=theme(),
        css=CSS,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        max_file_size=1,
        enable_monitoring=False,
    )
