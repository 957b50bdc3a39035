"""Reading photos with captions from JSON Lines."""

from __future__ import annotations

import json

import pytest

from ccrk.data.caption_files import read_captions


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
    assert dataset.skipped == {"caption empty": 1, "image file missing": 1, "image without captions": 1}


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
