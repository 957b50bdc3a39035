"""Reading photos with captions from JSON Lines."""

from __future__ import annotations

import base64
import json

import pytest

from ccrk.data.caption_files import iter_captions, read_captions, read_pretraining
from ccrk.data.report import SkipReport


def write(tmp_path, *records):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return path


def test_both_forms_of_captions(tmp_path):
    path = write(
        tmp_path,
        {"image": "a.jpg", "id": 7, "captions": {"en": ["one", "two"], "zh": "一"}},
        {"image_path": "b.jpg", "caption": [{"language": "de", "text": "eins"}]},
    )
    dataset = read_captions(path)
    assert [row["image_id"] for row in dataset] == ["7", "b.jpg"]
    assert [(c["language"], c["text"]) for c in dataset[0]["captions"]] == [("en", "one"), ("en", "two"), ("zh", "一")]
    assert dataset.languages[0] == "en"
    assert "2 images" in dataset.describe()


def test_what_is_left_out_is_counted(tmp_path):
    path = write(
        tmp_path,
        {"image": "a.jpg", "captions": {"en": ["", "one"], "fr": ["un"]}},
        {"image": "missing.jpg", "captions": {"en": "x"}},
        {"image": "b.jpg", "captions": {"fr": "deux"}},
    )
    dataset = read_captions(path, languages=["en"])
    assert len(dataset) == 1
    assert dataset.skipped == {
        "caption empty": 1,
        "image file missing": 1,
        "image without captions": 1,
        "language not wanted": 2,
    }
    assert dataset.skipped.examples("image file missing") == ["missing.jpg"]
    assert dataset.describe() == (
        "1 images, captions: en 1; left out: 1 x caption empty, 1 x image file missing, 1 x image without captions, "
        "2 x language not wanted"
    )


def test_extra_captions_by_name(tmp_path):
    path = write(tmp_path, {"image": "a.jpg", "captions": {"en": "one"}, "extra_captions": {"zh_human": ["一", "二"]}})
    captions = read_captions(path, sources=["zh=zh_human"])[0]["captions"]
    assert [(c["language"], c["source"]) for c in captions] == [
        ("en", "captions"),
        ("zh", "zh_human"),
        ("zh", "zh_human"),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{broken", "line 1 is not JSON"),
        ("[1]", "line 1 is not an object"),
        ({"captions": {"en": "x"}}, "names no image"),
        ({"image": "a.jpg", "captions": ["just text"]}, "captions are neither"),
        ({"image": "a.jpg", "captions": {}}, "holds no image with a caption"),
    ],
)
def test_a_bad_file_says_where(tmp_path, record, message):
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path, record))


def test_a_malformed_source(tmp_path):
    with pytest.raises(ValueError, match="LANGUAGE=NAME"):
        read_captions(write(tmp_path, {"image": "a.jpg", "captions": {"en": "x"}}), sources=["zh_human"])


def test_what_else_a_record_has_passes_through(tmp_path):
    captions = [{"language": "en", "text": "one", "source": "people", "weight": 2}, {"language": "de", "text": "eins"}]
    record = {"image": "a.jpg", "image_id": 7, "captions": captions, "license": "CC0", "epoch": 3, "row": 1}
    (row,) = read_captions(write(tmp_path, record))
    assert row == {
        "image": str(tmp_path / "a.jpg"),
        "image_id": "7",
        "captions": [
            {"language": "en", "text": "one", "source": "people", "weight": 2.0},
            {"language": "de", "text": "eins", "source": "captions"},
        ],
        "license": "CC0",
    }


@pytest.mark.parametrize("weight", [-1, "much", float("nan"), float("inf"), True])
def test_a_weight_is_a_number(tmp_path, weight):
    captions = [{"language": "en", "text": "x", "weight": weight}]
    with pytest.raises(ValueError, match="line 1: the weight of a caption is"):
        read_captions(write(tmp_path, {"image": "a.jpg", "captions": captions}))


@pytest.mark.parametrize("name", ["../a.jpg", "photos/../../a.jpg", "{absolute}"])
def test_paths_that_leave_the_image_folder_are_refused(tmp_path, name):
    name = name.format(absolute=tmp_path / "a.jpg")
    (tmp_path / "photos").mkdir()
    path = write(tmp_path, {"image": name, "captions": {"en": "x"}})
    with pytest.raises(ValueError, match="1 x image path leaves the image folder .such as .*a.jpg; images= names"):
        read_captions(path, images=tmp_path / "photos")
    if name.startswith("/"):
        assert read_captions(path)[0]["image"] == str(tmp_path / "a.jpg"), "absolute, but within the file's folder"


def test_images_need_not_be_looked_for(tmp_path):
    path = write(tmp_path, {"image": "missing.jpg", "captions": {"en": "x"}})
    assert read_captions(path, check_images=False)[0]["image"] == str(tmp_path / "missing.jpg")


def test_without_strictness_only_the_first_line_must_be_a_record(tmp_path):
    good = {"image": "a.jpg", "captions": {"en": "x"}}
    report = SkipReport()
    path = write(tmp_path, good, "{cut off", "", {"captions": {}}, good)
    assert len(list(iter_captions(path, report, strict=False))) == 2
    assert report == {"record is not JSON": 1, "record is not of its format": 1}
    assert report.examples("record is not JSON") == [f"{path}, line 2"]
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        list(iter_captions(write(tmp_path, "{cut off", good), SkipReport(), strict=False))


# --- the authors' pretraining data --------------------------------------------------------------------------------


def test_pretraining_files_with_paths_and_with_base64(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"a photo")
    folder = tmp_path / "data"
    folder.mkdir()
    embedded = base64.b64encode(bytes(range(256)) * 5).decode()
    records = [
        {"caption": {"de": "ein Foto", "en": "a photo"}, "image_path": "photo.jpg"},
        {"caption": {"de": ""}, "image_path": "photo.jpg", "id": 5},
        {"caption": {"en": "x"}, "image_path": "gone.jpg"},
    ]
    (folder / "part-1").write_text("\n".join([*map(json.dumps, records), "{cut off"]))
    # the size of a line in bytes is not its length in characters
    records = [{"caption": {"zh": "图"}, "image": "?"}, {"caption": {"zh": "照片"}, "image": embedded}]
    lines = ["", *(json.dumps(record, ensure_ascii=False) for record in records)]
    (folder / "part-2").write_text("\n".join(lines), encoding="utf-8")
    (folder / ".hidden").write_text("no JSON")
    dataset = read_pretraining(folder, images=tmp_path)
    assert [row["image_id"] for row in dataset] == ["photo.jpg", "part-2:2", "part-2:3"]
    assert dataset[0]["image"] == str(tmp_path / "photo.jpg")
    assert dataset[0]["captions"] == [{"language": "de", "text": "ein Foto"}, {"language": "en", "text": "a photo"}]
    assert dataset[2]["image"].read() == bytes(range(256)) * 5
    with pytest.raises(ValueError, match="not base64"):
        dataset[1]["image"].read()
    assert dataset.skipped == {
        "caption empty": 1,
        "image without captions": 1,
        "record is not JSON": 1,
        "image file missing": 1,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x", "part, line 1 is not JSON"),
        ('{"caption": "just text", "image_path": "a"}', "part, line 1 has no 'caption' with language -> text"),
        ('{"caption": {"en": "x"}, "image": ""}', "part, line 1 names no image"),
    ],
)
def test_a_file_that_is_not_pretraining_data(tmp_path, line, message):
    (tmp_path / "part").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_pretraining(tmp_path)
