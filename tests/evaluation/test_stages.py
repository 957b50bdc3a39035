"""Two stages in both directions, the authors' protocol, depth curves and what the report is drawn from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ccrk.evaluation import reranking
from ccrk.evaluation.retrieval import evaluate_retrieval
from ccrk.metrics.ccr_recall.recall import recall_at
from ccrk.metrics.mrv.rank_variation import DIRECTIONS, mean_rank_variance

SCORES = ("itm", "itm+sim", "sim")
WORDS = ("red", "dog", "rot", "bleu")


@pytest.fixture
def distinct(rows):
    """The rows with captions that all differ: to the tokenizer numbers are one unknown word, and equal texts tie."""

    def spelt(caption):
        text, _, number = caption["text"].rpartition(" ")
        return {**caption, "text": " ".join([text, *[WORDS[int(number) % 4]] * (int(number) // 4 + 1)])}

    return [{**row, "captions": [spelt(caption) for caption in row["captions"]]} for row in rows]


@torch.no_grad()
def whole(model, processor, rows, language, score):
    """Cosine and score of every text of a language with every image, and the image of each text."""
    pixels = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    images = model.get_image_features(pixels).pooler_output
    cosine, scores, targets = [], [], []
    for target, row in enumerate(rows):
        for caption in row["captions"]:
            if caption["language"] == language:
                text = processor(text=[caption["text"]], return_tensors="pt")
                cosine.append(images @ model.get_text_features(**text).pooler_output[0])
                logits = model.match(pixels, **text)[:, 0]
                parts = {"itm": logits[:, 1], "sim": cosine[-1]}
                parts["itm+sim"] = logits[:, 1] - logits[:, 0] + cosine[-1] / model.ccrk.temperature
                scores.append(parts[score])
                targets.append(target)
    return torch.stack(cosine).numpy(), torch.stack(scores).numpy(), np.array(targets)


def slow_ranks(cosine, scores, right, top, below):
    """One query at a time: the best by cosine in the order of their scores, then the rest, or a tie at the bottom."""
    ranks = []
    for row in range(len(cosine)):
        head = list(np.argsort(-cosine[row], kind="stable")[:top])
        found = [scores[row, i] for i in head if right[row, i]]
        if found:
            ranks.append(sum(not right[row, i] and scores[row, i] >= max(found) for i in head))
        elif below == "cosine":
            ranks.append((~right[row] & (cosine[row] >= cosine[row][right[row]].max())).sum())
        else:
            ranks.append(np.inf)
    return np.array(ranks, dtype=float)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("top", [1, 4, 40])
def test_both_directions_are_those_of_the_slow_way(distinct, processor, lively_model, score, top):
    rows = distinct
    report = evaluate_retrieval(lively_model, processor, rows, rerank=top, rerank_score=score, batch_size=5)
    for language in ("en", "de", "fr"):
        cosine, scores, targets = whole(lively_model, processor, rows, language, score)
        right = targets[:, None] == np.arange(len(rows))
        described = np.unique(targets)
        there = slow_ranks(cosine, scores, right, top, "cosine")
        back = slow_ranks(cosine.T[described], scores.T[described], right.T[described], top, "cosine")
        figures = report["reranked"]["languages"][language]
        for k in (1, 5, 10):
            assert figures[f"ir@{k}"] == recall_at(there, [k])[k]
            assert figures[f"tr@{k}"] == recall_at(back, [k])[k]


def test_the_protocol_of_the_authors(rows, processor, lively_model):
    report = evaluate_retrieval(lively_model, processor, rows, rerank=3, protocol="official", details=True)
    again = report["reranked"]
    assert again["score"] == "itm"
    firsts = {}
    for language in ("de", "en"):
        cosine, scores, targets = whole(lively_model, processor, rows, language, "itm")
        ranks = slow_ranks(cosine, scores, targets[:, None] == np.arange(len(rows)), 3, "bottom")
        assert again["languages"][language]["ir@10"] == np.isfinite(ranks).mean()  # below 3 nothing is found
        firsts[language] = ranks[np.unique(targets, return_index=True)[1]]
        known = [None if np.isinf(rank) else rank for rank in firsts[language]]
        assert report["items"]["ranks"][language] == known
    assert np.isinf(np.concatenate(list(firsts.values()))).any()
    expected = mean_rank_variance(firsts, misses="mean_of_rest", top_k=3, candidates=len(rows))
    assert again["mrv"] == expected
    with pytest.raises(ValueError, match="protocol is 'paper'; it is one of ccrk, official"):
        evaluate_retrieval(lively_model, processor, rows, protocol="paper")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_direction_alone(rows, processor, lively_model, direction):
    both = evaluate_retrieval(lively_model, processor, rows, rerank=4)["reranked"]
    one = evaluate_retrieval(lively_model, processor, rows, rerank=4, rerank_directions=[direction])["reranked"]
    options = {"rerank": 12, "rerank_score": "itm", "rerank_directions": [direction], "details": True}
    items = evaluate_retrieval(lively_model, processor, rows, **options)["items"]
    assert (items["ranks"] == items["plain_ranks"]) == (direction == "image-to-text")
    way = {"text-to-image": "ir", "image-to-text": "tr"}[direction]
    for language, figures in one["languages"].items():
        assert figures == {name: v for name, v in both["languages"][language].items() if name.startswith(way)}
    assert one["mrv"] == (both["mrv"] if way == "ir" else None)
    with pytest.raises(ValueError, match="directions are \\['sideways'\\]"):
        evaluate_retrieval(lively_model, processor, rows, rerank=4, rerank_directions=["sideways"])


def test_each_pair_is_scored_once_and_each_image_prepared_once(rows, processor, lively_model, monkeypatch):
    scored, prepared = [], []
    match, states = lively_model.ccrk.match_rows, lively_model.ccrk.get_image_states
    monkeypatch.setattr(reranking, "IMAGES_AT_ONCE", 2)
    monkeypatch.setattr(
        lively_model.ccrk, "match_rows", lambda *args, **kw: scored.append(len(args[3])) or match(*args, **kw)
    )
    monkeypatch.setattr(
        lively_model.ccrk,
        "get_image_states",
        lambda *args, **kw: prepared.append(len(kw["image_hidden_states"])) or states(*args, **kw),
    )
    report = evaluate_retrieval(lively_model, processor, rows, rerank=100, batch_size=5)
    assert sum(scored) == report["images"] * report["texts"]  # of both directions, all pairs are the same
    assert sum(prepared) == report["images"]


def test_the_curve_is_what_fewer_candidates_give(rows, processor, lively_model):
    for protocol in ("ccrk", "official"):
        options = {"protocol": protocol, "batch_size": 5}
        report = evaluate_retrieval(lively_model, processor, rows, rerank=12, details=True, **options)
        assert [point["top"] for point in report["curve"]] == [0, 8, 12]
        for point in report["curve"]:
            alone = evaluate_retrieval(lively_model, processor, rows, rerank=point["top"], **options)
            alone = alone["reranked"] if point["top"] else alone
            assert point["mrv"] == alone["mrv"]
            for language, figures in point["languages"].items():
                assert figures == {name: alone["languages"][language][name] for name in figures}


def test_details_say_what_was_found(rows, processor, lively_model):
    for rerank in (0, 4):
        report = json.loads(json.dumps(evaluate_retrieval(lively_model, processor, rows, rerank=rerank, details=True)))
        items = report["items"]
        assert items["image_ids"] == [row["image_id"] for row in rows]
        assert items["images"] == [None] * len(rows)  # open images, no files
        for language in ("de", "en", "fr"):
            cosine, scores, targets = whole(lively_model, processor, rows, language, "itm+sim")
            ranks = slow_ranks(cosine, scores, targets[:, None] == np.arange(len(rows)), rerank, "cosine")
            for i, row in enumerate(rows):
                own = [c["text"] for c in row["captions"] if c["language"] == language]
                assert items["texts"][language][i] == (own[0] if own else None)
                if not own:
                    assert items["ranks"][language][i] is None and items["found"][language][i] is None
                    continue
                text = int(np.flatnonzero(targets == i)[0])
                assert items["ranks"][language][i] == ranks[text]
                page = items["found"][language][i]
                assert len(page) == 10 and len(set(page)) == 10
                assert (page.index(i) if i in page else None) == (ranks[text] if ranks[text] < 10 else None)
        assert report["consistency"]["languages"] == ["de", "en", "fr"]
        overlap = [
            len({*items["found"]["en"][i]} & {*items["found"]["de"][i]}) / 10
            for i in range(len(rows))
            if all(items["found"][tag][i] for tag in ("de", "en", "fr"))
        ]
        assert report["consistency"]["overlap"]["de"] == pytest.approx(np.mean(overlap))
        prevalence = report["prevalence"]
        counts = {
            tag: sum(c["language"] == tag for row in rows for c in row["captions"]) for tag in ("de", "en", "fr")
        }
        assert prevalence["expected"] == pytest.approx({tag: n / sum(counts.values()) for tag, n in counts.items()})
        assert prevalence["k"] == 10 and sum(prevalence["share"].values()) == pytest.approx(1)
    together = [whole(lively_model, processor, rows, tag, "itm")[0] for tag in ("de", "en", "fr")]
    tags = np.repeat(["de", "en", "fr"], [len(cosine) for cosine in together])
    described = [i for i, row in enumerate(rows) if row["captions"]]
    first = np.argsort(-np.concatenate(together).T[described], axis=1)[:, :10]
    assert prevalence["share"]["de"] == pytest.approx((tags[first] == "de").mean())
