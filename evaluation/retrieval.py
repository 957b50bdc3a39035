"""Retrieval over a whole data set: features once, recall by language and MRV, optionally re-ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from ccrk.metrics.ccr_recall.recall import recall_at, target_ranks
from ccrk.metrics.mrv.rank_variation import mean_rank_variance
from ccrk.text_layers_ccrk import CCRkImageStates

RERANK_SCORES = ("itm", "itm+sim", "sim")


@dataclass
class RetrievalSet:
    """Embeddings and hidden states of a data set, by which it is searched.

    Attributes:
        image_embeds: (N, D).
        image_states: of all images, where re-ranking was asked for.
        texts: language -> (T, D) embeddings.
        hidden: language -> list of (L_t, hidden) states, one for each text, where re-ranking was asked for.
        rows: language -> (T,) image row of each text.
    """

    image_embeds: torch.Tensor
    image_states: CCRkImageStates | None = None
    texts: dict[str, torch.Tensor] = field(default_factory=dict)
    hidden: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)


def _captions(dataset, languages: Sequence[str] | None) -> dict[str, list[tuple[int, str]]]:
    """Language -> (row, text) of every caption."""
    found: dict[str, list[tuple[int, str]]] = {}
    for row in range(len(dataset)):
        for caption in dataset[row]["captions"]:
            if languages is None or caption["language"] in languages:
                found.setdefault(caption["language"], []).append((row, caption["text"]))
    missing = sorted(set(languages or ()) - set(found))
    if missing or not found:
        raise ValueError(f"the data set has no captions in {', '.join(missing) or 'any language'}")
    return {language: found[language] for language in (languages or sorted(found))}


@torch.inference_mode()
def encode(model, processor, dataset, *, languages=None, states=False, batch_size=64, progress=False) -> RetrievalSet:
    """Embeds all images and captions of a data set.

    Args:
        model: a CCRk model.
        processor: its processor.
        dataset: rows of `image` and `captions`, see DESIGN's schema.
        languages: those to encode; all by default.
        states: keep what re-ranking needs.
        batch_size: images or texts in one pass.
        progress: show bars.

    Raises:
        ValueError: if a language has no captions, or the model's output is not finite.
    """
    retriever = model.retriever
    captions = _captions(dataset, languages)
    embeds, kept = [], []
    for start in tqdm(range(0, len(dataset), batch_size), desc="images", disable=not progress):
        images = [dataset[row]["image"] for row in range(start, min(start + batch_size, len(dataset)))]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        output = retriever.get_image_features(pixels)
        embeds.append(output.pooler_output.float())
        if states:
            kept.append(retriever.get_image_states(image_hidden_states=output.last_hidden_state))
    result = RetrievalSet(torch.cat(embeds), CCRkImageStates.cat(kept) if states else None)
    for language, pairs in captions.items():
        # length-sorted, so that little padding is computed
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))
        vectors: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
        hidden: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
        for start in tqdm(range(0, len(pairs), batch_size), desc=f"texts {language}", disable=not progress):
            part = order[start : start + batch_size]
            batch = processor(text=[pairs[i][1] for i in part], return_tensors="pt", padding=True).to(model.device)
            output = retriever.get_text_features(batch["input_ids"], batch["attention_mask"])
            lengths = batch["attention_mask"].sum(1).tolist()
            for place, i in enumerate(part):
                vectors[i] = output.pooler_output[place].float()
                if states:
                    hidden[i] = output.last_hidden_state[place, : lengths[place]]
        result.texts[language] = torch.stack(vectors)
        result.hidden[language] = hidden
        result.rows[language] = np.array([row for row, _ in pairs])
    if not all(t.isfinite().all() for t in [result.image_embeds, *result.texts.values()]):
        raise ValueError(
            "the model's embeddings are not finite (NaN or infinite); its weights or the input are broken"
        )
    return result


@torch.inference_mode()
def rerank_scores(model, features: RetrievalSet, language: str, cosine, top: int, rerank_score: str, batch_size: int):
    """Scores (T, N) whose best `top` images of each text are re-scored by the fusion encoder and put above the rest.

    Args:
        model: a CCRk model.
        features: encoded with `states=True`.
        language: whose texts.
        cosine: (T, N) similarities.
        top: how many to re-score; those beyond keep their order, below.
        rerank_score: `itm` (logit of a match, as the authors rank), `itm+sim` (that logit less the one of no match,
            plus similarity divided by the temperature) or `sim`.
        batch_size: pairs in one pass.
    """
    if rerank_score not in RERANK_SCORES:
        raise ValueError(f"rerank_score is '{rerank_score}'; it is one of {', '.join(RERANK_SCORES)}")
    retriever = model.retriever
    candidates = cosine.topk(min(top, cosine.shape[1]), dim=1).indices
    hidden = features.hidden[language]
    order = sorted(range(len(hidden)), key=lambda i: len(hidden[i]))
    itm = torch.empty((*candidates.shape, 2))
    texts_at_once = max(1, batch_size // candidates.shape[1])
    for start in range(0, len(order), texts_at_once):
        part = order[start : start + texts_at_once]
        padded = torch.nn.utils.rnn.pad_sequence([hidden[i] for i in part], batch_first=True)
        lengths = torch.tensor([len(hidden[i]) for i in part], device=padded.device)
        mask = (torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]).long()
        image_rows = candidates[part].flatten()
        text_rows = torch.arange(len(part), device=padded.device).repeat_interleave(candidates.shape[1])
        pairs = torch.stack([image_rows.to(padded.device), text_rows], 1)
        logits = retriever.match(
            image_states=features.image_states,
            text_hidden_states=padded,
            attention_mask=mask,
            pairs=pairs,
            batch_size=batch_size,
        ).float()
        itm[part] = logits.view(len(part), -1, 2).cpu()
    similarity = cosine.gather(1, candidates) / float(retriever.temperature)
    both = itm[..., 1] - itm[..., 0] + similarity
    new = {"itm": itm[..., 1], "itm+sim": both, "sim": similarity}[rerank_score]
    scores = cosine.clone()
    # cosine is at least -1, so a shift puts every re-scored item above the rest whatever its score
    shifted = new - new.min() + cosine.max() + 1
    return scores.scatter(1, candidates, shifted)


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
    progress: bool = False,
) -> dict:
    """Text-to-image and image-to-text recall by language and MRV over a whole data set.

    Every caption is a query; ties are counted pessimistically. MRV compares the text-to-image rank of each image's
    first caption across the languages in which every image has one. Image-to-text recall is by embeddings.

    Args:
        model: a CCRk model.
        processor: its processor.
        dataset: rows of `image` and `captions`; images without captions are distractors.
        languages: those to evaluate; all by default.
        rerank: images re-scored for each text; 0 ranks by embeddings alone.
        rerank_score: see `rerank_scores`.
        batch_size: images or texts in one pass.
        ks: the k of recall at k.
        progress: show bars.

    Returns:
        `{"languages": {tag: {"ir@1": ..., "tr@1": ..., "queries": n}}, "mrv": {...}, "images": n}`, and under
        `"reranked"` the same for re-ranked text-to-image search. Recall is a share between 0 and 1.
    """
    was_training = model.training
    model.eval()
    try:
        features = encode(
            model,
            processor,
            dataset,
            languages=languages,
            states=rerank > 0,
            batch_size=batch_size,
            progress=progress,
        )
        plain, reranked = {}, {}
        plain_ranks, reranked_ranks = {}, {}
        for language in tqdm(features.texts, desc="re-ranking", disable=not (progress and rerank)):
            cosine = (features.texts[language] @ features.image_embeds.t()).cpu()
            rows = features.rows[language]
            targets = [[row] for row in rows]
            plain[language], plain_ranks[language] = _text_to_image(cosine, targets, ks)
            plain[language] |= _image_to_text(cosine, rows, ks) | {"queries": len(rows)}
            if rerank:
                scores = rerank_scores(model, features, language, cosine, rerank, rerank_score, max(batch_size, 64))
                reranked[language], reranked_ranks[language] = _text_to_image(scores, targets, ks)
    finally:
        model.train(was_training)
    result = {"images": len(dataset), "languages": plain, "mrv": _mrv(plain_ranks, features.rows)}
    if rerank:
        mrv = _mrv(reranked_ranks, features.rows)
        result["reranked"] = {"top": rerank, "score": rerank_score, "languages": reranked, "mrv": mrv}
    return result


def _text_to_image(scores: torch.Tensor, targets, ks) -> tuple[dict[str, float], np.ndarray]:
    ranks = target_ranks(scores.numpy(), targets)
    return {f"ir@{k}": value for k, value in recall_at(ranks, ks).items()}, ranks


def _image_to_text(cosine: torch.Tensor, rows: np.ndarray, ks) -> dict[str, float]:
    images = np.unique(rows)
    ranks = target_ranks(cosine.t().numpy()[images], [np.flatnonzero(rows == image) for image in images])
    return {f"tr@{k}": value for k, value in recall_at(ranks, ks).items()}


def _mrv(ranks: dict[str, np.ndarray], rows: dict[str, np.ndarray]) -> dict | None:
    """MRV over the languages that describe every described image; None with fewer than two of them."""
    described = np.unique(np.concatenate(list(rows.values())))
    first = {}
    for language, of_texts in ranks.items():
        images, places = np.unique(rows[language], return_index=True)
        if len(images) == len(described):
            first[language] = of_texts[places]
    return {**mean_rank_variance(first), "languages": sorted(first)} if len(first) > 1 else None


def report_lines(report: dict) -> list[str]:
    """A report of `evaluate_retrieval` as lines of text: recall in percent by language, MRV below."""
    parts = [("by embeddings", report)]
    if "reranked" in report:
        again = report["reranked"]
        parts.append((f"best {again['top']} re-ranked by {again['score']}", again))
    lines = [f"{report['images']} images"]
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
