"""WebDataset tars: patterns, captions in texts and in JSON, images by their place in the tar."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from ccrk.data.corpora import read_corpus
from ccrk.data.names import list_files


def pack(path: Path, files: dict[str, bytes | str | dict], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as tar:
        for name, data in files.items():
            data = json.dumps(data, ensure_ascii=False) if isinstance(data, dict) else data
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def found(dataset) -> dict[str, list[tuple[str, str]]]:
    return {row["image_id"]: [(c["language"], c["text"]) for c in row["captions"]] for row in dataset}


FILES = {
    "a/1.jpg": b"photo 1",
    "a/1.en.txt": "one\n",
    "a/1.zh.txt": "一",
    "a/2.json": {"captions": {"de": ["zwei", ""]}, "id": 22, "license": "CC0"},
    "a/2.PNG": b"photo 2",
    "a/3.webp": b"photo 3",
    "a/3.txt": "three",
    "a/3.json": {"caption": "three, said again", "url": "https://example.org"},
    "a/4.txt": "no photo",
    "a/5.jpg": b"photo 5",
    "a/5.json": "{cut off",
    "a/6.jpg": b"photo 6",
    "a/7.jpeg": b"photo 7",
    "a/7.json": {"caption": [{"language": "fr", "text": "sept", "weight": 2}]},
    "a/7.cls": "3",
    "a/.hidden.jpg": b"x",
}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_and_captions_of_the_same_name(tmp_path, kind):
    path = pack(tmp_path / "t.tar", {f"{'long' * 10}/" * 3 + "8.jpg": b"photo 8", **FILES}, format=kind)
    dataset = read_corpus(path, language="en")
    assert found(dataset) == {
        "a/1": [("en", "one"), ("zh", "一")],
        "22": [("de", "zwei")],
        "a/3": [("en", "three")],
        "a/7": [("fr", "sept")],
    }
    assert [row["image"].read() for row in dataset] == [b"photo 1", b"photo 2", b"photo 3", b"photo 7"]
    assert dataset[1]["license"] == "CC0" and dataset[2]["url"] == "https://example.org"
    assert dataset[3]["captions"][0]["weight"] == 2.0
    assert dataset.skipped == {
        "caption empty": 1,
        "record names no image": 1,
        "record is not JSON": 1,
        "image without captions": 2,
        "file in a tar that is neither image nor captions": 1,
    }
    assert dataset.skipped.examples("record names no image") == [f"{path}, 'a/4'"]


def test_only_headers_and_texts_are_read(tmp_path, monkeypatch):
    path = pack(tmp_path / "t.tar", {"1.jpg": bytes(4_000_000), "1.en.txt": "one", "2.jpg": b"2", "2.en.txt": "two"})
    taken = []
    kind = tarfile.TarFile.fileobject
    counting = staticmethod(lambda tar, member: (taken.append(member.name), kind(tar, member))[1])
    monkeypatch.setattr(tarfile.TarFile, "fileobject", counting)
    assert len(read_corpus(path)) == 2
    assert taken == ["1.en.txt", "2.en.txt"]


def test_a_caption_without_language_is_an_error_at_once(tmp_path):
    path = pack(tmp_path / "t.tar", {"1.jpg": b"1", "1.txt": "one"})
    with pytest.raises(ValueError, match=r"t.tar, '1' has a caption without its language; language= names it"):
        read_corpus(path)
    later = pack(tmp_path / "later.tar", {"0.jpg": b"0", "0.en.txt": "zero", "1.jpg": b"1", "1.txt": "one"})
    assert read_corpus(later).skipped == {"caption without language": 1, "image without captions": 1}


def test_a_record_of_another_form(tmp_path):
    good, wrong = {"0.jpg": b"0", "0.en.txt": "zero"}, {"1.jpg": b"1", "1.json": {"captions": [1, 2]}}
    assert read_corpus(pack(tmp_path / "t.tar", {**good, **wrong})).skipped == {"record is not of its format": 1}
    with pytest.raises(ValueError, match="'1': captions are neither"):
        read_corpus(pack(tmp_path / "t.tar", {**wrong, **good}))
    with pytest.raises(ValueError, match="'1' is not JSON in its file .json"):
        read_corpus(pack(tmp_path / "t.tar", {"1.jpg": b"1", "1.json": "[]", **good}))


def test_files_that_are_no_uncompressed_tars(tmp_path):
    pack(tmp_path / "packed.tar", FILES, mode="w:gz")
    (tmp_path / "text.tar").write_text("not a tar" * 200)
    whole = pack(tmp_path / "whole.tar", {"1.jpg": bytes(3000), "1.en.txt": "one", "2.jpg": bytes(3000)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 512 + 3072 + 1024 + 512 + 100])
    for name in ("packed", "text", "cut"):
        with pytest.raises(ValueError, match=f"{name}.tar' is not an uncompressed tar, or is cut off"):
            read_corpus(tmp_path / f"{name}.tar", format="webdataset", language="en")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train-{000..002}.tar", ["train-000", "train-001", "train-002"]),
        ("train-{001..001}.tar", ["train-001"]),
        ("{val,train-000}.tar", ["val", "train-000"]),
        ("{val,train-00{1..2}}.tar", ["val", "train-001", "train-002"]),
        ("train-*.tar", ["train-000", "train-001", "train-002"]),
        ("*-00?.tar", ["train-000", "train-001", "train-002"]),
        ("", ["train-000", "train-001", "train-002", "val"]),
    ],
)
def test_patterns(tmp_path, pattern, names):
    for name in ("train-000", "train-001", "train-002", "val"):
        pack(tmp_path / f"{name}.tar", {f"{name}.jpg": name, f"{name}.en.txt": "x"})
    (tmp_path / "sizes.json").write_text("{}")
    files = [str(tmp_path / f"{name}.tar") for name in names]
    assert sorted(list_files(tmp_path / pattern, ".tar")) == sorted(files)
    assert sorted(found(read_corpus(tmp_path / pattern))) == sorted(names)
    assert list_files([tmp_path / "val.tar", files[0]], ".tar") == [str(tmp_path / "val.tar"), files[0]]


def test_patterns_that_name_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"a-01.tar' names no file"):
        pack(tmp_path / "a-00.tar", {})
        list_files(tmp_path / "a-{00..01}.tar")
    with pytest.raises(ValueError, match="go down"):
        list_files("a-{3..1}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="names no file ending in .tar"):
        list_files(tmp_path / "empty", ".tar")
