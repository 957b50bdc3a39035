"""Shards: computed once, whole or not there, the same whoever computes them, and an index made of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ccrk import CCRkModel
from ccrk.pipelines import embedding, shards
from ccrk.pipelines.embedding import EmbeddingJob, SliceEmbedder, embed_corpus, embed_local
from ccrk.pipelines.gallery_sources import gallery_items
from ccrk.pipelines.gallery_update import open_gallery_index, update_index
from ccrk.pipelines.indexes import drop_index
from ccrk.pipelines.shard_index import index_shards
from ccrk.pipelines.shards import Corpus, finished_shard, read_shard, shard_path, shard_rows


@pytest.fixture
def photos_folder(folder, tmp_path) -> Path:
    """The photos of the tests, to be changed, and one that is none."""
    shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "photos" / "05b.png").write_bytes(b"no photo")
    return tmp_path / "photos"


@pytest.fixture
def texts_file(captions, tmp_path) -> Path:
    file = tmp_path / "captions.txt"
    file.write_text("\n".join([*captions, "a dog and a cat and " * 4, "\x01\x02"]), encoding="utf-8")
    return file


@pytest.fixture
def embed(search, tmp_path):
    """Embeds a source: `embed(source, size)` gives what the folder holds and the reports."""
    usual = search()

    def run(source, size=4, to="shards", done=lambda report: None, pipe=usual, **options):
        items = gallery_items(source)
        job = EmbeddingJob(str(tmp_path / to), items.modality, dict(items.columns), 3, **options)
        embedder = SliceEmbedder(job, pipe)
        return embed_corpus(items, job, embedder.fingerprint, size, lambda parts: embed_local(parts, embedder, done))

    return run


def rows_of(folder, corpus) -> dict[str, tuple[np.ndarray, dict]]:
    found = {}
    for vectors, rows in shard_rows(Path(folder), corpus):
        found |= {row.pop("id"): (vector, row) for vector, row in zip(vectors, rows, strict=True)}
    return found


def computed(reports) -> int:
    return sum(report.computed for report in reports)


def test_shards_hold_what_the_pipeline_embeds(embed, photos_folder, search, tmp_path):
    corpus, reports = embed(photos_folder)
    assert [report.rows for report in reports] == [4, 3, 4, 1] and computed(reports) == 4
    assert corpus == Corpus.read(tmp_path / "shards") and corpus.rows == 12
    assert [name for name, _ in corpus.skipped] == ["05b.png"] and "not an image" in corpus.skipped[0][1]
    found = rows_of(tmp_path / "shards", corpus)
    gallery = search(photos_folder).gallery
    assert list(found) == sorted(entry["id"] for entry in gallery.entries(range(12)))
    for row, entry in enumerate(gallery.entries(range(12))):
        vector, known = found[entry["id"]]
        assert np.abs(vector - gallery.vectors[row].numpy()).max() < 1e-6
        assert known["path"] == str(photos_folder / entry["id"]) and known["width"] > 0 and len(known["hash"]) == 32


def test_a_second_run_computes_nothing_and_a_changed_photo_its_own_shard(embed, photos_folder, photos, tmp_path):
    corpus, _ = embed(photos_folder)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.parquet")}
    again, reports = embed(photos_folder)
    assert again == corpus and computed(reports) == 0
    assert files == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.parquet")}
    os.utime(photos_folder / "00.png")  # touched, and the same
    assert computed(embed(photos_folder)[1]) == 0
    photos[3].rotate(90).save(photos_folder / "00.png")
    changed, reports = embed(photos_folder)
    assert [report.computed for report in reports] == [True, False, False, False]
    assert changed.shards[1:] == corpus.shards[1:] and changed.shards[0] != corpus.shards[0]


def test_another_model_or_precision_has_other_shards(embed, build_model, search, texts_file):
    first, _ = embed(texts_file)
    for options in ({"pipe": search(model=build_model(CCRkModel, seed=1))}, {"bf16": True}):
        corpus, reports = embed(texts_file, **options)
        assert computed(reports) == len(reports) and not set(corpus.shards) & set(first.shards)


def test_texts_are_sorted_by_length_and_keep_their_ids(embed, texts_file, search, tmp_path):
    corpus, _ = embed(texts_file, size=100)
    assert len(corpus.skipped) == 1 and "empty" in corpus.skipped[0][1]
    pipe = search()
    for vector, row in rows_of(tmp_path / "shards", corpus).values():
        expected, _ = pipe.encode("text", [row["text"]])
        assert np.abs(vector - expected[0].numpy()).max() < 2e-6


def test_a_run_that_is_cut_off_goes_on(embed, texts_file, tmp_path):
    class Cut(Exception):
        pass

    def cut(report):
        if len(list((tmp_path / "shards").glob("*.parquet"))) == 2:
            raise Cut

    with pytest.raises(Cut):
        embed(texts_file, size=2, done=cut)
    with pytest.raises(FileNotFoundError, match="run ccrk embed"):
        Corpus.read(tmp_path / "shards")
    corpus, reports = embed(texts_file, size=2)
    assert [report.computed for report in reports] == [False, False, True, True, True]
    whole, _ = embed(texts_file, size=2, to="at-once")
    assert whole == corpus
    for name in corpus.shards:
        same = [shard_path(tmp_path / folder, name).read_bytes() for folder in ("shards", "at-once")]
        assert same[0] == same[1]


def test_a_crash_while_writing_leaves_nothing(embed, texts_file, tmp_path, monkeypatch):
    def crash(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(shards.os, "replace", crash)
        embed(texts_file)
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_broken_shard_is_not_read_and_a_torn_one_is_computed_again(embed, texts_file, tmp_path):
    corpus, _ = embed(texts_file)
    path = shard_path(tmp_path / "shards", corpus.shards[0])
    good = path.read_bytes()
    vectors, _ = read_shard(path)
    place = good.index(vectors[1].tobytes())
    path.write_bytes(good[:place] + b"\0\0\0\1" + good[place + 4 :])
    with pytest.raises(OSError, match="broken.*delete it and run ccrk embed again"):
        read_shard(path)
    path.write_bytes(good[:-100])
    assert finished_shard(path) is None
    assert computed(embed(texts_file)[1]) == 1 and path.read_bytes() == good


def test_a_photo_that_changes_while_it_is_read_is_for_the_next_run(embed, photos_folder, photos, monkeypatch):
    target, count = photos_folder / "00.png", [0]
    real = embedding.GalleryItem.open

    def opening(self, processor):
        found = real(self, processor)
        if self.content == target and count[0] == 0:
            count[0] = 1
            photos[5].rotate(90).save(target)
        return found

    monkeypatch.setattr(embedding.GalleryItem, "open", opening)
    corpus, _ = embed(photos_folder)
    assert "it was changed while it was read" in dict(corpus.skipped)["00.png"]
    corpus, reports = embed(photos_folder)
    assert computed(reports) == 1 and "00.png" not in dict(corpus.skipped)


@pytest.mark.parametrize("scheme", ["memory", "lance"])
def test_an_index_of_shards_is_that_of_an_update(embed, photos_folder, photos, search, tmp_path, scheme):
    uri = "memory:of-shards" if scheme == "memory" else f"lance://{tmp_path}/x.lance"
    embed(photos_folder)
    index, written = index_shards(tmp_path / "shards", uri)
    assert (written, index.count()) == (12, 12)
    assert index_shards(tmp_path / "shards", uri)[1] == 0
    items, pipe = gallery_items(photos_folder), search()
    report = update_index(index, items, pipe)
    # times of files are trusted once they are two seconds old, and written then
    assert (report.unchanged + report.retold, report.embedded, report.deleted) == (12, 0, 0)
    fresh = open_gallery_index("memory:afresh", index.fingerprint, items)
    update_index(fresh, items, pipe)
    names = [name for name in ("vector", *index.columns) if name != "changed"]
    ours, theirs = ({row["id"]: row for row in one.scan(names)} for one in (index, fresh))
    assert ours.keys() == theirs.keys()
    for identity, row in ours.items():
        apart = torch.as_tensor(row.pop("vector")) - torch.as_tensor(theirs[identity].pop("vector"))
        assert apart.abs().max() < 1e-6 and row == theirs[identity]
    photos[3].rotate(90).save(photos_folder / "00.png")
    embed(photos_folder)
    assert index_shards(tmp_path / "shards", uri)[1] == 1
    index.close()
    for name in ("memory:afresh", uri):
        drop_index(name)


def test_an_index_of_another_model_is_refused(embed, texts_file, tmp_path, build_model, search):
    embed(texts_file)
    items, other = gallery_items(texts_file), search(model=build_model(CCRkModel, seed=3))
    index = open_gallery_index("memory:other", embedding.embedding_fingerprint(other.model, other.processor), items)
    with pytest.raises(ValueError, match="cannot be compared"):
        index_shards(tmp_path / "shards", "memory:other")
    assert index.count() == 0
    drop_index("memory:other")


@pytest.mark.parametrize("text", ["{", '{"version": 2}', '{"version": 1, "shards": []}', "[]"])
def test_a_description_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "corpus.json").write_text(text)
    with pytest.raises(ValueError, match="no description of embeddings"):
        Corpus.read(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 31, "A" * 32, "/" + "a" * 31])
def test_a_shard_is_never_looked_for_elsewhere(tmp_path, name):
    with pytest.raises(ValueError, match="no name of a shard"):
        shard_path(tmp_path, name)
