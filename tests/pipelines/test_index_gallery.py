"""An index as a gallery: the same answers as the gallery in memory, filters, whose vectors it takes, kept states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from ccrk import CCRkModel
from ccrk.pipelines.gallery_sources import gallery_items
from ccrk.pipelines.gallery_update import open_gallery_index, update_index
from ccrk.pipelines.image_states import ImageStateStore
from ccrk.pipelines.index_gallery import IndexGallery, states_folder
from ccrk.pipelines.indexes import create_index, open_index
from ccrk.pipelines.model_fingerprint import embedding_fingerprint, states_name


def ids(results: list[dict]) -> list:
    return [result["id"] for result in results]


URIS = {"memory": "memory:{name}", "lance": "lance://{folder}/{name}"}


@pytest.fixture(params=URIS)
def build(request, search, tmp_path):
    """Indexes a source and returns its URI."""
    made = []

    def build(source, **options) -> str:
        made.append(None)
        uri = URIS[request.param].format(folder=tmp_path, name=f"{tmp_path.name}-{len(made)}")
        pipe, items = search(), gallery_items(source)
        index = open_gallery_index(uri, embedding_fingerprint(pipe.model, pipe.processor), items)
        update_index(index, items, pipe, batch_size=8, **options)
        index.close()
        return uri

    return build


def store_in(folder: Path, pipe, dtype=torch.float16) -> ImageStateStore:
    return ImageStateStore(folder, states_name(pipe.model, pipe.processor), dtype=dtype)


def assert_same(results: list[list[dict]], expected: list[list[dict]], tolerance: float = 1e-4) -> None:
    for row, other in zip(results, expected, strict=True):
        assert ids(row) == ids(other)
        for name in ("score", "similarity", "match"):
            if name in other[0]:
                assert [r[name] for r in row] == pytest.approx([r[name] for r in other], abs=tolerance)


@pytest.mark.parametrize("options", [{}, {"rerank": 5}, {"rerank": 12, "rerank_score": "itm", "top_k": 3}])
def test_answers_are_those_of_the_gallery_in_memory(search, build, folder, photos, captions, options):
    pipe, memory = search(build(folder)), search(folder)
    assert pipe.gallery.modality == "image" and len(pipe.gallery) == 12
    assert_same(pipe(captions, **options), memory(captions, **options))
    results = pipe("a dog", **options)
    assert json.loads(json.dumps(results)) == results
    assert results[0]["path"] == str(folder / results[0]["id"]) and results[0]["width"] and "hash" not in results[0]
    if not options:
        assert_same(pipe(photos[:3]), memory(photos[:3]))
        assert_same([pipe({"image": photos[0], "text": "a dog"})], [memory({"image": photos[0], "text": "a dog"})])


def test_texts_and_filters(search, build, captions, photos, tmp_path):
    file = tmp_path / "texts.csv"
    rows = [f"{text},{'de' if text[0] in 'ez' else 'en'},{n}" for n, text in enumerate(captions)]
    file.write_text("\n".join(["text,language,year", *rows]))
    pipe = search(build(file))
    assert {r["text"] for r in pipe(photos[0], top_k=20)} == set(captions)
    found = pipe(photos[0], where={"language": "de"}, rerank=10)
    assert {r["text"] for r in found} == {"ein Hund im Schnee", "zwei rote Boote"} and found[0]["match"] is not None
    assert {r["year"] for r in pipe("a dog", where={"year": {"min": 2, "max": 4}})} == {2, 3, 4}
    assert {r["year"] for r in pipe("a dog", where={"year": [1, 7], "language": "en"})} == {7}
    assert pipe("a dog", where={"year": 99}) == [] and pipe(photos[0], where={"year": 99}, rerank=3) == []
    with pytest.raises(ValueError, match="names a column 'place', but the index has: .*language"):
        pipe("a dog", where={"place": "x"})
    chosen = search(pipe.gallery.uri, where={"language": "de"})
    assert len(chosen("a dog")) == 2 and len(chosen("a dog", where={"language": "en"})) == 6
    memory = search(captions)
    assert [r["text"] for r in pipe(photos[0], rerank=8)] == [r["text"] for r in memory(photos[0], rerank=8)]


def test_every_form_of_an_index(search, build, folder, model, processor):
    uri = build(folder)
    expected = search(uri)("a dog", rerank=3)
    assert search(open_index(uri))("a dog", rerank=3) == expected
    assert search(IndexGallery(open_index(uri)))("a dog", rerank=3) == expected
    pipe = pipeline("ccr-retrieval", model=model, processor=processor, gallery=uri, device="cpu", rerank=3)
    assert pipe("a dog") == expected


def test_vectors_of_another_model_are_refused(search, build, build_model, folder, photos):
    uri = build(folder)
    other = build_model(CCRkModel, seed=1)
    with pytest.raises(ValueError, match=r"holds vectors of 'CCRkModel'.*revision .* and not .*Use the model it was"):
        search(uri, model=other)
    pipe = search(photos, model=other)
    before = pipe.gallery
    with pytest.raises(ValueError, match="revision"):
        pipe("a dog", gallery=uri)
    assert pipe.gallery is before
    bfloat = build_model(CCRkModel).to(torch.bfloat16)
    assert len(search(uri, model=bfloat)("a dog")) == 10, "the same weights in another precision"


def test_an_index_of_vectors_alone_can_be_searched(search, model, processor, photos):
    memory = search(photos)
    index = create_index("memory:", embedding_fingerprint(model, processor), {"place": "string"})
    index.upsert([f"p{i}" for i in range(12)], memory.gallery.vectors, [{"place": str(i % 2)} for i in range(12)])
    pipe = search(index)
    assert ids(pipe("a dog")) == [f"p{i}" for i in ids(memory("a dog"))]
    assert {r["place"] for r in pipe("a dog", where={"place": "1"})} == {"1"}
    with pytest.raises(ValueError, match="cannot give them: it lacks `modality`"):
        pipe("a dog", rerank=3)
    assert pipe("a dog", rerank="auto") == pipe("a dog")


def test_rows_that_another_process_deletes_meanwhile(search, build, folder, monkeypatch):
    pipe = search(build(folder))
    index = pipe.gallery.index
    expected = pipe("a dog")
    find = index.search

    def search_then_lose(vectors, k, where=None):
        hits = find(vectors, k, where)
        index.delete([hits[0][0][0]])
        return hits

    monkeypatch.setattr(index, "search", search_then_lose)
    results = pipe("a dog")
    assert ids(results) == ids(expected) and list(results[0]) == ["id", "score"] and results[1] == expected[1]


# --- states -------------------------------------------------------------------------------------------------------


class Counting:
    """Counts photos that pass through the image tower."""

    def __init__(self, model, monkeypatch):
        self.photos, forward = 0, model.vision_model.forward

        def counting(pixel_values, *args, **kwargs):
            self.photos += len(pixel_values)
            return forward(pixel_values, *args, **kwargs)

        monkeypatch.setattr(model.vision_model, "forward", counting)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 2e-2)])
def test_kept_states_give_equal_scores(
    search, build, folder, model, captions, tmp_path, monkeypatch, dtype, tolerance
):
    states = tmp_path / "states"
    plain = search()
    uri = build(folder, states=store_in(states, plain, dtype))
    gallery = IndexGallery(open_index(uri), states=states)
    pipe = search(gallery)
    counting = Counting(model, monkeypatch)
    results = pipe(captions, rerank=12, top_k=12)
    assert counting.photos == 0, "nothing is computed anew"
    expected = search(uri)(captions, rerank=12, top_k=12)
    assert counting.photos == 12, "each photo once, in whatever many queries it is a candidate"
    for row, other in zip(results, expected, strict=True):
        scores = {r["id"]: r["score"] for r in other}
        assert [r["score"] for r in row] == pytest.approx([scores[r["id"]] for r in row], rel=1e-3, abs=tolerance)


def test_states_are_kept_on_first_use(search, build, folder, photos, model, tmp_path, monkeypatch):
    place = tmp_path / "photos"
    shutil.copytree(folder, place)
    uri, states = build(place), tmp_path / "states"
    counting = Counting(model, monkeypatch)

    def ask(query="a dog", **options):
        before = counting.photos
        results = search(IndexGallery(open_index(uri), states=states))(query, rerank=5, **options)
        return results, counting.photos - before

    first, computed = ask()
    assert computed == 5
    again, computed = ask()
    assert computed == 0 and ids(again) == ids(first)
    assert all(computed <= 12 for computed in [ask("the sun")[1]])
    shutil.rmtree(place)  # states suffice, photos are not opened
    assert ids(ask()[0]) == ids(first) and ask()[1] == 0


def test_states_follow_content_and_not_ids(search, build, folder, photos, model, tmp_path, monkeypatch):
    place = tmp_path / "photos"
    shutil.copytree(folder, place)
    uri = build(place)
    pipe = search(IndexGallery(open_index(uri), states=tmp_path / "states"))
    pipe("a dog", rerank=12)
    photos[3].rotate(90).save(place / "00.png")
    items = gallery_items(place)
    index = open_index(uri)
    update_index(index, items, search(), batch_size=8)
    counting = Counting(model, monkeypatch)
    results = pipe("a dog", rerank=12, top_k=12)
    assert counting.photos == 1
    assert_same([results], [search(place)("a dog", rerank=12, top_k=12)], 2e-2)


def test_automatic_reranking_with_states(search, build, folder, photos, tmp_path):
    states, plain = tmp_path / "states", search()
    uri = build(folder, states=store_in(states, plain))
    pipe = search(IndexGallery(open_index(uri), states=states))
    assert pipe.gallery.has_states
    assert pipe("a dog", rerank="auto") == pipe("a dog", rerank=32)
    assert pipe(photos[0], rerank="auto")[0].keys() >= {"path", "score"} and "match" not in pipe(photos[0])[0]
    assert search(uri)("a dog", rerank="auto") == search(uri)("a dog")
    some = store_in(tmp_path / "some", plain)
    hashes = [row["hash"] for row in open_index(uri).scan(["hash"])][:10]
    some.put(hashes, torch.stack(store_in(states, plain).get(hashes)))
    some.close()
    assert not search(IndexGallery(open_index(uri), states=tmp_path / "some")).gallery.has_states


def test_states_of_another_image_tower_are_not_used(search, build, folder, build_model, tmp_path):
    states = tmp_path / "states"
    build(folder, states=store_in(states, search()))
    other = search(model=build_model(CCRkModel, seed=1))
    assert len(store_in(states, other)) == 0 and len(store_in(states, search())) == 12


def test_a_full_disk_does_not_stop_a_search(search, build, folder, tmp_path, monkeypatch, caplog):
    import os

    uri = build(folder)
    pipe = search(IndexGallery(open_index(uri), states=tmp_path / "states"))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    expected = search(uri)("a dog", rerank=5)
    assert_same([pipe("a dog", rerank=5)], [expected])
    assert "No space left" in caplog.text
    assert_same([pipe("the sun", rerank=5)], [search(uri)("the sun", rerank=5)])


def test_photos_without_files_need_states_or_a_loader(search, build, photos, tmp_path):
    import datasets

    dataset = datasets.Dataset.from_dict({"image": photos, "image_id": [f"p{i}" for i in range(12)]})
    dataset = dataset.cast_column("image", datasets.Image())
    uri = build(dataset)
    plain = search(uri)("a dog")
    with pytest.warns(UserWarning, match="not re-ranked.*cannot hand out 'p.*and 4 more"):
        assert search(uri)("a dog", rerank=5) == plain
    memory = search(dataset)("a dog", rerank=5)
    loader = IndexGallery(open_index(uri), load=lambda wanted: [photos[int(i[1:])] for i in wanted])
    assert_same([search(loader)("a dog", rerank=5)], [memory])


def test_where_states_lie():
    assert states_folder("lance://a/photos.lance/") == Path("a/photos.lance-states")
    assert states_folder("lance:///data/x") == Path("/data/x-states")
    assert states_folder("milvus://h:1/x") is None and states_folder("memory:x") is None
