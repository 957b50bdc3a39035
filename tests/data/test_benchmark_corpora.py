"""xFlickr&CO, Multi30K and WIT, in small files of their form and in the real ones where these are."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path

import pytest

from ccrk.data.corpora import read_corpus


def lines(path: Path, *records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def pairs(row) -> list[tuple[str, str]]:
    return [(caption["language"], caption["text"]) for caption in row["captions"]]


# --- xFlickr&CO ---------------------------------------------------------------------------------------------------

COCO = "COCO_val2014_000000060623.jpg"


@pytest.fixture
def xflickrco(tmp_path) -> Path:
    def record(name, *sentences):
        return {"sentences": list(sentences), "id": 1, "img_path": name}

    lines(tmp_path / "de" / "test.jsonl", record("1.jpg", "eins"), record(COCO, "zwei"), record("3.jpg", ""))
    lines(tmp_path / "en" / "test.jsonl", record(COCO, "two", "too"), record("1.jpg", " "), record("4.jpg", "four"))
    lines(tmp_path / "en" / "train_100.jsonl", record("5.jpg", "five"))
    touch(tmp_path, "photos/flickr30k-images/1.jpg", f"photos/val2014/{COCO}", "photos/3.jpg", "photos/5.jpg")
    return tmp_path


def test_xflickrco_is_joined_over_languages_by_image(xflickrco):
    dataset = read_corpus(xflickrco, split="test", images=xflickrco / "photos")
    assert {row["image_id"]: pairs(row) for row in dataset} == {
        "1": [("de", "eins")],
        "60623": [("de", "zwei"), ("en", "two"), ("en", "too")],
    }
    assert dataset[1]["image"] == str(xflickrco / "photos" / "val2014" / COCO)
    assert dataset.skipped == {"caption empty": 2, "image without captions": 1, "image file missing": 1}
    assert dataset.skipped.examples("caption empty") == ["3 (de)", "1 (en)"]


def test_one_language_and_one_file_of_xflickrco(xflickrco):
    photos = xflickrco / "photos"
    dataset = read_corpus(xflickrco, format="xflickrco", languages=["de"], split="test", images=photos)
    assert dataset.languages == ["de"] and dataset.skipped["file in a language not wanted"] == 1
    (row,) = read_corpus(xflickrco / "en" / "train_100.jsonl", images=photos)
    assert pairs(row) == [("en", "five")]
    lines(xflickrco / "annotations" / "train_ann.jsonl", {"sentences": ["six"], "id": "5", "img_path": "5.jpg"})
    with pytest.raises(ValueError, match="language= names it"):
        read_corpus(xflickrco / "annotations" / "train_ann.jsonl", images=photos)
    (row,) = read_corpus(xflickrco / "annotations" / "train_ann.jsonl", images=photos, language="en")
    assert pairs(row) == [("en", "six")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "several splits, and split= must name one: test, train_100"),
        ({"split": "dev"}, "has no split 'dev'; it has test, train_100"),
        ({"split": "test", "languages": ["en", "sw"]}, "no captions in sw; it has de, en"),
        ({"split": "test"}, "image file missing"),
        ({"split": "test", "columns": {}}, "the format 'xflickrco' has no option 'columns'; it has images, languages"),
    ],
)
def test_what_xflickrco_lacks(xflickrco, options, message):
    with pytest.raises(ValueError, match=message):
        read_corpus(xflickrco, images=xflickrco / "empty", **options)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sentences": ["x"]}, "test.jsonl, line 2 has no 'img_path'"),
        ({"img_path": "1.jpg", "sentences": "x"}, "test.jsonl, line 2 has no list of 'sentences'"),
    ],
)
def test_lines_that_are_not_xflickrco(tmp_path, record, message):
    lines(tmp_path / "en" / "test.jsonl", {"sentences": ["x"], "id": 1, "img_path": "1.jpg"}, record)
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path, check_images=False)


def test_the_real_xflickrco(shared):
    folder = shared / "data" / "xflickrco"
    dataset = read_corpus(folder, split="test", check_images=False)
    assert len(dataset) == 2000 and dataset.languages and len(dataset.languages) == 8
    assert dataset.skipped == {"caption empty": 2}
    languages = [len({caption["language"] for caption in row["captions"]}) for row in dataset]
    assert sorted(languages)[:3] == [7, 7, 8], "one caption is missing in German and one in Indonesian"
    assert sum("val2014" in row["image"] for row in dataset) == 1000
    few = read_corpus(folder, split="train_100", check_images=False)
    assert sum(len(row["captions"]) for row in few) == 700


# --- Multi30K -----------------------------------------------------------------------------------------------------


@pytest.fixture
def multi30k(tmp_path) -> Path:
    (tmp_path / "val.txt").write_text("1.jpg\n2.jpg\nCOCO_train2014_000000117071.jpg#367178\n")
    (tmp_path / "val.en.gz").write_bytes(gzip.compress(" one\ntwo\x85still two\n\n".encode()))
    (tmp_path / "val.de").write_text("eins\r\nzwei\r\ndrei\r\n", newline="")
    (tmp_path / "README.md").write_text("not captions")
    touch(tmp_path, "1.jpg", "flickr30k-images/2.jpg", "train2014/COCO_train2014_000000117071.jpg")
    return tmp_path


def test_multi30k_is_joined_by_line(multi30k):
    dataset = read_corpus(multi30k)
    assert {row["image_id"]: pairs(row) for row in dataset} == {
        "1": [("de", "eins"), ("en", "one")],
        "2": [("de", "zwei"), ("en", "two\x85still two")],
        "117071": [("de", "drei")],
    }
    assert dataset[2]["image"] == str(multi30k / "train2014" / "COCO_train2014_000000117071.jpg")
    assert dataset.skipped == {"caption empty": 1}


def test_five_captions_of_multi30k_and_chosen_languages(multi30k):
    for number in (1, 2):
        (multi30k / f"val.{number}.fr.gz").write_bytes(gzip.compress(f"un {number}\n\n\n".encode()))
    dataset = read_corpus(multi30k, languages=["fr", "en"], split="val")
    assert pairs(dataset[0]) == [("fr", "un 1"), ("fr", "un 2"), ("en", "one")]
    assert dataset.skipped["file in a language not wanted"] == 1


def test_files_that_are_not_multi30k(multi30k):
    (multi30k / "val.cs").write_text("jedna\ndva\n")
    with pytest.raises(ValueError, match=r"val.cs' has 2 lines, but '.*val.txt' names 3 images"):
        read_corpus(multi30k)
    (multi30k / "val.cs").unlink()
    (multi30k / "val.cs.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="val.cs.gz' is not gzip"):
        read_corpus(multi30k)
    with pytest.raises(ValueError, match="no captions of a split 'val'|holds no captions"):
        read_corpus(multi30k / "train2014", format="multi30k", split="val")


@pytest.mark.parametrize(
    ("split", "images", "languages"),
    [
        ("train", 29000, ["cs", "de", "en", "fr"]),
        ("test_2016_flickr", 1000, ["cs", "de", "en", "fr"]),
        ("test_2017_mscoco", 461, ["de", "en", "fr"]),
    ],
)
def test_the_real_multi30k(shared, split, images, languages):
    dataset = read_corpus(shared / "data" / "multi30k", split=split, check_images=False)
    assert len(dataset) == images and not dataset.skipped
    assert all(sorted(c["language"] for c in row["captions"]) == languages for row in dataset)


def test_captions_of_multi30k_belong_to_the_right_photos(shared):
    """The same photos, described once by the files of Multi30K and once beside the photos themselves."""
    beside = read_corpus(shared / "data" / "flickr8k_multi" / "val.jsonl", languages=["en", "de", "fr", "cs"])
    by_id = {row["image_id"]: row for row in beside}
    photos = shared / "data" / "flickr8k_multi" / "val"
    dataset = read_corpus(shared / "data" / "multi30k", split="val", images=photos)
    assert len(dataset) == len(by_id) == 242 and dataset.skipped == {"image file missing": 1014 - 242}
    for row in dataset:
        assert sorted(pairs(row)) == sorted(pairs(by_id[row["image_id"]]))
        assert row["image"] == by_id[row["image_id"]]["image"]


# --- WIT ----------------------------------------------------------------------------------------------------------

URL = "https://upload.example.org/{}"


@pytest.fixture
def wit(tmp_path) -> Path:
    def record(name, text, language, **more):
        return {
            "image_url": URL.format(name),
            "caption_reference_description": text,
            "language": language,
            "page_url": f"https://{language}.example.org",
            **more,
        }

    embedded = base64.b64encode(b"embedded").decode()
    lines(
        tmp_path / "test_en.jsonl",
        record("a.jpg", "one", "en"),
        record("a.jpg", "uno", "en", wit_ix="1"),
        record("b%C3%A9.jpg", "two", "en"),
        record("c", "three", "en", image_content=embedded),
        record("d.svg", None, "en"),
        record("e.jpg", "five", "en"),
        record("f", "six", "en"),
    )
    lines(tmp_path / "test_ja.jsonl", record("a.jpg", "一", "ja"), record("c", "三", "ja"))
    lines(tmp_path / "train_en.jsonl", record("a.jpg", "one", "en"))
    md5 = hashlib.md5(URL.format("a.jpg").encode(), usedforsecurity=False).hexdigest()
    sha = hashlib.sha256(URL.format("d.svg").encode()).hexdigest()
    touch(tmp_path / "photos", f"{md5}.png", "bé.jpg", f"{sha}.jpg", "named.jpg")
    return tmp_path


def test_wit_is_joined_by_url(wit):
    dataset = read_corpus(wit, split="test", images=wit / "photos", names={URL.format("f"): "named.jpg"})
    found = {row["image_id"].rsplit("/", 1)[1]: pairs(row) for row in dataset}
    assert found == {
        "a.jpg": [("en", "one"), ("en", "uno"), ("ja", "一")],
        "b%C3%A9.jpg": [("en", "two")],
        "c": [("en", "three"), ("ja", "三")],
        "f": [("en", "six")],
    }
    images = [row["image"] for row in dataset]
    assert Path(images[0]).suffix == ".png" and images[1] == str(wit / "photos" / "bé.jpg")
    assert images[2].read() == b"embedded" and images[3] == str(wit / "photos" / "named.jpg")
    assert dataset.skipped == {"caption empty": 1, "image without captions": 1, "image file missing": 1}


def test_names_of_wit_may_stand_in_a_file(wit):
    (wit / "names.json").write_text(json.dumps({URL.format("e.jpg"): "named.jpg"}))
    dataset = read_corpus(wit, split="test", images=wit / "photos", names=wit / "names.json", languages=["en"])
    assert [row["image"] for row in dataset][-1] == str(wit / "photos" / "named.jpg")
    (wit / "names.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no object of URL -> file name"):
        read_corpus(wit, split="test", names=wit / "names.json")


def test_one_file_of_wit(wit):
    dataset = read_corpus(wit / "test_ja.jsonl", images=wit / "photos", languages=["ja"])
    assert [pairs(row) for row in dataset] == [[("ja", "一")]]
    lines(wit / "wrong.jsonl", {"image_url": "x"})
    with pytest.raises(ValueError, match="wrong.jsonl, line 1 has no 'caption_reference_description'"):
        read_corpus(wit / "wrong.jsonl", format="wit")


def test_the_real_wit(shared):
    dataset = read_corpus(shared / "data" / "wit", check_images=False)
    assert len(dataset) == 3030 and sorted(dataset.languages) == ["ar", "en", "id", "ja", "tr"]
    assert dataset.skipped == {"caption empty": 1, "image without captions": 1}
    assert sum(len(row["captions"]) for row in dataset) == 890 + 1000 + 901 + 1000 + 721 - 1
    assert max(len({c["language"] for c in row["captions"]}) for row in dataset) > 2
