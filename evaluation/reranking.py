"""The second stage: candidates are scored by the fusion encoder, a few images' keys and values at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tqdm.auto import tqdm

from ccrk.evaluation.candidates import BestOf, Candidates
from ccrk.evaluation.features import RetrievalFeatures
from ccrk.evaluation.shards import Shards
from ccrk.evaluation.sharing import Share
from ccrk.fingerprints_ccrk import name_of, weights_name
from ccrk.inference_ccrk import fast_passes

RERANK_SCORES = ("itm", "itm+sim", "sim")
IMAGES_AT_ONCE = 16
"""Images whose keys and values of all fusion layers are held together: 38 MiB in float32 at paper size and 224 px."""


def _pair_batches(features: RetrievalFeatures, texts: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Places of pairs, shortest texts first, so that little padding is computed."""
    order = np.argsort(features.text_lengths[texts], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _score_images(model, features, images: np.ndarray, numbers, pairs, options: dict) -> torch.Tensor:
    """Matching logits (n, 2) of all pairs of a few images.

    Args:
        model: a CCRk model.
        features: with states.
        images: rows of the images, ascending.
        numbers: of their states in the store.
        pairs: rows of image and text (n,) each.
        options: `batch_size`.
    """
    of_images, texts = pairs
    hidden = torch.stack([features.image_states.read(number) for number in numbers])
    logits = torch.empty(len(texts), 2)
    states = model.retriever.get_image_states(image_hidden_states=hidden.to(model.device))
    for part in _pair_batches(features, texts, options["batch_size"]):
        own, text_rows = np.unique(texts[part], return_inverse=True)
        tokens = [features.text_states.read(features.text_places[text]) for text in own]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(model.device)
        lengths = torch.from_numpy(features.text_lengths[own]).to(model.device)
        image_rows = np.searchsorted(images, of_images[part])
        logits[part] = (
            model.retriever.match(
                image_states=states,
                text_hidden_states=padded,
                attention_mask=(torch.arange(padded.shape[1], device=model.device) < lengths[:, None]).long(),
                pairs=torch.from_numpy(np.stack([image_rows, text_rows], 1)),
                batch_size=options["batch_size"],
            )
            .float()
            .cpu()
        )
    return logits


def _open_cache(model, features: RetrievalFeatures, candidates: Candidates) -> Shards | None:
    if features.cache is None:
        return None
    weights = weights_name(model.retriever, ["fusion_model", "itm_head"])
    name = name_of([weights, IMAGES_AT_ONCE], candidates.images, candidates.texts)
    return Shards(features.cache.folder, f"pairs-{name}")


def _score_own(model, features: RetrievalFeatures, candidates: Candidates, options: dict) -> torch.Tensor:
    """Matching logits (P, 2) of the pairs whose image this process holds; zero for others."""
    cache = _open_cache(model, features, candidates)
    logits = torch.zeros(len(candidates.images), 2)
    held = 0  # images in the store before the ones at hand
    bar = tqdm(total=len(logits), desc="re-ranking", unit="pairs", disable=not options["progress"])
    for batch in features.own_batches:
        for start in range(0, len(batch), IMAGES_AT_ONCE):
            images = batch[start : start + IMAGES_AT_ONCE]
            numbers, held = range(held, held + len(images)), held + len(images)
            first, last = np.searchsorted(candidates.images, [images, images + 1])
            chosen = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
            if not len(chosen):
                continue
            piece = f"{images[0]:08d}"
            found = None if cache is None else cache.load(piece)
            if found is None:
                pairs = candidates.images[chosen], candidates.texts[chosen]
                scores = _score_images(model, features, images, numbers, pairs, options)
                if cache is not None:
                    cache.save(piece, {"logits": scores}, {})
            else:
                scores = found[0]["logits"]
            logits[chosen] = scores
            bar.update(len(chosen))
    bar.close()
    return logits


@torch.inference_mode()
def matching_logits(
    model,
    features: RetrievalFeatures,
    candidates: Candidates,
    *,
    batch_size: int = 64,
    bf16: bool = False,
    share: Share | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Matching logits of all candidates.

    Image by image, so that keys and values of each are computed once, in whatever direction and language it is asked
    for; each process scores the pairs of the images whose hidden states it holds. With a cache of features the logits
    of every few images are kept beside them.

    Args:
        model: a CCRk model.
        features: encoded with `states=True`.
        candidates: see `find_candidates`.
        batch_size: pairs in one pass.
        bf16: under autocast to bfloat16.
        share: of this process.
        progress: show a bar.

    Returns:
        (P, 2), class 1 = match.

    Raises:
        ValueError: if a logit is not finite.
        OSError: if the cache cannot be written.
    """
    share = share or Share(device=model.device)
    options = {"batch_size": batch_size, "progress": progress and share.rank == 0}
    with fast_passes(model, ["fusion_model"], bf16=bf16):
        logits = _score_own(model, features, candidates, options)
    logits = share.add_up(logits)
    if not logits.isfinite().all():
        raise ValueError("matching logits are not finite (NaN or infinite); weights of the fusion encoder are broken")
    return logits


def rerank_scores(best: BestOf, logits: torch.Tensor, score: str, temperature: float) -> torch.Tensor:
    """What candidates are ordered by.

    Args:
        best: candidates of queries.
        logits: (P, 2) of all pairs.
        score: `itm` (logit of a match, as the authors rank), `itm+sim` (that logit less the one of no match, plus
            similarity divided by the temperature) or `sim`.
        temperature: of the model.

    Returns:
        (Q, k).
    """
    of_best = logits[torch.from_numpy(best.pairs)]
    similarity = best.similarity / temperature
    if score == "itm":
        return of_best[..., 1]
    return similarity if score == "sim" else of_best[..., 1] - of_best[..., 0] + similarity


def reranked_ranks(scores: torch.Tensor, right: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Ranks of search whose best items are re-scored and put above the rest; ties count against the query.

    Args:
        scores: (Q, k) of the best items.
        right: (Q, k) whether an item is right.
        ranks: (Q,) what holds for queries that have no right item among the best.

    Returns:
        (Q,) float64, 0-based.
    """
    right = torch.from_numpy(right)
    best = scores.masked_fill(~right, -torch.inf).amax(1)
    above = (~right & (scores >= best[:, None])).sum(1).double().numpy()
    return np.where(right.any(1).numpy(), above, ranks)
