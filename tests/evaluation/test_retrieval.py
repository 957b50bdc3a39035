"""Retrieval over a data set against a plain twin: one text at a time, every image scored, numpy ranks."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from ccrk.evaluation import features, reranking, state_store
from ccrk.evaluation.retrieval import evaluate_retrieval, flat_metrics, greater_is_better, report_lines


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


def test_tiles_and_files_change_nothing(rows, processor, lively_model, monkeypatch, tmp_path):
    options = {"rerank": 4, "batch_size": 5}
    whole = evaluate_retrieval(lively_model, processor, rows, **options)
    monkeypatch.setattr(state_store.StateStore.__init__, "__defaults__", (None, 100))
    monkeypatch.setattr(reranking, "IMAGES_AT_ONCE", 2)
    assert evaluate_retrieval(lively_model, processor, rows, tile=(3, 5), scratch=tmp_path, **options) == whole
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_keys_and_values_of_few_images_are_held(rows, processor, lively_model, monkeypatch):
    held = []
    original = lively_model.ccrk.get_image_states
    monkeypatch.setattr(reranking, "IMAGES_AT_ONCE", 2)

    def counted(*args, **kwargs):
        states = original(*args, **kwargs)
        held.append(len(states))
        return states

    monkeypatch.setattr(lively_model.ccrk, "get_image_states", counted)
    evaluate_retrieval(lively_model, processor, rows, rerank=12, batch_size=5)
    assert held == [2, 2, 1, 2, 2, 1, 2]  # every image once, whatever the number of languages


def test_all_images_re_ranked_with_ties(rows, processor, lively_model):
    """Two photos alike in all: the second counts against the first, in both stages."""
    plain = evaluate_retrieval(lively_model, processor, rows, rerank=13)
    twice = [*rows, {"image": rows[0]["image"], "image_id": "copy", "captions": []}]
    report = evaluate_retrieval(lively_model, processor, twice, rerank=13, languages=["en"], ks=range(1, 14))
    for part, before in ((report, plain), (report["reranked"], plain["reranked"])):
        # nothing is found better for a copy in the gallery
        assert all(part["languages"]["en"][f"ir@{k}"] <= before["languages"]["en"][f"ir@{k}"] for k in (1, 5, 10))
        assert part["languages"]["en"]["ir@13"] == 1.0
    # the captions of the first photo alone, so that nothing else moves
    only = [rows[0], *({**row, "captions": []} for row in rows[1:])]
    for places in (only, [*only, twice[-1]]):
        found = evaluate_retrieval(lively_model, processor, places, rerank=13, languages=["en"], ks=range(1, 14))
        ranks = [
            sum(1 - part["languages"]["en"][f"ir@{k}"] for k in range(1, 14)) for part in (found, found["reranked"])
        ]
        if len(places) == 12:
            before = ranks
    assert ranks == pytest.approx([before[0] + 1, before[1] + 1])  # the mean rank of its captions


def test_rows_of_one_id_are_one_anothers_answers(rows, processor, lively_model):
    """A row for each caption, as many data sets have them: no photo competes with its own copies."""
    nested = evaluate_retrieval(lively_model, processor, rows, rerank=4)
    split = [{**row, "captions": [caption]} for row in rows for caption in row["captions"]]
    report = evaluate_retrieval(lively_model, processor, split, languages=["de"])
    copies = evaluate_retrieval(
        lively_model, processor, [{**row, "image_id": f"{i}"} for i, row in enumerate(split)], languages=["de"]
    )
    assert report["languages"]["de"]["queries"] == nested["languages"]["de"]["queries"] == 12
    assert copies["languages"]["de"]["ir@1"] == 0  # each has a copy beside it that scores alike
    single = [{key: value for key, value in row.items() if key != "image_id"} for row in rows]
    assert evaluate_retrieval(lively_model, processor, single, rerank=4) == nested  # without ids each row is its own
    once = [{**row, "image_id": "same"} for row in rows]
    everything = evaluate_retrieval(lively_model, processor, once, rerank=2)
    assert everything["languages"]["de"]["ir@1"] == everything["reranked"]["languages"]["de"]["ir@1"] == 1
    assert everything["languages"]["fr"]["tr@1"] == 1


def test_broken_images_are_counted_and_left_out(rows, processor, lively_model, tmp_path):
    paths = []
    for number, row in enumerate(rows):
        paths.append({**row, "image": str(tmp_path / f"{number}.png")})
        row["image"].save(paths[-1]["image"])
    good = evaluate_retrieval(lively_model, processor, [p for i, p in enumerate(paths) if i not in (3, 8)], rerank=4)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    (tmp_path / "8.png").unlink()
    report = evaluate_retrieval(lively_model, processor, paths, rerank=4, on_broken="skip")
    assert good.pop("skipped") == {"images": 0, "captions": 0, "examples": []}
    skipped = report.pop("skipped")
    assert report == good
    assert (skipped["images"], skipped["captions"]) == (2, 6)
    assert "3.png" in skipped["examples"][0]
    assert "8.png" in skipped["examples"][1]
    assert "2 that cannot be read left out, with 6 captions" in report_lines({**report, "skipped": skipped})[0]
    assert flat_metrics({**report, "skipped": skipped})["eval_skipped_images"] == 2
    with pytest.raises(ValueError, match="3.png"):
        evaluate_retrieval(lively_model, processor, paths)
    with pytest.raises(FileNotFoundError, match="8.png"):
        evaluate_retrieval(lively_model, processor, paths[4:])
    with pytest.raises(ValueError, match="no captions in fr once 2 images that cannot be read are left out"):
        languages = [{**p, "captions": [c for c in p["captions"] if c["language"] != "fr"]} for p in paths[:8]]
        evaluate_retrieval(lively_model, processor, [*languages, paths[8]], languages=["fr"], on_broken="skip")
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="not one of 12 images can be read; of the first: .*0.png"):
        evaluate_retrieval(lively_model, processor, paths, on_broken="skip")
    with pytest.raises(ValueError, match="on_broken is 'ignore'; it is one of raise, skip"):
        evaluate_retrieval(lively_model, processor, paths, on_broken="ignore")


def test_bfloat16_is_asked_for(rows, processor, lively_model):
    full = features.encode(lively_model, processor, rows, states=True)
    half = features.encode(lively_model, processor, rows, states=True, bf16=True)
    assert half.image_embeds.dtype == full.image_embeds.dtype == torch.float32
    assert not torch.equal(half.image_embeds, full.image_embeds)
    assert torch.allclose(half.image_embeds, full.image_embeds, atol=0.05)
    assert torch.allclose(half.text_embeds, full.text_embeds, atol=0.05)
    report = evaluate_retrieval(lively_model, processor, rows, rerank=4, bf16=True)
    assert report["images"] == 12
    assert not torch.is_autocast_enabled("cpu")


def test_every_module_is_left_in_its_mode(rows, processor, make_model):
    model = make_model().train()
    model.ccrk.text_model.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    evaluate_retrieval(model, processor, rows)
    assert {name: module.training for name, module in model.named_modules()} == modes
    with pytest.raises(ValueError, match="no captions in xx"):
        evaluate_retrieval(model, processor, rows, languages=["xx"])
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_flat_metrics(rows, processor, lively_model):
    report = evaluate_retrieval(lively_model, processor, rows, rerank=4)
    metrics = flat_metrics(report, "test")
    again = report["reranked"]["languages"]
    assert metrics["test_ir@5_de"] == again["de"]["ir@5"]
    assert metrics["test_tr@5_de"] == report["languages"]["de"]["tr@5"]
    assert metrics["test_ir@1_worst"] == min(figures["ir@1"] for figures in again.values())
    means = [value for name, value in metrics.items() if name.endswith("_mean")]
    assert len(means) == 6
    assert metrics["test_rsum"] == pytest.approx(sum(means))
    assert metrics["test_mrv"] == report["reranked"]["mrv"]["std"]
    assert "test_skipped_images" not in metrics
    assert greater_is_better("eval_ir@1_mean") and greater_is_better("eval_rsum")
    assert not greater_is_better("eval_mrv") and not greater_is_better("eval_val_mrv")


def test_a_datasets_dataset_is_not_decoded_for_its_captions(rows, processor, lively_model, monkeypatch):
    dataset = datasets.Dataset.from_list(rows)
    decoded = []
    original = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *a, **k: decoded.append(1) or original(*a, **k))
    assert evaluate_retrieval(lively_model, processor, dataset) == evaluate_retrieval(lively_model, processor, rows)
    assert len(decoded) == 12


def test_broken_matching_weights_are_an_error(rows, processor, make_model):
    model = make_model()
    model.ccrk.itm_head[0].bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="matching logits are not finite"):
        evaluate_retrieval(model, processor, rows, rerank=2)
    with pytest.raises(ValueError, match="rerank_score is 'cosine'"):
        evaluate_retrieval(model, processor, rows, rerank=2, rerank_score="cosine")
