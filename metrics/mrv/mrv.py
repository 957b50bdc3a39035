"""Mean rank variation as a metric of the library `evaluate`. The arithmetic is in `rank_variation.py` beside it."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from .rank_variation import mean_rank_variance, rank_of

_DESCRIPTION = """\
MRV says how much the place of one item in a ranking changes when the same question is asked in another language: the
deviation of its ranks over the languages, averaged over items. 0 means that every language finds it at the same place.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: with the configuration `ranks` (the default) a mapping of language -> 0-based rank for each item, null
        for a miss; languages may differ from item to item. With `scores` one row for each query: `item` (which item it
        is about), `language`, and `scores` of all candidates.
    references: with `scores`, for each query the candidates that are right.
    statistic: `std` (default), `variance` or `mad`: which of the three `mrv` is.
    languages: those to compare; all by default.
    misses: what null counts as: `rank_k`, `mean_of_rest` or `drop`.
    top_k: how many places were looked at, for `rank_k` and `mean_of_rest`.
    candidates: how many items were searched, for `mean_of_rest`.
    ties: with `scores`: `pessimistic` (default), `optimistic` or `mean`.
    bootstrap: resamples for an interval of `mrv`; 0 is none.
    confidence: of the interval, 0.95 by default.
    seed: of the resamples.
    preset: `paper`: std, the languages en de ja zh, `mean_of_rest`.
Returns:
    mrv, std, variance, mad, statistic, languages, items, left_out, missed; low and high with bootstrap.
Examples:
    >>> mrv = evaluate.load("metrics/mrv")
    >>> result = mrv.compute(predictions=[{"en": 0, "de": 4}, {"en": 3, "de": 3}])
    >>> result["mrv"], result["variance"]
    (1.0, 2.0)
"""

_CITATION = """\
@inproceedings{nie2024ccrk,
  title={Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K Contrastive Learning},
  author={Nie, Zhijie and Zhang, Richong and Feng, Zhangchi and Huang, Hailang and Liu, Xudong},
  booktitle={Proceedings of the 30th ACM SIGKDD Conference on Knowledge Discovery and Data Mining},
  year={2024}
}
"""

CONFIGURATIONS = ("ranks", "scores")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MRV(evaluate.Metric):
    """Mean rank variation over languages."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name in (None, "default"):
            self.config_name = "ranks"
        if self.config_name not in CONFIGURATIONS:
            raise ValueError(f"the configuration is '{self.config_name}'; it is one of {', '.join(CONFIGURATIONS)}")
        if self.config_name == "ranks":
            features = {"predictions": datasets.Json()}
        else:
            query = {
                "item": datasets.Value("string"),
                "language": datasets.Value("string"),
                "scores": datasets.Sequence(datasets.Value("float64")),
            }
            features = {"predictions": query, "references": datasets.Sequence(datasets.Value("int64"))}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Any, references: Any = None, ties: str = "pessimistic", **options: Any) -> dict:
        if self.config_name == "ranks":
            return mean_rank_variance(predictions, **options)
        rows: dict[str, dict] = {}
        for query, right in zip(predictions, references, strict=True):
            ranks = rows.setdefault(query["item"], {})
            if query["language"] in ranks:
                raise ValueError(f"item '{query['item']}' is asked for twice in '{query['language']}'")
            ranks[query["language"]] = rank_of(query["scores"], right, ties)
        return mean_rank_variance(list(rows.values()), **options)
