"""What each stage of a search ends in: ranks, lists of the best, and what the report of consistency is drawn from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ccrk.evaluation.candidates import BestOf, Candidates
from ccrk.evaluation.features import RetrievalFeatures
from ccrk.evaluation.reranking import rerank_scores, reranked_ranks
from ccrk.evaluation.tiles import best_matches
from ccrk.metrics.consistency import consistency, language_prevalence

PROTOCOLS = ("ccrk", "official")
PAGE = 10
"""Items of a list that details hold: a first page of results."""
DEPTHS = (8, 16, 32, 64, 128, 256)
"""Numbers of re-ranked candidates at which a curve has points, as far as candidates go."""


class FirstStage:
    """Search by embeddings.

    Args:
        features: of the data set.
        plain: ranks, see `plain_ranks`.
    """

    def __init__(self, features: RetrievalFeatures, plain: dict[str, np.ndarray]):
        self.features, self.plain = features, plain

    def ranks(self) -> dict[str, np.ndarray]:
        """Final ranks of every direction that was searched."""
        return self.plain

    def lists(self, count: int = PAGE) -> np.ndarray:
        """(T, count) rows of the first images of every text."""
        return best_matches(self.features.text_embeds, self.features.image_embeds, count)[1].numpy()

    def details(self, dataset, figures: Callable[..., dict]) -> dict[str, Any]:
        """`items`, `consistency` and `prevalence` for the report of consistency; see docs/evaluation.md.

        Args:
            dataset: rows of the images.
            figures: makes recall and MRV of ranks.
        """
        features, lists = self.features, self.lists()
        first, final = first_texts(features), {**self.plain, **self.ranks()}
        found = {tag: [None if t < 0 else lists[t].tolist() for t in texts] for tag, texts in first.items()}
        ids, paths, captions = describe(features, dataset, first)
        items = {
            "image_ids": ids,
            "images": paths,
            "texts": captions,
            "ranks": {tag: _of_items(final["text-to-image"], texts) for tag, texts in first.items()},
            "plain_ranks": {tag: _of_items(self.plain["text-to-image"], texts) for tag, texts in first.items()},
            "found": found,
        }
        everywhere = [i for i in range(len(ids)) if all(found[tag][i] is not None for tag in found)]
        result: dict[str, Any] = {"items": items, "consistency": None}
        if len(found) > 1 and everywhere:
            page = min(PAGE, lists.shape[1])
            together: dict[str, list] = {tag: [found[tag][i] for i in everywhere] for tag in found}
            result["consistency"] = consistency(together, len(features.image_embeds), k=page)
        result["prevalence"] = self._prevalence() if len(found) > 1 else None
        return result

    def _prevalence(self) -> dict[str, Any]:
        """Which languages described photos find first when the captions of all languages are one gallery."""
        features = self.features
        languages = [tag for tag, texts in features.languages.items() for _ in range(texts.stop - texts.start)]
        asked = features.image_embeds[np.unique(features.text_images)]
        lists = best_matches(asked, features.text_embeds, PAGE)[1].numpy()
        return {"by": "embeddings", **language_prevalence(lists, languages, lists.shape[1])}


class SecondStage(FirstStage):
    """Search whose best candidates are re-scored.

    Args:
        features: of the data set.
        plain: ranks by embeddings.
        candidates: that were scored.
        logits: (P, 2) of them.
        score: see `rerank_scores`.
        temperature: of the model.
        protocol: `ccrk` or `official`.
    """

    def __init__(
        self,
        features: RetrievalFeatures,
        plain: dict[str, np.ndarray],
        candidates: Candidates,
        logits: torch.Tensor,
        score: str,
        temperature: float,
        protocol: str,
    ):
        super().__init__(features, plain)
        self.official = protocol == "official"
        self.best: dict[str, BestOf] = dict(candidates.of_images)
        if candidates.of_texts is not None:
            self.best["text-to-image"] = candidates.of_texts
        self.scores = {way: rerank_scores(best, logits, score, temperature) for way, best in self.best.items()}

    def misses(self, top: int | None = None) -> dict[str, Any]:
        """What infinite ranks count as in MRV: nothing in ours, which has none."""
        if not self.official:
            return {}
        held = self.best["text-to-image"].items.shape[1] if "text-to-image" in self.best else 0
        count = len(self.features.image_embeds)
        return {"misses": "mean_of_rest", "top_k": min(top or held, held), "candidates": count}

    def ranks(self, top: int | None = None) -> dict[str, np.ndarray]:
        """Final ranks; `top` re-ranks fewer candidates than there are."""
        groups = self.features.image_groups
        of_texts = groups[self.features.text_images]
        ranks = {}
        for way, best in self.best.items():
            ours, theirs = (of_texts, groups) if way == "text-to-image" else (groups, of_texts)
            right = ours[best.queries][:, None] == theirs[best.items]
            below = np.full(len(right), np.inf) if self.official else self.plain[way]
            ranks[way] = reranked_ranks(self.scores[way][:, :top], right[:, :top], below)
        return ranks

    def lists(self, count: int = PAGE) -> np.ndarray:
        """(T, count) rows of the first images of every text, the re-ranked ones above the rest."""
        if "text-to-image" not in self.best:
            return super().lists(count)
        best, scores = self.best["text-to-image"], self.scores["text-to-image"]
        order = torch.argsort(scores, dim=1, descending=True, stable=True).numpy()
        items = np.take_along_axis(best.items, order, axis=1)
        if items.shape[1] < count:  # what follows by embeddings
            longer = super().lists(count)
            items = np.concatenate([items, longer[:, items.shape[1] :]], axis=1)
        return items[:, :count]

    def details(self, dataset, figures: Callable[..., dict]) -> dict[str, Any]:
        """As of the first stage, and `curve`: the figures by the number of candidates that are re-ranked."""
        result = super().details(dataset, figures)
        held = max(best.items.shape[1] for best in self.best.values())
        curve = [{"top": 0, **figures({way: self.plain[way] for way in self.best})}]
        for top in [*(depth for depth in DEPTHS if depth < held), held]:
            curve.append({"top": top, **figures(self.ranks(top), **self.misses(top))})
        return {**result, "curve": curve}


def first_texts(features: RetrievalFeatures) -> dict[str, np.ndarray]:
    """Language -> (N,) the first caption of each image, -1 where there is none."""
    first = {}
    for tag, texts in features.languages.items():
        images, places = np.unique(features.text_images[texts], return_index=True)
        first[tag] = np.full(len(features.image_embeds), -1)
        first[tag][images] = texts.start + places
    return first


def describe(features: RetrievalFeatures, dataset, first: dict[str, np.ndarray]) -> tuple[list, list, dict]:
    """Ids, paths (None for images that are no files) and first captions of all images."""
    if "image" in (getattr(dataset, "column_names", None) or ()):
        dataset = dataset.remove_columns("image")  # or every photo would be decoded
    captions: dict[str, list] = {tag: [] for tag in first}
    ids, paths = [], []
    for row in features.image_rows:
        record = dataset[int(row)]
        image, identity = record.get("image"), record.get("image_id")
        ids.append(str(row) if identity is None else str(identity))
        paths.append(os.fspath(image) if isinstance(image, (str, os.PathLike)) else None)
        for tag, of_tag in captions.items():
            own = (caption["text"] for caption in record["captions"] if caption["language"] == tag)
            of_tag.append(next(own, None))
    return ids, paths, captions


def _of_items(ranks: np.ndarray, texts: np.ndarray) -> list[float | None]:
    """Ranks of the first captions; None where there is none, or where nobody knows it."""
    return [None if t < 0 or not np.isfinite(ranks[t]) else float(ranks[t]) for t in texts]
