"""Published figures to read one's own beside: Table 1 of the CCRk paper.

Only benchmarks where a report measures the same thing: WIT has a gallery of its own for each language, and COCO is
averaged over folds, so neither is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ccrk.metrics.mrv.rank_variation import mean_rank_variance

SOURCE = "Table 1 of the CCRk paper (KDD 2024)"

_ENGLISH = "fine-tuned on English only"

XFLICKRCO: dict[str, Any] = {
    "images": 2000,
    "languages": ("de", "en", "es", "id", "ja", "ru", "tr", "zh"),
    "mrv_languages": ("en", "de", "ja", "zh"),
    "columns": ("IR@1", "TR@1", "MRV4"),
    "rows": (
        ("xUNITER", _ENGLISH, 14.04, 13.51, 50.60),
        ("M3P", _ENGLISH, 12.91, 11.90, 54.58),
        ("UC2", _ENGLISH, 20.31, 17.89, 21.52),
        ("TD-MML", _ENGLISH, 21.30, 26.35, None),
        ("CCLM-3M", _ENGLISH, 64.47, 62.74, 13.27),
        ("CCR6", _ENGLISH, 29.16, 28.72, 15.02),
        ("CCR6-E", _ENGLISH, 32.89, 33.06, 7.97),
        ("CCR10", _ENGLISH, 55.45, 54.88, 18.96),
        ("CCR10-E", _ENGLISH, 73.30, 72.64, 7.89),
        ("xUNITER", "few-shot", 14.30, 13.54, None),
        ("M3P", "few-shot", 13.21, 12.26, None),
        ("UC2", "few-shot", 19.79, 17.59, None),
        ("CCLM-3M", "few-shot", 65.31, 63.91, 12.93),
        ("CCR6", "few-shot", 29.28, 28.72, 15.24),
        ("CCR6-E", "few-shot", 33.19, 33.41, 7.81),
        ("CCR10", "few-shot", 55.91, 55.24, 18.11),
        ("CCR10-E", "few-shot", 73.74, 73.27, 7.62),
    ),
    "note": (
        "IR@1 and TR@1 (text to image, image to text; in percent) are means over the languages without English here, "
        "as the benchmark IGLUE has them; the paper does not say how it averages."
    ),
}

_SINGLE = "fine-tuned on each language"

MULTI30K: dict[str, Any] = {
    "images": 1000,
    "languages": ("en", "de", "fr", "cs"),
    "mrv_languages": ("en", "de", "fr", "cs"),
    "columns": ("EN", "DE", "FR", "CS", "MRV4"),
    "rows": (
        ("M3P", _ENGLISH, 87.4, 58.5, 46.0, 36.8, 15.38),
        ("UC2", _ENGLISH, 87.2, 74.9, 74.0, 67.9, 6.16),
        ("CCLM-3M", _ENGLISH, 90.4, 89.9, 89.4, 88.1, 3.18),
        ("CCR6", _ENGLISH, 88.5, 87.1, 87.8, 85.7, 3.06),
        ("CCR6-E", _ENGLISH, 90.8, 90.3, 91.0, 89.4, 1.28),
        ("CCR10", _ENGLISH, 84.2, 82.5, 81.9, 80.8, 4.13),
        ("CCR10-E", _ENGLISH, 91.4, 90.7, 91.3, 89.8, 2.53),
        ("M3P", _SINGLE, 87.4, 82.1, 67.3, 65.0, None),
        ("UC2", _SINGLE, 87.2, 83.8, 77.6, 74.2, None),
        ("CCLM-3M", _SINGLE, 90.4, 89.6, 90.0, 88.8, 2.41),
        ("CCR6", _SINGLE, 88.5, 88.1, 88.6, 87.3, 2.28),
        ("CCR6-E", _SINGLE, 90.8, 90.5, 91.4, 90.5, 1.30),
        ("CCR10", _SINGLE, 84.2, 83.6, 84.6, 82.5, 3.90),
        ("CCR10-E", _SINGLE, 91.4, 90.6, 91.2, 90.2, 1.12),
    ),
    "note": "EN, DE, FR and CS are mean recalls in percent: of the recalls at 1, 5 and 10 in both directions.",
}

PUBLISHED = {"xflickrco": XFLICKRCO, "multi30k": MULTI30K}
"""Benchmark -> its photos and languages, columns, rows of model, setting and a figure for each column, and a note."""

_MRV_NOTE = (
    "MRV4 is the standard deviation over {languages}, text to image here; how the paper merges its two directions is "
    "not said. The paper re-ranks the first 128 by the matching head alone."
)


def published_table(result: Mapping[str, Any]) -> dict | None:
    """Published rows for the benchmark of a result, and the same figures of the result itself.

    Args:
        result: of an evaluation.

    Returns:
        `source`, `columns`, `rows` (model, setting, figures or None), `own` (figures or None, in percent but for MRV)
        and `note`. None if nothing is published for its benchmark, or if the result has other photos or lacks one of
        its languages, so that ranks and means are not of the same thing.
    """
    table = PUBLISHED.get(result.get("benchmark") or "")
    languages = result["languages"]
    if table is None or result.get("images") != table["images"] or not set(table["languages"]) <= set(languages):
        return None
    reranked = (result.get("reranked") or {}).get("languages") or {}
    figures = {tag: {**languages[tag], **reranked.get(tag, {})} for tag in table["languages"]}
    if table is XFLICKRCO:
        own = [_percent([of[key] for tag, of in figures.items() if tag != "en"]) for key in ("ir@1", "tr@1")]
    else:
        keys = [f"{direction}@{k}" for direction in ("ir", "tr") for k in (1, 5, 10)]
        own = [_percent([figures[tag].get(key) for key in keys]) for tag in table["languages"]]
    return {
        "source": SOURCE,
        "columns": list(table["columns"]),
        "rows": [list(row) for row in table["rows"]],
        "own": [*own, _mrv(result, table["mrv_languages"])],
        "note": f"{table['note']} {_MRV_NOTE.format(languages=' '.join(table['mrv_languages']))}",
    }


def _percent(shares: list) -> float | None:
    return None if None in shares else 100 * float(np.mean(shares))


def _mrv(result: Mapping, languages: tuple[str, ...]) -> float | None:
    """None unless every item has a rank in each of the languages, as in the published benchmarks."""
    ranks = (result.get("items") or {}).get("ranks") or {}
    if not set(languages) <= set(ranks) or any(None in ranks[tag] for tag in languages):
        return None
    return mean_rank_variance({tag: ranks[tag] for tag in languages}, statistic="std")["mrv"]
