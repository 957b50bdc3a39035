"""Retrieval over a data set against a plain twin: one text at a time, every image scored, numpy ranks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from ccrk.evaluation.retrieval import evaluate_retrieval, report_lines

spec = importlib.util.spec_from_file_location(
    "trainer_conftest", Path(__file__).parent.parent / "trainer" / "conftest.py"
)
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
rows, processor, make_model = fixtures.rows, fixtures.processor, fixtures.make_model


@torch.no_grad()
def plain_ranks(model, processor, rows, language, top, score):
    """Ranks of each text's image, computed the slow way."""
    images = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    embeds = model.get_image_features(images).pooler_output
    ranks = []
    for target, row in enumerate(rows):
        for caption in row["captions"]:
            if caption["language"] != language:
                continue
            text = processor(text=[caption["text"]], return_tensors="pt")
            vector = model.get_text_features(**text).pooler_output[0]
            cosine = (embeds @ vector).numpy()
            order = list(np.argsort(-cosine, kind="stable"))
            if top:
                logits = model.match(images, **text)[:, 0]
                combined = logits[:, 1].numpy()
                if score == "itm+sim":
                    combined = combined - logits[:, 0].numpy() + cosine / model.retriever.temperature.item()
                order[:top] = sorted(order[:top], key=lambda i: -combined[i])
            ranks.append(order.index(target))
    return np.array(ranks)


@pytest.mark.parametrize("score", ["itm", "itm+sim"])
def test_equal_to_the_plain_twin(rows, processor, make_model, score):
    model = make_model().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # a fresh model scores all pairs alike
    model.ccrk.temperature.data.fill_(0.07)
    report = evaluate_retrieval(model, processor, rows, rerank=4, rerank_score=score, batch_size=5)
    for language in ("en", "de", "fr"):
        for top, part in ((0, report), (4, report["reranked"])):
            ranks = plain_ranks(model, processor, rows, language, top, score)
            figures = part["languages"][language]
            for k in (1, 5, 10):
                assert figures[f"ir@{k}"] == pytest.approx((ranks < k).mean()), (language, top, k)


def test_mrv_compares_languages_that_describe_every_image(rows, processor, make_model):
    report = evaluate_retrieval(make_model(), processor, rows)
    assert report["mrv"]["languages"] == ["de", "en"]  # some images have no French
    text = "\n".join(report_lines(report))
    assert "12 images" in text
    assert "MRV (std)" in text


def test_images_without_captions_are_distractors(rows, processor, make_model):
    bare = [{**row, "captions": []} for row in rows[6:]]
    report = evaluate_retrieval(make_model(), processor, rows[:6] + bare, languages=["en"])
    assert report["images"] == 12
    assert report["languages"]["en"]["queries"] == sum(c["language"] == "en" for r in rows[:6] for c in r["captions"])


def test_a_language_without_captions_is_an_error(rows, processor, make_model):
    with pytest.raises(ValueError, match="no captions in xx"):
        evaluate_retrieval(make_model(), processor, rows, languages=["en", "xx"])


def test_a_broken_model_is_an_error(rows, processor, make_model):
    model = make_model()
    model.ccrk.text_projection[0].bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        evaluate_retrieval(model, processor, rows)
