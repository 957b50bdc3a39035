"""What a trained model of a study is measured by: recall, MRV, and what a searcher sees of both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ccrk.evaluation.candidates import find_candidates
from ccrk.evaluation.features import RetrievalFeatures
from ccrk.evaluation.reranking import matching_logits
from ccrk.evaluation.retrieval import plain_ranks
from ccrk.evaluation.stages import FirstStage, SecondStage
from ccrk.metrics.consistency import top_overlap
from ccrk.metrics.mrv.rank_variation import mean_rank_variance

PAGE = 10
PAGES_READ = 5  # a searcher who turns so many pages without success gives up
PERSISTENCE = 0.8  # chance that a searcher who has looked at a result looks at the next one


def table_figures(ranks: dict[str, np.ndarray], lists: dict[str, list] | None = None) -> dict[str, float]:
    """Figures of the text-to-image ranks of the same images in every language.

    Args:
        ranks: language -> (N,) 0-based ranks.
        lists: language -> (N, >= 10) rows of the images found, best first.

    Returns:
        `ir@1`, `ir@5`, `ir@10` (means over languages, in percent) and `ir@1 TAG`; with two languages or more also
        `mrv` (std), `mad`, and what a searcher sees between two of them, as means over pairs of languages:
        `switch@10`, the chance (percent) that the image is on the first page in one and not in the other;
        `looks apart`, the same for being looked at by a searcher who goes on to the next result with a chance of .8
        (rank-biased precision, Moffat and Zobel 2008); `pages lost`, by how many page turns the mean language is
        behind the best one of each image (at most 5); and with lists `overlap@10` (percent).
    """
    table = np.stack(list(ranks.values()), 1).astype(np.float64)
    found: dict[str, float] = {f"ir@{k}": 100 * float((table < k).mean()) for k in (1, 5, 10)}
    found["mean rank"] = float(table.mean())
    found |= {f"ir@1 {tag}": 100 * float((of_tag < 1).mean()) for tag, of_tag in ranks.items()}
    if table.shape[1] < 2:
        return found
    variation = mean_rank_variance(ranks)
    found |= {"mrv": variation["std"], "mad": variation["mad"]}
    pairs = list(combinations(range(table.shape[1]), 2))
    page, looked = table < PAGE, PERSISTENCE**table
    found["switch@10"] = 100 * float(np.mean([page[:, a] != page[:, b] for a, b in pairs]))
    found["looks apart"] = 100 * float(np.mean([abs(looked[:, a] - looked[:, b]) for a, b in pairs]))
    turns = np.minimum(table // PAGE, PAGES_READ)
    found["pages lost"] = float((turns.mean(1) - turns.min(1)).mean())
    if lists is not None:
        tags = list(lists)
        overlaps = [top_overlap(lists[tags[a]], lists[tags[b]], PAGE).mean() for a, b in pairs]
        found["overlap@10"] = 100 * float(np.mean(overlaps))
    return found


def _of_languages(features: RetrievalFeatures, ranks: np.ndarray) -> dict[str, np.ndarray]:
    return {tag: ranks[texts] for tag, texts in features.languages.items()}


def measure(
    model, features: RetrievalFeatures, depths: Sequence[int] = (), kept: Sequence[str] | None = None
) -> dict[str, Any]:
    """Figures of a model on the features of its gallery; every image asked for has one caption in each language.

    Args:
        model: trained.
        features: of the gallery, with states where depths are given.
        depths: numbers of candidates that the fusion encoder re-scores.
        kept: languages whose figures are given apart, too.

    Returns:
        `table_figures` by embeddings, `tr@1` and `tr@10` (image to text, in percent), under `of kept` those of the
        kept languages, and under `depths` those of each depth with `cpu ms`, the processor time of a query.
    """
    ranks = plain_ranks(features)
    stage = FirstStage(features, ranks)
    found: dict[str, Any] = table_figures(
        _of_languages(features, ranks["text-to-image"]), _of_languages(features, stage.lists())
    )
    for k in (1, 10):
        found[f"tr@{k}"] = 100 * float(np.mean([(ranks[tag] < k).mean() for tag in features.languages]))
    if kept is not None:
        of_kept = {tag: ranks["text-to-image"][features.languages[tag]] for tag in kept}
        found["of kept"] = table_figures(of_kept)
    if depths:
        found["depths"] = _reranked(model, features, ranks, sorted(depths))
    return found


def _reranked(model, features: RetrievalFeatures, ranks, depths: list[int]) -> dict[str, dict]:
    """Figures by depth. Pairs are scored once, for the greatest depth.

    Their cost there, by pair, is taken for that of a pair at every depth; at small depths, where an image's keys and
    values are shared by fewer pairs, it is too low.
    """
    candidates = find_candidates(features, depths[-1], ["text-to-image"])
    started = time.process_time()
    logits = matching_logits(model, features, candidates)
    of_pair = (time.process_time() - started) / len(logits)
    temperature = model.retriever.temperature.item()
    found = {}
    for score in ("itm+sim", "itm"):
        stage = SecondStage(features, ranks, candidates, logits, score, temperature, "ccrk")
        for depth in depths:
            of_depth = (stage.ranks(depth) if depth else ranks)["text-to-image"]
            label = f"{score} {depth}"
            found[label] = table_figures(_of_languages(features, of_depth)) | {"cpu ms": 1000 * of_pair * depth}
    return found
