"""The pipeline against plain calls of the model: same order, same scores, by every option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from transformers import pipeline

from ccrk import CCRkForPreTraining, CCRkModel
from ccrk.pipelines import ccr_retrieval

TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def plain_embeds(model, processor, photos, texts):
    with torch.no_grad():
        batch = processor(images=photos, text=texts, return_tensors="pt")
        output = model(**batch)
    return output, batch


def plain_ranking(scores: torch.Tensor) -> list[list[int]]:
    return scores.argsort(dim=-1, descending=True, stable=True).tolist()


def ids(results: list[dict]) -> list:
    return [result["id"] for result in results]


def column(results: list[list[dict]], name: str) -> torch.Tensor:
    return torch.tensor([[result[name] for result in row] for row in results])


@pytest.mark.parametrize("batch_size", [1, 5, 32])
@pytest.mark.parametrize("direction", ["text-to-image", "image-to-text", "text-to-text", "image-to-image"])
def test_order_and_scores_equal_direct_calls(search, model, processor, photos, captions, direction, batch_size):
    output, _ = plain_embeds(model, processor, photos, captions)
    embeds = {"text": (captions, output.text_embeds), "image": (photos, output.image_embeds)}
    asked, held = direction.split("-to-")
    queries, query_embeds = embeds[asked]
    gallery, gallery_embeds = embeds[held]
    similarities = normalize(query_embeds, dim=-1) @ normalize(gallery_embeds, dim=-1).t()
    results = search(gallery, batch_size=batch_size)(queries, top_k=len(gallery))
    assert [ids(row) for row in results] == plain_ranking(similarities)
    expected = similarities.sort(dim=-1, descending=True, stable=True).values
    torch.testing.assert_close(column(results, "score"), expected, **TOLERANCE)


@pytest.mark.parametrize("score", ["itm", "itm+sim", "sim"])
@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize("held", ["image", "text"])
def test_reranking_all_equals_plain_match(search, model, processor, photos, captions, held, score, batch_size):
    output, batch = plain_embeds(model, processor, photos, captions)
    with torch.no_grad():
        logits = model.match(**batch)
    similarities = output.image_embeds @ output.text_embeds.t()
    scores = {
        "itm": logits[..., 1],
        "sim": similarities,
        "itm+sim": logits[..., 1] - logits[..., 0] + similarities / model.temperature.detach(),
    }[score]
    matches = logits.softmax(-1)[..., 1]
    gallery, queries = (photos, captions) if held == "image" else (captions, photos)
    if held == "image":
        scores, similarities, matches = scores.t(), similarities.t(), matches.t()
    results = search(gallery, batch_size=batch_size)(
        queries, top_k=len(gallery), rerank=len(gallery), rerank_score=score
    )
    order = scores.sort(dim=-1, descending=True, stable=True)
    assert [ids(row) for row in results] == order.indices.tolist()
    torch.testing.assert_close(column(results, "score"), order.values, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(column(results, "match"), matches.gather(1, order.indices), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(column(results, "similarity"), similarities.gather(1, order.indices), **TOLERANCE)


def test_rows_beyond_rerank_keep_their_order_below(search, photos):
    pipe = search(photos)
    plain = pipe("a dog in the snow", top_k=12)
    results = pipe("a dog in the snow", top_k=9, rerank=5)
    assert len(results) == 9
    assert set(ids(results[:5])) == set(ids(plain[:5])) and ids(results[:5]) != ids(plain[:5])
    assert ids(results[5:]) == ids(plain[5:9])
    assert all(r["match"] is None and r["score"] == r["similarity"] for r in results[5:])
    assert all(0 < r["match"] < 1 for r in results[:5])
    # a rerank deeper than top_k brings up what would not have been shown
    assert ids(pipe("a dog in the snow", top_k=2, rerank=12)) == ids(
        pipe("a dog in the snow", top_k=12, rerank=12)[:2]
    )
    assert len(pipe("a dog", rerank=100, top_k=100)) == 12


def test_image_states_are_kept_and_capped(search, photos, monkeypatch):
    pipe = search(photos)
    read = []
    load = pipe.gallery.load
    monkeypatch.setattr(pipe.gallery, "load", lambda rows: read.extend(rows) or load(rows))
    first = pipe("a dog", rerank=6)
    assert sorted(read) == sorted(r["id"] for r in first[:6])
    assert pipe("a dog", rerank=6) == first and len(read) == 6
    one = next(iter(pipe._states.values()))
    assert one.keys[0].dtype == torch.float32
    each = sum(tensor.nbytes for tensor in (*one.keys, *one.values))
    for room in (0, 4):
        monkeypatch.setattr(ccr_retrieval, "STATE_CACHE_BYTES", room * each)
        assert pipe("a dog", rerank=12)[0] == pipe("a dog", rerank=12)[0]
        assert len(pipe._states) == room
    pipe.set_gallery(photos[:3])
    assert not pipe._states


def test_single_and_list(search, photos, captions):
    pipe = search(photos)
    many = pipe(captions, top_k=3)
    assert [len(row) for row in many] == [3] * len(captions)
    for caption, row in zip(captions, many, strict=True):
        single = pipe(caption, top_k=3)
        assert ids(single) == ids(row)
        assert [r["score"] for r in single] == pytest.approx([r["score"] for r in row], abs=2e-6)
    assert pipe([]) == []
    assert pipe([captions[0]], top_k=3) == [pipe(captions[0], top_k=3)]
    assert len(pipe("a dog")) == 10  # the default of top_k
    assert ids(pipe({"text": "a dog"})) == ids(pipe("a dog"))
    assert [ids(row) for row in pipe(iter_of(captions))] == [ids(row) for row in pipe(captions)]


def iter_of(items):
    yield from items


def test_photo_queries_in_every_form(search, photos, captions, folder):
    pipe = search(captions)
    expected = pipe(photos[0])
    path = folder / "00.png"
    for query in (path, {"image": photos[0]}, {"image": path}, {"image": str(path)}):
        assert pipe(query) == expected
    mixed = search(photos)(["a dog", photos[0], "the sun", path], top_k=1)
    assert ids(mixed[1]) == ids(mixed[3]) == [0]
    assert ids(mixed[0]) == ids(search(photos)("a dog", top_k=1))
    with pytest.warns(UserWarning, match="pass a Path"):
        pipe(str(path))


def test_photo_and_text_together(search, photos, captions, folder):
    pipe = search(photos)
    vectors = {"image": pipe.encode("image", [pipe.prepare("image", photos[2])])[0], "text": None}
    vectors["text"] = pipe.encode("text", ["a dog"])[0]
    for weight in (0, 0.3, 0.5, 1):
        query = {"image": photos[2], "text": "a dog", "weight": weight}
        expected = normalize((1 - weight) * vectors["image"] + weight * vectors["text"], dim=-1)
        scores = (expected @ pipe.gallery.vectors.t())[0]
        results = pipe(query, top_k=12)
        assert ids(results) == plain_ranking(scores[None])[0]
        torch.testing.assert_close(column([results], "score")[0], scores.sort(descending=True).values, **TOLERANCE)
    assert pipe({"image": photos[2], "text": "a dog"}) == pipe({"image": photos[2], "text": "a dog", "weight": 0.5})
    mixed = pipe(["a dog", {"image": folder / "more" / "02.png", "text": "a dog"}, photos[2]], top_k=3)
    assert ids(mixed[1]) == ids(pipe({"image": photos[2], "text": "a dog"}, top_k=3))
    assert ids(search(captions)({"image": photos[2], "text": captions[3], "weight": 1}, top_k=1)) == [3]
    with pytest.raises(ValueError, match="rerank=3 with a query of a photo and a text"):
        pipe({"image": photos[2], "text": "a dog"}, rerank=3)


def test_automatic_reranking_on_a_cpu(search, build_model, photos, captions):
    """Photos whose states nobody keeps are not affordable there; texts are."""
    texts = search(captions)
    assert texts(photos[:2], rerank="auto") == texts(photos[:2], rerank=32)
    assert texts("a dog", rerank="auto") == texts("a dog")
    assert texts({"image": photos[0], "text": "a dog"}, rerank="auto")[0].keys() == {"id", "text", "score"}
    pipe = search(photos, rerank="auto")
    assert pipe("a dog") == search(photos)("a dog")
    pipe.gallery.has_states = True
    assert pipe(["a dog", photos[0]]) == [pipe("a dog", rerank=32), search(photos)(photos[0])]
    untrained = build_model(CCRkModel)
    untrained.config.matching_weight = 0
    assert search(captions, model=untrained)(photos[0], rerank="auto") == search(captions)(photos[0])


def test_filters_need_an_index(search, photos):
    with pytest.raises(ValueError, match="where=.*'year': 3.* needs an index .*InMemoryGallery.*ccrk index"):
        search(photos)("a dog", where={"year": 3})


def test_photos_that_are_gone_stand_behind_those_that_are_not(search, photos, tmp_path):
    for number, photo in enumerate(photos[:6]):
        photo.save(tmp_path / f"{number}.png")
    pipe = search(tmp_path)
    whole, plain = pipe("a dog", rerank=4, top_k=6), pipe("a dog", top_k=6)
    pipe._states.clear()
    lost = plain[1]["id"]
    (tmp_path / lost).unlink()
    with pytest.warns(UserWarning, match=f"not re-ranked, and put behind what is: there is no image file '.*{lost}'"):
        results = pipe("a dog", rerank=4, top_k=6)
    assert ids(results) == [i for i in ids(whole[:4]) if i != lost] + [lost] + ids(plain[4:])
    assert results[3]["match"] is None and results[3]["score"] == results[3]["similarity"]
    for file in tmp_path.iterdir():
        file.unlink()
    pipe._states.clear()
    with pytest.warns(UserWarning, match=r"not re-ranked.*and 3 more"):
        assert ids(pipe("a dog", rerank=4, top_k=6)) == ids(plain)


def test_ties_follow_the_gallery(search, photos):
    pipe = search([photos[3]] * 40 + photos, batch_size=8)
    assert ids(pipe(photos[3], top_k=8)) == list(range(8))
    assert ids(pipe(photos[3], top_k=41)) == [*range(40), 43]


@pytest.mark.parametrize("queries", [1, 2, 70, 300])
@pytest.mark.parametrize("some", [False, True])
def test_exact_search_is_a_stable_sort_of_all_products(monkeypatch, queries, some):
    monkeypatch.setattr(ccr_retrieval, "ROWS_AT_ONCE", 64)
    monkeypatch.setattr(ccr_retrieval, "SIMILARITIES_AT_ONCE", 700)
    monkeypatch.setattr(ccr_retrieval, "GROUP", 4)
    monkeypatch.setattr(ccr_retrieval, "PIECE", 16)
    generator = torch.Generator().manual_seed(queries)
    # whole numbers, so that products are exact however they are summed, and nearly all of them tie
    vectors = torch.randint(-2, 3, (1000, 5), generator=generator).float()
    asked = torch.randint(-2, 3, (queries, 5), generator=generator).float()
    rows = torch.arange(1000)[torch.rand(1000, generator=generator) < 0.4] if some else torch.arange(1000)
    expected, order = (asked @ vectors[rows].t()).sort(dim=1, descending=True, stable=True)
    for k in (1, 2, 10, 299, len(rows) - 1, len(rows), 5000):
        scores, places = ccr_retrieval.exact_search(vectors, asked, k, rows.tolist() if some else None)
        assert scores.equal(expected[:, :k]) and places.equal(rows[order[:, :k]])


def test_exact_search_in_nothing():
    for vectors, rows in ((torch.ones(3, 4), []), (torch.ones(0, 4), None)):
        scores, places = ccr_retrieval.exact_search(vectors, torch.ones(2, 4), 5, rows)
        assert scores.shape == places.shape == (2, 0)


def test_search_in_blocks_equals_one_product(search, photos, captions, monkeypatch):
    pipe = search(photos)
    expected = pipe(captions)
    monkeypatch.setattr(ccr_retrieval, "SIMILARITIES_AT_ONCE", 30)
    monkeypatch.setattr(ccr_retrieval, "ROWS_AT_ONCE", 3)
    assert [ids(row) for row in pipe(captions)] == [ids(row) for row in expected]


def test_results_are_plain_values(search, photos, folder, captions):
    for gallery in (photos, folder):
        results = search(gallery)(captions, rerank=3)
        assert json.loads(json.dumps(results)) == results
    assert list(search(folder)("a dog")[0]) == ["id", "path", "score"]


def test_options_of_the_pipeline_are_defaults_of_calls(search, photos):
    pipe = search(photos, top_k=4, rerank=3, rerank_score="itm")
    results = pipe("a dog")
    assert len(results) == 4 and results[0]["match"] is not None
    assert results == search(photos)("a dog", top_k=4, rerank=3, rerank_score="itm")
    assert len(pipe("a dog", top_k=2)) == 2


def test_pretraining_model_and_transformers_pipeline(search, build_model, processor, photos, captions):
    model = build_model(CCRkForPreTraining)
    retriever = model.ccrk
    expected = search(photos, model=retriever)(captions, rerank=4)
    assert search(photos, model=model)(captions, rerank=4) == expected
    pipe = pipeline("ccr-retrieval", model=model, processor=processor, gallery=photos, device="cpu", top_k=2)
    assert pipe(captions, rerank=4) == [row[:2] for row in expected]


def test_bfloat16(search, build_model, photos, captions):
    model = build_model(CCRkModel).to(torch.bfloat16)
    pipe = search(photos, model=model)
    assert pipe.gallery.vectors.dtype == torch.float32
    torch.testing.assert_close(pipe.gallery.vectors.norm(dim=-1), torch.ones(12))
    exact = search(photos, model=build_model(CCRkModel))
    pair = [p.gallery.vectors for p in (pipe, exact)]
    assert (pair[0] * pair[1]).sum(-1).min() > 0.99
    results = pipe(captions, rerank=6)
    assert all(0 <= r["match"] <= 1 for row in results for r in row[:6])


def test_no_gradient_and_evaluation(search, build_model, photos):
    model = build_model(CCRkModel).train()
    pipe = search(photos, model=model)
    assert not model.training
    assert pipe("a dog", rerank=3) == pipe("a dog", rerank=3)
    assert not pipe.gallery.vectors.requires_grad


def test_nan_weights_are_named(search, build_model, photos):
    model = build_model(CCRkModel)
    with torch.no_grad():
        model.visual_projection[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="visual_projection.0.weight"):
        search(photos, model=model)
    model = build_model(CCRkModel)
    pipe = search(photos, model=model)
    with torch.no_grad():
        model.text_projection[0].bias[0] = float("inf")
    with pytest.raises(ValueError, match="embeddings of the query.*text_projection.0.bias"):
        pipe("a dog")
    model = build_model(CCRkModel)
    pipe = search(photos, model=model)
    with torch.no_grad():
        model.itm_head[0].weight[0, 0] = float("nan")
    assert pipe("a dog")
    with pytest.raises(ValueError, match="matching logits.*itm_head.0.weight"):
        pipe("a dog", rerank=2)


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        ("", ValueError, "the query is empty"),
        (" \n", ValueError, "the query is empty"),
        (["a dog", "  "], ValueError, "query 1 is empty"),
        (3, TypeError, "the query is of type int"),
        (None, TypeError, "the query is of type NoneType"),
        (["a dog", ["nested"]], TypeError, "query 1 is of type list"),
        ({"txt": "a dog"}, ValueError, "'txt'"),
        ({}, ValueError, "none"),
        ({"text": "a", "weight": 0.5}, ValueError, "'text', 'weight'"),
        ({"text": "a", "image": "b", "x": 1}, ValueError, "'text', 'image', 'x'"),
        ({"text": " ", "image": "b"}, ValueError, "the query is empty"),
        ({"text": "a", "image": 3}, TypeError, "int as image"),
        ({"text": "a", "image": "nowhere.png"}, FileNotFoundError, "the query: there is no image file 'nowhere.png'"),
        ({"text": "a", "image": "b", "weight": 1.5}, ValueError, "weight 1.5; it is a number from 0 .* to 1"),
        ({"text": "a", "image": "b", "weight": True}, ValueError, "weight True"),
        ({"text": "a", "image": "b", "weight": float("nan")}, ValueError, "weight nan"),
        ({"text": 3}, TypeError, "int as text"),
        ({"image": 3}, TypeError, "int as image"),
        (Path("nowhere.png"), FileNotFoundError, "the query: there is no image file 'nowhere.png'"),
        (["a dog", Path("nowhere.png")], FileNotFoundError, "query 1: there is no image file 'nowhere.png'"),
    ],
)
def test_bad_queries(search, photos, query, error, words):
    with pytest.raises(error, match=words):
        search(photos)(query)


def test_corrupt_query_photo(search, captions, tmp_path, folder):
    broken = tmp_path / "broken.png"
    broken.write_bytes((folder / "00.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"query 1: image .*broken\.png' is damaged"):
        search(captions)([folder / "01.png", broken])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"top_k": 0}, ValueError, "top_k is 0"),
        ({"top_k": 2.5}, TypeError, "top_k is 2.5"),
        ({"rerank": 0}, ValueError, "rerank is 0"),
        ({"rerank": True}, TypeError, "rerank is True"),
        ({"rerank_score": "cosine"}, ValueError, "itm\\+sim, itm, sim"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"topk": 3}, TypeError, "topk"),
    ],
)
def test_bad_options(search, photos, options, error, words):
    with pytest.raises(error, match=words):
        search(photos)("a dog", **options)
    with pytest.raises(error, match=words):
        search(photos, **options)


def test_reranking_needs_a_photo_and_a_text(search, photos, captions):
    with pytest.raises(ValueError, match="own kind .text."):
        search(captions)("a dog", rerank=3)
    with pytest.raises(ValueError, match="own kind .image."):
        search(photos)(["a dog", photos[0]], rerank=3)


def test_pipeline_needs_a_processor(model):
    with pytest.raises(ValueError, match="no processor"):
        ccr_retrieval.CCRkRetrievalPipeline(model)
