"""Which images and texts the fusion encoder is asked about: the best of both directions, each pair once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ccrk.evaluation.features import RetrievalFeatures
from ccrk.evaluation.tiles import best_matches
from ccrk.metrics.ccr_recall.recall import TILE
from ccrk.metrics.mrv.rank_variation import DIRECTIONS


@dataclass
class BestOf:
    """The best matches of queries by embeddings.

    Attributes:
        queries: (Q,) rows of the texts, or of the images.
        items: (Q, k) rows of the images, or of the texts; best first.
        similarity: (Q, k).
        pairs: (Q, k) numbers of these pairs among all candidates.
    """

    queries: np.ndarray
    items: np.ndarray
    similarity: torch.Tensor
    pairs: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass
class Candidates:
    """Pairs to be scored, and whose best matches they are.

    Attributes:
        images, texts: (P,) rows of each pair, by image and then by text; no pair occurs twice.
        of_texts: the best images of every text; None if texts are not re-ranked.
        of_images: language -> the best texts in that language of every image that has one; empty if not re-ranked.
    """

    images: np.ndarray
    texts: np.ndarray
    of_texts: BestOf | None
    of_images: dict[str, BestOf]


def find_candidates(
    features: RetrievalFeatures,
    top: int,
    directions: Sequence[str] = DIRECTIONS,
    *,
    device: torch.device | str = "cpu",
    tile: tuple[int, int] = TILE,
) -> Candidates:
    """The best `top` images of every text, and the best `top` texts of every image in each language.

    Args:
        features: of a data set.
        top: at most so many for each query.
        directions: `text-to-image`, `image-to-text` or both.
        device: where similarities are computed.
        tile: see `best_matches`.

    Raises:
        ValueError: if a direction is not known.
    """
    unknown = [name for name in directions if name not in DIRECTIONS]
    if unknown or not directions:
        raise ValueError(f"directions are {list(directions)}; they are of {', '.join(DIRECTIONS)}")
    of_texts, of_images = None, {}
    options = {"device": device, "tile": tile}
    if "text-to-image" in directions:
        similarity, items = best_matches(features.text_embeds, features.image_embeds, top, **options)
        of_texts = BestOf(np.arange(len(items)), items.numpy(), similarity)
    if "image-to-text" in directions:
        for tag, texts in features.languages.items():
            images = described_images(features, tag)
            embeds = features.image_embeds[images]
            similarity, items = best_matches(embeds, features.text_embeds[texts], top, **options)
            of_images[tag] = BestOf(images, items.numpy() + texts.start, similarity)
    count = len(features.text_embeds)
    codes = [] if of_texts is None else [of_texts.items * count + of_texts.queries[:, None]]
    codes += [best.queries[:, None] * count + best.items for best in of_images.values()]
    every = np.unique(np.concatenate([part.ravel() for part in codes]))
    parts = ([] if of_texts is None else [of_texts]) + list(of_images.values())
    for best, part in zip(parts, codes, strict=True):
        best.pairs = np.searchsorted(every, part)
    return Candidates(every // count, every % count, of_texts, of_images)


def described_images(features: RetrievalFeatures, language: str) -> np.ndarray:
    """Rows of the images that have a caption in a language, by their own row or by one of equal id."""
    groups = features.image_groups
    return np.flatnonzero(np.isin(groups, groups[features.text_images[features.languages[language]]]))
