"""Every kind of gallery, what is skipped in it, and what is said about one that is none."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from ccrk.pipelines.ccr_retrieval import RetrievalIndex


def ids(results: list[dict]) -> list:
    return [result["id"] for result in results]


@pytest.mark.parametrize("kind", [str, Path])
def test_folder(search, photos, folder, kind):
    pipe = search(kind(folder))
    assert len(pipe.gallery) == 12 and pipe.gallery.modality == "image" and pipe.gallery.skipped == []
    names = [entry["id"] for entry in pipe.gallery.entries(range(12))]
    assert names == sorted(names, key=lambda name: Path(name)) and "more/02.png" in names
    expected = search(photos)("a dog", rerank=4)
    results = pipe("a dog", rerank=4)
    assert [int(Path(r["path"]).stem) for r in results] == ids(expected)
    assert [r["score"] for r in results] == pytest.approx([r["score"] for r in expected], abs=2e-5)
    assert all(Path(r["path"]) == folder / r["id"] for r in results)


def test_broken_files_are_skipped_and_named(search, folder, photos, tmp_path):
    for number in range(3):
        photos[number].save(tmp_path / f"{number}.JPG")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes((folder / "00.png").read_bytes()[:60])
    (tmp_path / "text.jpeg").write_text("no photo")
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.warns(
        UserWarning, match=r"^3 of the gallery could not be read: .*cut\.png.*empty\.png.*0 bytes"
    ) as seen:
        pipe = search(tmp_path)
    assert len([w for w in seen if "could not be read" in str(w.message)]) == 1
    assert len(pipe.gallery) == 3
    assert [Path(name).name for name, _ in pipe.gallery.skipped] == ["cut.png", "empty.png", "text.jpeg"]
    assert all(cause for _, cause in pipe.gallery.skipped)
    # rows after a gap still belong to their own photo
    assert ids(pipe(photos[2], top_k=1)) == ["2.JPG"]
    assert len(pipe("a dog", rerank=3)) == 3


def test_folders_that_cannot_be_searched(search, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no gallery folder '.*nowhere'"):
        search(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no photos: none of its 0 files"):
        search(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        search(str(tmp_path / "notes.txt"))
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"nothing in the gallery can be read\. 1 of.*a\.png.*0 bytes"):
        search(tmp_path)


def test_list_of_photos_and_paths(search, photos, folder):
    gallery = [photos[0], folder / "01.png", photos[4]]
    pipe = search(gallery)
    entries = pipe.gallery.entries([0, 1, 2])
    assert entries == [{"id": 0}, {"id": str(folder / "01.png"), "path": str(folder / "01.png")}, {"id": 2}]
    assert ids(pipe(photos[4], top_k=1)) == [2]
    with pytest.warns(UserWarning, match="there is no image file"):
        pipe = search([*gallery, folder / "nowhere.png", photos[5]])
    assert ids(pipe(photos[5], top_k=1)) == [4]
    # what re-ranking reads after a gap is the row's own photo
    kept = search([*gallery, photos[5]])
    assert [r["match"] for r in pipe("a dog", rerank=4)] == [r["match"] for r in kept("a dog", rerank=4)]


def test_captions(search, photos, captions):
    with pytest.warns(UserWarning, match="1 of the gallery could not be read: caption 8"):
        pipe = search([*captions, " ", "a red dog"])
    assert pipe.gallery.modality == "text" and len(pipe.gallery) == 9
    assert pipe("a red dog", top_k=1)[0]["text"] == "a red dog" and ids(pipe("a red dog", top_k=1)) == [9]
    assert {r["text"] for r in pipe(photos[0], top_k=9)} == {*captions, "a red dog"}


def test_dataset(search, photos):
    rows = {
        "image": photos,
        "image_id": [f"photo-{i}" for i in range(12)],
        "year": list(range(2000, 2012)),
        "place": ["here", None] * 6,
        "size": [0.5, float("nan")] * 6,
        "tags": [["a"]] * 12,
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    pipe = search(dataset)
    assert pipe.gallery.entries([0, 1]) == [
        {"id": "photo-0", "year": 2000, "place": "here", "size": 0.5},
        {"id": "photo-1", "year": 2001, "place": None, "size": None},
    ]
    expected = search(photos)("a dog", rerank=4)
    assert ids(pipe("a dog", rerank=4)) == [f"photo-{i}" for i in ids(expected)]
    raw = dataset.cast_column("image", datasets.Image(decode=False)).remove_columns("image_id").with_format("numpy")
    assert ids(search(raw)("a dog", rerank=4)) == ids(expected)


def test_dataset_with_broken_and_missing_photos(search, photos, tmp_path):
    (tmp_path / "broken.png").write_text("no photo")
    paths = []
    for number in range(4):
        photos[number].save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    paths[1], paths[2] = str(tmp_path / "broken.png"), None
    dataset = datasets.Dataset.from_dict({"image": paths, "id": [10, 11, 12, 13]}).cast_column(
        "image", datasets.Image()
    )
    with pytest.warns(UserWarning, match="2 of the gallery could not be read: row 1: .*; row 2: there is no image"):
        pipe = search(dataset)
    assert ids(pipe(photos[3], top_k=1)) == [13] and len(pipe.gallery) == 2


def test_datasets_that_cannot_be_searched(search, photos):
    dataset = datasets.Dataset.from_dict({"photo": [1]})
    with pytest.raises(ValueError, match="no column 'image' .its columns: photo"):
        search(dataset)
    with pytest.raises(ValueError, match="a column 'score'"):
        search(datasets.Dataset.from_dict({"image": ["a"], "score": [1]}))
    with pytest.raises(TypeError, match="streaming"):
        search(datasets.Dataset.from_dict({"image": ["a"]}).to_iterable_dataset())


@pytest.mark.parametrize(
    ("gallery", "error", "words"),
    [
        ([], ValueError, "empty list"),
        (3, TypeError, "of type int; it can be a folder"),
        ({"a": 1}, TypeError, "of type dict"),
        (["a", 3], TypeError, "item 1 of the gallery is of type int, in a list of captions"),
        ([Path("a.png"), "b.png"], TypeError, "item 1 .* type str, in a list of photos.*a path as a str is a caption"),
        (["  "], ValueError, "nothing in the gallery can be read"),
        ("lance://photos.db", FileNotFoundError, "no index in '.*photos.db'"),
        ("memory:photos", FileNotFoundError, "no index 'memory:photos' in this process"),
        ("memory://photos", FileNotFoundError, "no index 'memory://photos' in this process"),
        (
            "s3://bucket/photos",
            ValueError,
            "no back end for 's3://' .*lance://, memory://, milvus://.*a folder of photos",
        ),
    ],
)
def test_what_is_no_gallery(search, gallery, error, words):
    with pytest.raises(error, match=words):
        search(gallery)


def test_gallery_is_missing_given_and_replaced(search, photos, captions):
    pipe = search()
    with pytest.raises(ValueError, match="no gallery to search: pass gallery="):
        pipe("a dog")
    first = pipe("a dog", gallery=photos[:3])
    assert len(first) == 3 and pipe("a dog") == first
    before = pipe.gallery
    with pytest.raises(ValueError, match="empty list"):
        pipe("a dog", gallery=[])
    assert pipe.gallery is before
    assert {r["text"] for r in pipe(photos[0], gallery=captions, top_k=50)} == set(captions)
    assert search(pipe.gallery)(photos[0]) == pipe(photos[0])


class OtherIndex:
    """An index that knows vectors alone, by names; written apart from the one in memory."""

    def __init__(self, names: list[str], vectors: torch.Tensor):
        self.names, self.vectors = names, vectors.numpy()

    def search(self, vectors: torch.Tensor, k: int) -> list[tuple[list[str], list[float]]]:
        found = []
        for scores in vectors.numpy() @ self.vectors.T:
            order = np.argsort(-scores, kind="stable")[:k]
            found.append(([self.names[i] for i in order], scores[order].tolist()))
        return found


class FullIndex(OtherIndex):
    modality = "image"

    def __init__(self, names, vectors, photos):
        super().__init__(names, vectors)
        self.photos = dict(zip(names, photos, strict=True))

    def load(self, names):
        return [self.photos[name] for name in names]

    def entries(self, names):
        return [{"id": name, "place": name.upper()} for name in names]


def test_any_index_is_a_gallery(search, photos, captions):
    memory = search(photos)
    names = [f"p{i}" for i in range(12)]
    pipe = search(OtherIndex(names, memory.gallery.vectors))
    assert isinstance(pipe.gallery, RetrievalIndex) and isinstance(memory.gallery, RetrievalIndex)
    expected = memory(captions, rerank=5)
    plain = memory(captions)
    assert [ids(row) for row in pipe(captions)] == [[f"p{i}" for i in ids(row)] for row in plain]
    assert list(pipe("a dog")[0]) == ["id", "score"]
    with pytest.raises(ValueError, match="OtherIndex cannot give them: it lacks `modality` or `load"):
        pipe("a dog", rerank=3)
    full = search(FullIndex(names, memory.gallery.vectors, photos))
    results = full(captions, rerank=5)
    assert [ids(row) for row in results] == [[f"p{i}" for i in ids(row)] for row in expected]
    assert results[0][0]["place"] == results[0][0]["id"].upper()


def test_vectors_of_another_length_are_refused(search, photos):
    with pytest.raises(ValueError, match="for a gallery of 12-dimensional vectors"):
        search(photos).gallery.search(torch.zeros(1, 7), 3)


def test_index_without_the_package_says_what_to_install(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "ccrk.pipelines.galleries", None)
    with pytest.raises(ImportError, match="lance://x.*pip install ccrk"):
        search("lance://x")


def test_progress_bar_only_for_large_galleries_on_a_terminal(search, photos, monkeypatch, capsys):
    search(photos * 6)
    assert "gallery" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    search(photos)
    assert "gallery" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search(photos * 6)
    assert "72/72" in capsys.readouterr().err
