"""Retrieval over a whole data set: features once, recall by language and MRV, optionally re-ranked."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ccrk.evaluation.features import RetrievalFeatures, encode, evaluation_mode
from ccrk.evaluation.reranking import RERANK_SCORES, reranked_ranks
from ccrk.evaluation.sharing import Share
from ccrk.metrics.ccr_recall.recall import TILE, Targets, embedding_ranks, recall_at
from ccrk.metrics.mrv.rank_variation import mean_rank_variance

LOWER_IS_BETTER = ("loss", "mrv")
"""Ends of the names of figures that are better when lower."""


def evaluate_retrieval(
    model,
    processor,
    dataset,
    *,
    languages: Sequence[str] | None = None,
    rerank: int = 0,
    rerank_score: str = "itm+sim",
    batch_size: int = 64,
    ks: Sequence[int] = (1, 5, 10),
    on_broken: str = "raise",
    bf16: bool = False,
    rank: int = 0,
    world_size: int = 1,
    scratch: str | os.PathLike | None = None,
    tile: tuple[int, int] = TILE,
    progress: bool = False,
) -> dict:
    """Text-to-image and image-to-text recall by language and MRV over a whole data set.

    Every caption is a query; ties are counted pessimistically. Rows of equal `image_id` are right answers to each
    other's captions. MRV compares the text-to-image rank of each image's first caption across the languages in which
    every described image has one. Image-to-text recall is by embeddings.

    Memory of N images and T texts, beyond the model, one batch and the captions themselves: 4 D (N + T) bytes of
    embeddings (twice that while they are gathered from several processes) and a few times 4 `tile[0] tile[1]` bytes;
    nothing grows with N T. Re-ranking adds about 50 `rerank` T bytes of candidates and the keys and values of 16
    images. Hidden states of images and texts, up to 64 MiB each, stay in memory; beyond that they lie in a temporary
    file of their size, in the precision in which the towers give them.

    Args:
        model: a CCRk model, not wrapped for distributed training.
        processor: its processor.
        dataset: map-style rows of `image`, `captions` and, optional, `image_id`; images without captions are
            distractors.
        languages: those to evaluate; all by default.
        rerank: images re-scored for each text; 0 ranks by embeddings alone.
        rerank_score: see `reranked_ranks`.
        batch_size: images, texts or pairs in one pass.
        ks: the k of recall at k.
        on_broken: `raise`, or `skip` images that cannot be read, with their captions; they are counted.
        bf16: compute features and matching under autocast to bfloat16; ranks are computed in float32.
        rank: of this process.
        world_size: number of processes. Each embeds and re-scores its share; all return the same report, which is
            that of one process. `torch.distributed` has to be initialised.
        scratch: folder for hidden states that are too many for memory; the system's temporary one by default.
        tile: texts and images (or images and texts) whose similarities are held at once.
        progress: show bars.

    Returns:
        `{"languages": {tag: {"ir@1": ..., "tr@1": ..., "queries": n}}, "mrv": {...}, "images": n, "skipped":
        {"images": n, "captions": n, "examples": [...]}}`, and under `"reranked"` the same for re-ranked
        text-to-image search. Recall is a share between 0 and 1.

    Raises:
        ValueError: if a language has no captions, an option is unknown, no image can be read, or figures of the
            model are not finite.
        OSError: if an image file is not there, or there is no room for hidden states.
    """
    if rerank_score not in RERANK_SCORES:
        raise ValueError(f"rerank_score is '{rerank_score}'; it is one of {', '.join(RERANK_SCORES)}")
    share = Share(rank, world_size, model.device)
    with evaluation_mode(model):
        features = encode(
            model,
            processor,
            dataset,
            languages=languages,
            states=rerank > 0,
            batch_size=batch_size,
            on_broken=on_broken,
            bf16=bf16,
            scratch=scratch,
            share=share,
            progress=progress,
        )
        groups = features.image_groups
        targets = Targets.of_groups(groups[features.text_images], groups)
        texts, images = (embeds.to(model.device) for embeds in (features.text_embeds, features.image_embeds))
        ranks = embedding_ranks(texts, images, targets, tile=tile)
        plain = _by_language(features, ranks, ks)
        for language, figures in plain.items():
            figures |= _image_to_text(features, language, ks, model.device, tile)
            figures["queries"] = len(features.text_images[features.languages[language]])
        result = {
            "images": len(features.image_embeds),
            "languages": plain,
            "mrv": _mrv(features, ranks),
            "skipped": features.skipped,
        }
        if rerank:
            options = {"batch_size": batch_size, "bf16": bf16, "share": share, "tile": tile, "progress": progress}
            ranks = reranked_ranks(model, features, ranks, rerank, rerank_score, **options)
            figures = {"languages": _by_language(features, ranks, ks), "mrv": _mrv(features, ranks)}
            result["reranked"] = {"top": rerank, "score": rerank_score, **figures}
        features.close()
    return result


def _by_language(features: RetrievalFeatures, ranks: np.ndarray, ks) -> dict[str, dict[str, float]]:
    return {
        language: {f"ir@{k}": value for k, value in recall_at(ranks[texts], ks).items()}
        for language, texts in features.languages.items()
    }


def _image_to_text(features: RetrievalFeatures, language: str, ks, device, tile) -> dict[str, float]:
    texts = features.languages[language]
    of_texts = features.image_groups[features.text_images[texts]]
    images = np.flatnonzero(np.isin(features.image_groups, of_texts))
    targets = Targets.of_groups(features.image_groups[images], of_texts)
    embeds = features.image_embeds[images]
    ranks = embedding_ranks(embeds.to(device), features.text_embeds[texts].to(device), targets, tile=tile)
    return {f"tr@{k}": value for k, value in recall_at(ranks, ks).items()}


def _mrv(features: RetrievalFeatures, ranks: np.ndarray) -> dict | None:
    """MRV over the languages that describe every described image; None with fewer than two of them."""
    described = np.unique(features.text_images)
    first = {}
    for language, texts in features.languages.items():
        images, places = np.unique(features.text_images[texts], return_index=True)
        if len(images) == len(described):
            first[language] = ranks[texts][places]
    return {**mean_rank_variance(first), "languages": sorted(first)} if len(first) > 1 else None


def flat_metrics(report: dict, prefix: str = "eval") -> dict[str, float]:
    """The figures of `evaluate_retrieval` under flat names, re-ranked ones in the place of plain ones.

    Args:
        report: of `evaluate_retrieval`.
        prefix: put before every name.

    Returns:
        `eval_ir@1_de` and so on, `eval_ir@1_mean` and `eval_ir@1_worst` over languages, `eval_rsum` (the sum of the
        means), `eval_mrv` where it is defined, and `eval_skipped_images` where there are any.
    """
    metrics: dict[str, float] = {}
    languages = {tag: dict(figures) for tag, figures in report["languages"].items()}
    mrv = report["mrv"]
    if "reranked" in report:
        mrv = report["reranked"]["mrv"]
        for tag, figures in report["reranked"]["languages"].items():
            languages[tag] |= figures
    total = 0.0
    for name in [name for name in next(iter(languages.values())) if "@" in name]:
        values = {tag: figures[name] for tag, figures in languages.items()}
        metrics |= {f"{prefix}_{name}_{tag}": value for tag, value in values.items()}
        metrics[f"{prefix}_{name}_mean"] = sum(values.values()) / len(values)
        metrics[f"{prefix}_{name}_worst"] = min(values.values())
        total += metrics[f"{prefix}_{name}_mean"]
    metrics[f"{prefix}_rsum"] = total
    if mrv is not None:
        metrics[f"{prefix}_mrv"] = mrv["mrv"]
    if report.get("skipped", {}).get("images"):
        metrics[f"{prefix}_skipped_images"] = report["skipped"]["images"]
    return metrics


def greater_is_better(metric: str) -> bool:
    """Whether a figure of `flat_metrics`, or a loss, is better when it is greater: MRV and losses are not."""
    return not metric.endswith(LOWER_IS_BETTER)


def report_lines(report: dict) -> list[str]:
    """A report of `evaluate_retrieval` as lines of text: recall in percent by language, MRV below."""
    parts = [("by embeddings", report)]
    if "reranked" in report:
        again = report["reranked"]
        parts.append((f"best {again['top']} re-ranked by {again['score']}", again))
    lines = [f"{report['images']} images"]
    skipped = report.get("skipped", {})
    if skipped.get("images"):
        lines[0] += f"; {skipped['images']} that cannot be read left out, with {skipped['captions']} captions"
    for name, part in parts:
        figures = part["languages"]
        columns = [key for key in next(iter(figures.values())) if "@" in key]
        lines += ["", name, "language  " + "".join(f"{column:>8}" for column in columns)]
        for tag, values in figures.items():
            lines.append(f"{tag:<10}" + "".join(f"{100 * values[column]:8.1f}" for column in columns))
        if part["mrv"] is not None:
            mrv = part["mrv"]
            lines.append(f"MRV (std) {mrv['std']:8.2f}   over {' '.join(mrv['languages'])}, text to image")
    return lines
