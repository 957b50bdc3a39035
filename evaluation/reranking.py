"""Re-scores the best images of each text by the fusion encoder, a few images' keys and values at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tqdm.auto import tqdm

from ccrk.evaluation.features import RetrievalFeatures, precision
from ccrk.evaluation.sharing import Share
from ccrk.evaluation.tiles import best_matches
from ccrk.metrics.ccr_recall.recall import TILE

RERANK_SCORES = ("itm", "itm+sim", "sim")
IMAGES_AT_ONCE = 16
"""Images whose keys and values of all fusion layers are held together: 38 MiB in float32 at paper size and 224 px."""


def _pair_batches(features: RetrievalFeatures, pairs: np.ndarray, top: int, size: int) -> Iterator[np.ndarray]:
    """Pairs (places in the flat table of candidates), shortest texts first, so that little padding is computed."""
    order = np.lexsort((pairs, features.text_lengths[pairs // top]))
    for start in range(0, len(pairs), size):
        yield pairs[order[start : start + size]]


def _score_pairs(model, features, states, first: np.ndarray, pairs, candidates, batch_size: int) -> torch.Tensor:
    """Matching logits (n, 2) of pairs of one batch; `first` are the images that the states belong to, ascending."""
    texts, text_rows = np.unique(pairs // candidates.shape[1], return_inverse=True)
    hidden = [features.text_states.read(features.text_places[text]) for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True).to(model.device)
    lengths = torch.from_numpy(features.text_lengths[texts]).to(model.device)
    image_rows = np.searchsorted(first, candidates.numpy().reshape(-1)[pairs])
    return model.retriever.match(
        image_states=states,
        text_hidden_states=padded,
        attention_mask=(torch.arange(padded.shape[1], device=model.device) < lengths[:, None]).long(),
        pairs=torch.from_numpy(np.stack([image_rows, text_rows], 1)),
        batch_size=batch_size,
    ).float()


@torch.inference_mode()
def matching_logits(
    model,
    features: RetrievalFeatures,
    candidates: torch.Tensor,
    *,
    batch_size: int = 64,
    bf16: bool = False,
    share: Share | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Matching logits of every text with its candidates.

    Image by image, so that keys and values of each are computed once; each process scores the pairs of the images
    whose hidden states it holds.

    Args:
        model: a CCRk model.
        features: encoded with `states=True`.
        candidates: (T, top) images, as places in the features.
        batch_size: pairs in one pass.
        bf16: under autocast to bfloat16.
        share: of this process.
        progress: show a bar.

    Returns:
        (T, top, 2), class 1 = match.

    Raises:
        ValueError: if a logit is not finite.
    """
    share = share or Share(device=model.device)
    top = candidates.shape[1]
    by_image = candidates.flatten().argsort(stable=True).numpy()
    ends = np.cumsum(np.bincount(candidates.flatten().numpy(), minlength=len(features.image_embeds)))
    logits = torch.zeros(candidates.numel(), 2)
    number = 0  # of the next image in the store
    for batch in tqdm(features.own_batches, desc="re-ranking", disable=not (progress and share.rank == 0)):
        for start in range(0, len(batch), IMAGES_AT_ONCE):
            images = batch[start : start + IMAGES_AT_ONCE]
            hidden = torch.stack([features.image_states.read(number + i) for i in range(len(images))])
            number += len(images)
            pairs = np.concatenate([by_image[ends[i - 1] if i else 0 : ends[i]] for i in images])
            if not len(pairs):
                continue
            with precision(model, bf16):
                states = model.retriever.get_image_states(image_hidden_states=hidden.to(model.device))
                for part in _pair_batches(features, pairs, top, batch_size):
                    scored = _score_pairs(model, features, states, images, part, candidates, batch_size)
                    logits[part] = scored.cpu()
    logits = share.add_up(logits)
    if not logits.isfinite().all():
        raise ValueError("matching logits are not finite (NaN or infinite); weights of the fusion encoder are broken")
    return logits.view(*candidates.shape, 2)


def reranked_ranks(
    model,
    features: RetrievalFeatures,
    ranks: np.ndarray,
    top: int,
    rerank_score: str,
    *,
    batch_size: int = 64,
    bf16: bool = False,
    share: Share | None = None,
    tile: tuple[int, int] = TILE,
    progress: bool = False,
) -> np.ndarray:
    """Ranks of text-to-image search whose best `top` images are re-scored and put above the rest.

    Args:
        model: a CCRk model.
        features: encoded with `states=True`.
        ranks: (T,) ranks by embeddings; they hold for texts that have no right image among the best.
        top: images re-scored for each text.
        rerank_score: `itm` (logit of a match, as the authors rank), `itm+sim` (that logit less the one of no match,
            plus similarity divided by the temperature) or `sim`.
        batch_size: see `matching_logits`.
        bf16: see there.
        share: see there.
        tile: see `best_matches`.
        progress: show a bar.

    Returns:
        (T,) float64, 0-based, ties counted against the query.
    """
    similarity, candidates = best_matches(
        features.text_embeds, features.image_embeds, top, device=model.device, tile=tile
    )
    logits = matching_logits(
        model, features, candidates, batch_size=batch_size, bf16=bf16, share=share, progress=progress
    )
    similarity = similarity / model.retriever.temperature.item()
    both = logits[..., 1] - logits[..., 0] + similarity
    scores = {"itm": logits[..., 1], "itm+sim": both, "sim": similarity}[rerank_score]
    groups = torch.from_numpy(features.image_groups)
    right = groups[candidates] == groups[torch.from_numpy(features.text_images)][:, None]
    best = scores.masked_fill(~right, -torch.inf).amax(1)
    above = (~right & (scores >= best[:, None])).sum(1).double().numpy()
    return np.where(right.any(1).numpy(), above, ranks)
