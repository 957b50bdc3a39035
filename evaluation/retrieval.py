"""Retrieval over a whole data set: features once, recall by language and MRV, optionally re-ranked."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ccrk.evaluation.candidates import described_images, find_candidates
from ccrk.evaluation.features import RetrievalFeatures, encode, evaluation_mode
from ccrk.evaluation.reranking import RERANK_SCORES, matching_logits
from ccrk.evaluation.sharing import Share
from ccrk.evaluation.stages import PROTOCOLS, FirstStage, SecondStage, first_texts
from ccrk.metrics.ccr_recall.recall import TILE, Targets, embedding_ranks, recall_at
from ccrk.metrics.mrv.rank_variation import DIRECTIONS, mean_rank_variance

LOWER_IS_BETTER = ("loss", "mrv")
"""Ends of the names of figures that are better when lower."""


def evaluate_retrieval(
    model,
    processor,
    dataset,
    *,
    languages: Sequence[str] | None = None,
    mrv_languages: Sequence[str] | None = None,
    rerank: int = 0,
    rerank_score: str = "itm+sim",
    rerank_directions: Sequence[str] = DIRECTIONS,
    protocol: str = "ccrk",
    batch_size: int = 64,
    ks: Sequence[int] = (1, 5, 10),
    on_broken: str = "raise",
    bf16: bool = False,
    rank: int = 0,
    world_size: int = 1,
    scratch: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    tile: tuple[int, int] = TILE,
    details: bool = False,
    progress: bool = False,
) -> dict:
    """Text-to-image and image-to-text recall by language and MRV over a whole data set.

    Every caption is a query; ties are counted pessimistically. Rows of equal `image_id` are right answers to each
    other's captions. MRV compares the text-to-image rank of each image's first caption across languages.

    With `rerank` the best candidates of both directions are scored by the fusion encoder, each pair once, and put
    above the rest, which keeps its order by embeddings.

    Memory of N images and T texts, beyond the model, one batch and the captions themselves: 4 D (N + T) bytes of
    embeddings (twice that while they are gathered from several processes) and a few times 4 `tile[0] tile[1]` bytes;
    nothing grows with N T. Re-ranking adds about 60 bytes for each pair and the keys and values of 16 images. Hidden
    states of images and texts, up to 64 MiB each, stay in memory; beyond that they lie in a temporary file of their
    size, in the precision in which the towers give them, or in the cache.

    Args:
        model: a CCRk model, not wrapped for distributed training.
        processor: its processor.
        dataset: map-style rows of `image`, `captions` and, optional, `image_id`; images without captions are
            distractors.
        languages: those to evaluate; all by default.
        mrv_languages: those that MRV compares, over the images that have a caption in all of them; by default the
            languages in which every described image has one.
        rerank: candidates re-scored for each query; 0 ranks by embeddings alone.
        rerank_score: see `rerank_scores`.
        rerank_directions: `text-to-image`, `image-to-text` or, by default, both.
        protocol: `ccrk`, or `official` for the authors': `rerank_score` is `itm`, and what is not among the best
            is tied at the bottom, so its rank is nowhere and for MRV in the middle of those places.
        batch_size: images, texts or pairs in one pass.
        ks: the k of recall at k.
        on_broken: `raise`, or `skip` images that cannot be read, with their captions; they are counted.
        bf16: compute features and matching under autocast to bfloat16; ranks are computed in float32.
        rank: of this process.
        world_size: number of processes. Each embeds and re-scores its share; all return the same report, which is
            that of one process. `torch.distributed` has to be initialised.
        scratch: folder for hidden states that are too many for memory; the system's temporary one by default.
        cache: folder in which features and scores are kept while they are computed, under a name for all they depend
            on. A run that was cut off goes on from there, with the same figures; another model or data set has
            another name. Nothing is removed.
        tile: texts and images (or images and texts) whose similarities are held at once.
        details: also return what the report of consistency needs: `items`, `curve`, `consistency`,
            `prevalence`.
        progress: show bars.

    Returns:
        `{"languages": {tag: {"ir@1": ..., "tr@1": ..., "queries": n}}, "mrv": {...}, "images": n, "texts": n,
        "skipped": {"images": n, "captions": n, "examples": [...]}}`, and under `"reranked"` the same for the
        re-ranked directions. Recall is a share between 0 and 1.

    Raises:
        ValueError: if a language has no captions, an option is unknown, no image can be read, or figures of the
            model are not finite.
        OSError: if an image file is not there, or there is no room for hidden states or for the cache.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is '{protocol}'; it is one of {', '.join(PROTOCOLS)}")
    rerank_score = "itm" if protocol == "official" else rerank_score
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
            cache=cache,
            share=share,
            progress=progress,
        )
        place = {"device": model.device, "tile": tile}
        ranks = plain_ranks(features, **place)
        result = {
            "protocol": protocol,
            "images": len(features.image_embeds),
            "texts": len(features.text_embeds),
            **_figures(features, ranks, ks, mrv_languages),
            "skipped": features.skipped,
        }
        for language, figures in result["languages"].items():
            figures["queries"] = len(features.text_images[features.languages[language]])
        search = FirstStage(features, ranks)
        if rerank:
            candidates = find_candidates(features, rerank, rerank_directions, **place)
            options = {"batch_size": batch_size, "bf16": bf16, "share": share, "progress": progress}
            logits = matching_logits(model, features, candidates, **options)
            temperature = model.retriever.temperature.item()
            search = SecondStage(features, ranks, candidates, logits, rerank_score, temperature, protocol)
            figures = _figures(features, search.ranks(), ks, mrv_languages, **search.misses())
            result["reranked"] = {"top": rerank, "score": rerank_score, **figures}
        if details:
            result |= search.details(
                dataset, lambda ranks, **misses: _figures(features, ranks, ks, mrv_languages, **misses)
            )
        features.close()
    return result


def plain_ranks(features: RetrievalFeatures, *, device="cpu", tile: tuple[int, int] = TILE) -> dict[str, np.ndarray]:
    """Ranks by embeddings of every text among the images, and of every image among the texts of each language.

    Returns:
        `text-to-image` -> (T,), and each language -> (n,) for the images that have a caption in it.
    """
    groups = features.image_groups
    of_texts = groups[features.text_images]
    texts, images = features.text_embeds.to(device), features.image_embeds.to(device)
    ranks = {"text-to-image": embedding_ranks(texts, images, Targets.of_groups(of_texts, groups), tile=tile)}
    for tag, chosen in features.languages.items():
        described = described_images(features, tag)
        targets = Targets.of_groups(groups[described], of_texts[chosen])
        ranks[tag] = embedding_ranks(images[described], texts[chosen], targets, tile=tile)
    return ranks


def _figures(features: RetrievalFeatures, ranks: dict[str, np.ndarray], ks, mrv_languages=None, **misses) -> dict:
    """Recall by language in the directions whose ranks are given, and MRV of texts."""
    languages: dict[str, dict[str, float]] = {}
    for tag, texts in features.languages.items():
        ways = {"ir": ranks["text-to-image"][texts]} if "text-to-image" in ranks else {}
        ways |= {"tr": ranks[tag]} if tag in ranks else {}
        languages[tag] = {f"{way}@{k}": v for way, of_way in ways.items() for k, v in recall_at(of_way, ks).items()}
    mrv = _mrv(features, ranks["text-to-image"], mrv_languages, **misses) if "text-to-image" in ranks else None
    return {"languages": languages, "mrv": mrv}


def _mrv(features: RetrievalFeatures, ranks: np.ndarray, languages=None, **misses) -> dict | None:
    """MRV of each image's first captions; None with fewer than two languages.

    Over the languages asked for and the images that have a caption in all of them; by default over the languages that
    describe every described image.
    """
    first = first_texts(features)
    described = np.unique(features.text_images)
    if languages is None:
        languages = [tag for tag in sorted(first) if (first[tag][described] >= 0).all()]
    elif not set(languages) <= set(first):
        return None
    if len(languages) < 2:
        return None
    together = np.flatnonzero(np.all([first[tag] >= 0 for tag in languages], axis=0))
    if not len(together):
        return None
    return mean_rank_variance({tag: ranks[first[tag][together]] for tag in languages}, **misses)


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
