"""Captions of COCO's photos in the forms of four corpora, and all of them as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ccrk.data.corpora import read_corpus
from ccrk.data.rows import join_corpora

TRAIN, VAL = "COCO_train2014_{:012d}.jpg", "COCO_val2014_{:012d}.jpg"


def write(path: Path, data) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in (f"train2014/{TRAIN.format(1)}", f"val2014/{VAL.format(2)}", f"val2014/{VAL.format(3)}"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


@pytest.fixture
def karpathy(tmp_path) -> Path:
    def image(number, name, split, *texts):
        folder = name.split("_")[1]
        sentences = [{"tokens": text.split(), "raw": text, "imgid": 0, "sentid": 0} for text in texts]
        return {
            "filepath": folder,
            "sentids": [0],
            "filename": name,
            "imgid": 0,
            "split": split,
            "sentences": sentences,
            "cocoid": number,
        }

    images = [
        image(1, TRAIN.format(1), "train", "A dog.", "Dogs."),
        image(2, VAL.format(2), "restval", "A cat.", " "),
        image(3, VAL.format(3), "test", "A cow."),
        image(4, VAL.format(4), "restval", "A bee."),
    ]
    return write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})


def found(dataset) -> dict[str, list[tuple[str, str]]]:
    return {row["image_id"]: [(c["language"], c["text"]) for c in row["captions"]] for row in dataset}


def test_karpathy(karpathy, photos):
    dataset = read_corpus(karpathy, images=photos, split=["train", "restval"])
    assert found(dataset) == {"1": [("en", "A dog."), ("en", "Dogs.")], "2": [("en", "A cat.")]}
    assert dataset[1]["image"] == str(photos / "val2014" / VAL.format(2)) and dataset[1]["split"] == "restval"
    assert dataset.skipped == {"caption empty": 1, "image file missing": 1, "image of another split": 1}
    with pytest.raises(ValueError, match="several splits, and split= must name one: restval, test, train"):
        read_corpus(karpathy, images=photos)
    with pytest.raises(ValueError, match="has no split 'dev'; it has restval, test, train"):
        read_corpus(karpathy, images=photos, split="dev")


def test_karpathy_of_flickr(tmp_path):
    image = {"sentids": [0], "imgid": 0, "sentences": [{"raw": "A dog."}], "split": "test", "filename": "100.jpg"}
    path = write(tmp_path / "dataset_flickr30k.json", {"images": [image], "dataset": "flickr30k"})
    (tmp_path / "flickr30k-images").mkdir()
    (tmp_path / "flickr30k-images" / "100.jpg").touch()
    (row,) = read_corpus(path)
    assert row["image_id"] == "100" and row["image"] == str(tmp_path / "flickr30k-images" / "100.jpg")


@pytest.mark.parametrize("named", [True, False])
def test_coco_form_with_and_without_file_names(tmp_path, photos, named):
    data = {
        "info": {},
        "annotations": [
            {"image_id": 2, "id": 0, "caption": "ねこ"},
            {"image_id": 1, "id": 1, "caption": "いぬ"},
            {"image_id": 2, "id": 2, "caption": "白いねこ"},
            {"image_id": 9, "id": 3, "caption": "うし"},
        ],
        "images": [{"id": n, "file_name": (TRAIN if n == 1 else VAL).format(n)} for n in (1, 2, 9)],
    }
    if not named:
        del data["images"]
    dataset = read_corpus(write(tmp_path / "yjcaptions26k_clean.json", data), images=photos)
    assert found(dataset) == {"2": [("ja", "ねこ"), ("ja", "白いねこ")], "1": [("ja", "いぬ")]}
    assert dataset[1]["image"] == str(photos / "train2014" / TRAIN.format(1))
    assert dataset.skipped == {"image file missing": 1}
    stair = read_corpus(write(tmp_path / "stair_captions_v1.2_val.json", data), images=photos)
    assert found(stair) == found(dataset)


def test_coco_form_of_another_language_and_a_list_of_images(tmp_path, photos):
    data = {"annotations": [{"image_id": n, "caption": f"photo {n}"} for n in (1, 2, 3)]}
    path = write(tmp_path / "captions_val2014.json", data)
    with pytest.raises(ValueError, match="does not say its language; language= names it"):
        read_corpus(path, images=photos)
    split = write(tmp_path / "mine.txt", f"{VAL.format(2)}\n000000000003\n")
    dataset = read_corpus(path, images=photos, language="en", split=split)
    assert found(dataset) == {"2": [("en", "photo 2")], "3": [("en", "photo 3")]}
    assert dataset.skipped == {"image of another split": 1}


@pytest.fixture
def coco_cn(tmp_path) -> Path:
    folder = tmp_path / "coco-cn"
    folder.mkdir()
    names = TRAIN.format(1)[:-4], VAL.format(2)[:-4], VAL.format(7)[:-4]
    human = f"{names[0]}#0\t一只狗\n{names[0]}#1\t狗\n{names[1]}#0\t一只猫\n{names[2]}#0\t牛\n"
    write(folder / "imageid.human-written-caption.txt", human)
    write(folder / "imageid.manually-translated-caption.txt", f"{names[1]}#0\t猫\n")
    write(folder / "coco-cn_train.txt", names[0])
    write(folder / "coco-cn_test.txt", f"{names[1]}\n{names[2]}\n")
    return folder


def test_coco_cn(coco_cn, photos):
    assert found(read_corpus(coco_cn, images=photos, split="train")) == {"1": [("zh", "一只狗"), ("zh", "狗")]}
    sources = ["human-written", "manually-translated"]
    dataset = read_corpus(coco_cn, images=photos, split="test", sources=sources)
    (row,) = dataset
    assert [(c["text"], c["source"]) for c in row["captions"]] == [
        ("一只猫", "human-written"),
        ("猫", "manually-translated"),
    ]
    assert dataset.skipped == {"image of another split": 2, "image file missing": 1}
    one = read_corpus(coco_cn / "imageid.human-written-caption.txt", format="coco-cn", images=photos)
    assert list(found(one)) == ["1", "2"]


def test_what_is_not_coco_cn(coco_cn, photos):
    with pytest.raises(ValueError, match="no list of images for the split 'dev'"):
        read_corpus(coco_cn, images=photos, split="dev")
    with pytest.raises(ValueError, match="no captions 'machine', but human-written, manually-translated"):
        read_corpus(coco_cn, images=photos, sources=["machine"])
    write(coco_cn / "imageid.human-written-caption.txt", "COCO_1#0\tx\nno tab")
    with pytest.raises(ValueError, match="line 2 is not an image, a tab and a caption"):
        read_corpus(coco_cn, images=photos)


@pytest.mark.parametrize(
    ("data", "format", "message"),
    [
        ('{"images": [{]}', "karpathy", "a.json, line 1 is not JSON"),
        ([], "karpathy", "no list of objects under 'images'"),
        ({"images": [{"filename": "x"}]}, "karpathy", "a.json, image 0 lacks its 'filename' or its 'sentences'"),
        ({"images": [{"filename": "x", "sentences": ["x"]}]}, "karpathy", "image 0: its sentences are not objects"),
        ({"annotations": [{"caption": "x"}]}, "stair", "a.json, annotation 0 has no 'image_id'"),
        ({"annotations": 3}, "yjcaptions", "no list of objects under 'annotations'"),
    ],
)
def test_files_of_another_form(tmp_path, data, format, message):
    with pytest.raises(ValueError, match=message):
        read_corpus(write(tmp_path / "a.json", data), format=format)


def test_three_corpora_are_one_multilingual_one(tmp_path, karpathy, coco_cn, photos):
    japanese = write(tmp_path / "stair.json", {"annotations": [{"image_id": 1, "caption": "いぬ"}]})
    english = read_corpus(karpathy, images=photos, split=["train", "restval"])
    joined = join_corpora(
        english, read_corpus(japanese, images=photos), read_corpus(coco_cn, images=photos, split="train")
    )
    assert found(joined) == {
        "1": [("en", "A dog."), ("en", "Dogs."), ("ja", "いぬ"), ("zh", "一只狗"), ("zh", "狗")],
        "2": [("en", "A cat.")],
    }
    assert joined.skipped == {"caption empty": 1, "image file missing": 1, "image of another split": 3}
    assert len(english[0]["captions"]) == 2, "what went in stays as it was"
