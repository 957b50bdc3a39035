"""The Space of MRV: paste ranks, see how much they change with the language. `python app.py` starts it."""

from __future__ import annotations

import html
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
from rank_variation import fill_misses, mean_rank_variance, rank_table, rank_variation  # noqa: E402

EXAMPLE = """item,en,de,ja,zh
dog in the snow,0,0,1,0
red boats,2,5,1,9
market at night,0,0,0,0
old bridge,14,3,,40
street in the rain,1,miss,2,1
"""
NAMES = ("item", "id", "image", "")
MISSED = ("miss", "-", "null", "none")
MOST = 200_000  # characters
SHOWN = 50  # items in the table
NO_POLICY = "say that there are none"
READINGS = {
    "std": "standard deviation: the authors' script, the scale of published tables",
    "variance": "the same without the root: the name of the metric",
    "mad": "mean absolute deviation: the text of the paper",
}
CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important }
.mrv-figures { display: grid; gap: 12px 28px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  padding: 4px 2px 16px }
.mrv-figures b { display: block; font-size: 1.7rem; font-weight: 650; font-variant-numeric: tabular-nums }
.mrv-figures span { opacity: .72; font-size: .85rem; display: block }
.mrv-table { border-collapse: collapse; width: 100%; font-size: .9rem; border: 0 !important }
.mrv-table th, .mrv-table td { padding: 5px 10px; text-align: right; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; font-variant-numeric: tabular-nums }
.mrv-table th:first-child, .mrv-table td:first-child { text-align: left; overflow-wrap: anywhere }
.mrv-table tr { border: 0 !important }
.mrv-note { opacity: .72; padding-bottom: 8px }
.mrv-scroll { overflow-x: auto }
.mrv-wrong { color: #b91c1c; font-weight: 500 }
.dark .mrv-wrong { color: #fca5a5 }
"""
WORDS = """# MRV: do languages agree on where an answer ranks?

One line for each item and one column for each language, with the 0-based rank at which the right answer was found when
asked in that language. Leave a cell empty where there is no caption, and write `miss` where the answer was not found.
"""


def read_ranks(text: str) -> tuple[list[str], list[dict[str, float | None]]]:
    """Names of items and their ranks by language, from a table that is pasted.

    Args:
        text: lines of cells between commas, semicolons or tabs; the first line names the languages.

    Raises:
        ValueError: saying which line is wrong.
    """
    if len(text) > MOST:
        raise ValueError(f"the table has {len(text)} characters; at most {MOST} are taken here")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) < 2:
        raise ValueError("write a line with the languages and at least one item below it")
    mark = next((mark for mark in "\t;" if mark in lines[0][1]), ",")
    head = [cell.strip() for cell in lines[0][1].split(mark)]
    named = head[0].lower() in NAMES
    languages = head[1:] if named else head
    if len(set(languages)) < len(languages) or "" in languages:
        raise ValueError(f"line {lines[0][0]} names a language twice, or none: {', '.join(head)}")
    names, rows = [], []
    for number, line in lines[1:]:
        cells = [cell.strip() for cell in line.split(mark)]
        if len(cells) != len(head):
            raise ValueError(f"line {number} has {len(cells)} cells, but the first one has {len(head)}")
        names.append(cells[0] if named else f"line {number}")
        found = dict(zip(languages, cells[1:] if named else cells, strict=True))
        rows.append({tag: _rank(cell, number, tag) for tag, cell in found.items() if cell})
    return names, rows


def _rank(cell: str, number: int, tag: str) -> float | None:
    if cell.lower() in MISSED:
        return None
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"line {number}: '{cell[:40]}' in '{tag}' is no rank") from None


def measure(text: str, misses: str, top_k: float | None, candidates: float | None) -> str:
    """The figures and the items that vary most, as HTML."""
    options = {
        "misses": None if misses == NO_POLICY else misses,
        "top_k": None if not top_k else int(top_k),
        "candidates": None if not candidates else int(candidates),
    }
    try:
        names, rows = read_ranks(text)
        found = mean_rank_variance(rows, **options)
        table, languages = rank_table(rows)
        spread = rank_variation(fill_misses(table, **options))["std"]
    except ValueError as error:
        return f'<div class="mrv-wrong" role="alert">{html.escape(str(error))}</div>'
    figures = "".join(
        f'<div id="{name}"><b>{found[name]:.4f}</b>{name}<span>{words}</span></div>'
        for name, words in READINGS.items()
    )
    told = f"{found['items']} items in {len(languages)} languages"
    told += f", {found['left_out']} with fewer than two ranks left out" if found["left_out"] else ""
    told += f", {found['missed']} miss{'es' if found['missed'] > 1 else ''}" if found["missed"] else ""
    order = [row for row in np.argsort(-np.nan_to_num(spread, nan=-1.0), kind="stable") if not np.isnan(spread[row])]
    head = "".join(f"<th>{html.escape(tag)}</th>" for tag in ("item", *languages, "std"))
    body = "".join(_line(names[row], table[row], spread[row]) for row in order[:SHOWN])
    more = f", the {SHOWN} that vary most" if len(order) > SHOWN else ""
    return (
        f'<div class="mrv-figures" role="status">{figures}</div><div class="mrv-note">{told}{more}</div>'
        f'<div class="mrv-scroll"><table class="mrv-table"><tr>{head}</tr>{body}</table></div>'
    )


def _line(name: str, ranks: np.ndarray, spread: float) -> str:
    cells = ["" if np.isnan(rank) else "miss" if np.isinf(rank) else f"{rank:g}" for rank in ranks]
    return "".join(["<tr>", *(f"<td>{cell}</td>" for cell in (html.escape(name), *cells, f"{spread:.2f}")), "</tr>"])


def theme() -> gr.themes.Base:
    """Fonts of the machine, so that nothing is fetched from elsewhere."""
    fonts = {"font": ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"], "font_mono": ["monospace"]}
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="md", **fonts)


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="MRV", analytics_enabled=False) as page:
        gr.Markdown(WORDS)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                ranks = gr.Textbox(EXAMPLE, label="Ranks", lines=10, max_lines=20, elem_id="ranks", max_length=MOST)
                policy = [NO_POLICY, "rank_k", "mean_of_rest", "drop"]
                misses = gr.Dropdown(policy, value="rank_k", label="What a miss counts as", elem_id="misses")
                with gr.Row():
                    top_k = gr.Number(50, label="Places looked at", precision=0, min_width=120)
                    candidates = gr.Number(None, label="Items searched, or 0", precision=0, min_width=120)
                button = gr.Button("Measure", variant="primary", elem_id="measure")
            with gr.Column(scale=3, min_width=320):
                shown = gr.HTML(elem_id="figures")
        asked = [ranks, misses, top_k, candidates]
        button.click(measure, asked, shown, api_visibility="private", show_progress="minimal")
        page.load(measure, asked, shown, api_visibility="private", show_progress="hidden")
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
