"""Recall of cross-lingual retrieval as a metric of the library `evaluate`. The arithmetic is in `recall.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from .recall import recall_figures, target_ranks, top_ranks

_DESCRIPTION = """\
Recall at k: the share of queries for which a right answer is among the first k, by language, with any number of right
answers for each query.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: with the configuration `scores` (the default) for each query the scores of all candidates; with `top`
        the candidates that were found, best first.
    references: for each query the candidates that are right.
    languages: the language of each query, to have recall by language and its mean over them.
    direction: `ir` (text to image, the default) or `tr` (image to text): how the figures are named.
    ks: 1, 5 and 10 by default.
    ties: with `scores`, where a right answer stands among wrong ones of equal score: `pessimistic` (behind, the
        default), `optimistic` or `mean`.
Returns:
    ir@1, ir@5, ir@10, mean_recall, shares between 0 and 1; with languages also `languages`.
Examples:
    >>> recall = evaluate.load("metrics/ccr_recall")
    >>> recall.compute(predictions=[[0.9, 0.1], [0.8, 0.2]], references=[[0], [1]], ks=[1])
    {'ir@1': 0.5, 'mean_recall': 0.5}
"""

_CITATION = ""

CONFIGURATIONS = ("scores", "top")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CCRRecall(evaluate.Metric):
    """Recall at k by language."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name in (None, "default"):
            self.config_name = "scores"
        if self.config_name not in CONFIGURATIONS:
            raise ValueError(f"the configuration is '{self.config_name}'; it is one of {', '.join(CONFIGURATIONS)}")
        number = datasets.Value("float64" if self.config_name == "scores" else "int64")
        features = {"predictions": datasets.Sequence(number), "references": datasets.Sequence(datasets.Value("int64"))}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        languages: Any = None,
        direction: str = "ir",
        ks: Sequence[int] = (1, 5, 10),
        ties: str = "pessimistic",
    ) -> dict:
        if direction not in ("ir", "tr"):
            raise ValueError(f"direction is '{direction}'; it is ir (text to image) or tr (image to text)")
        if self.config_name == "top":
            shortest = min(map(len, predictions))
            if max(ks) > shortest:
                raise ValueError(f"recall at {max(ks)} cannot be told from a list of {shortest}")
            ranks = top_ranks(predictions, references)
        else:
            widths = {len(row) for row in predictions}
            if len(widths) != 1:
                raise ValueError(f"every query needs a score of every candidate, but there are {sorted(widths)}")
            ranks = target_ranks(predictions, references, ties)
        return recall_figures({direction: ranks}, None if languages is None else {direction: languages}, ks)
