"""Caption sets by name, and rows as tables of `datasets` that can be published and read again."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from ccrk.data.by_name import CAPTION_SETS, load_captions
from ccrk.data.corpora import READERS, detect_format, read_corpus
from ccrk.data.images import load_image
from ccrk.data.rows import CaptionDataset
from ccrk.data.to_datasets import to_datasets

CAPTIONS = [
    [{"language": "en", "text": "a dog"}, {"language": "de", "text": "ein Hund"}],
    [{"language": "en", "text": "a boat", "source": "human", "weight": 0.5}],
    [{"language": "pt-BR", "text": "um gato"}, {"language": "en", "text": "a cat"}, {"language": "en", "text": "cat"}],
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(len(CAPTIONS)):
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def rows(photos) -> CaptionDataset:
    return CaptionDataset(
        [
            {
                "image": str(photo),
                "image_id": f"i{number}",
                "captions": captions,
                "licence": "CC0",
                "year": 2000 + number,
            }
            for number, (photo, captions) in enumerate(zip(photos, CAPTIONS, strict=True))
        ]
    )


@pytest.fixture
def xflickrco(photos, tmp_path) -> Path:
    """The same photos as IGLUE has them."""
    for language in ("en", "de"):
        (tmp_path / "annotations" / language).mkdir(parents=True)
        lines = [
            {"sentences": [c["text"]], "id": str(number), "img_path": photo.name}
            for number, photo in enumerate(photos)
            for c in [c for c in CAPTIONS[number] if c["language"] == language][:1]
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / "annotations" / language / "test.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "annotations"


def pixels(image) -> np.ndarray:
    return np.asarray(load_image(image))


def same_rows(found, expected, photos) -> None:
    assert [row["image_id"] for row in found] == [row["image_id"] for row in expected]
    assert [row["captions"] for row in found] == [row["captions"] for row in expected]
    for row, photo in zip(found, photos, strict=True):
        np.testing.assert_array_equal(pixels(row["image"]), np.asarray(Image.open(photo)))


# --- by name ------------------------------------------------------------------------------------------------------


def test_every_reader_is_listed():
    assert CAPTION_SETS.keys() == READERS.keys()


def test_a_set_by_its_name(xflickrco, photos):
    table = load_captions("xflickrco", captions=xflickrco, images=photos[0].parent, split="test")
    assert table.split == "test" and table.column_names == ["image", "image_id", "captions"]
    assert isinstance(table.features["image"], datasets.Image)
    by_id = {row["image_id"]: {(c["language"], c["text"]) for c in row["captions"]} for row in table}
    assert by_id == {"0": {("de", "ein Hund"), ("en", "a dog")}, "1": {("en", "a boat")}, "2": {("en", "a cat")}}
    assert "3 images" in table.info.description
    german = load_captions("xflickrco", captions=xflickrco, images=photos[0].parent, split="test", languages=["de"])
    assert len(german) == 1


def test_options_of_the_reader(photos, tmp_path):
    (tmp_path / "mine.csv").write_text("foto,deutsch\nphotos/1.png,ein Boot\nphotos/lost.png,weg\n")
    table = load_captions("csv", captions=tmp_path / "mine.csv", columns={"image": "foto", "caption_de": "deutsch"})
    assert [row["captions"][0]["text"] for row in table] == ["ein Boot"]
    assert "image file missing" in table.info.description
    with pytest.raises(ValueError, match="has no option 'year'"):
        load_captions("csv", captions=tmp_path / "mine.csv", year="2016")


@pytest.mark.parametrize(
    ("name", "words"),
    [("xflickr", "did you mean 'xflickrco'"), ("Multi30k", "did you mean 'multi30k'"), ("???", "organisation/name")],
)
def test_an_unknown_name_is_told_with_the_nearest(name, words):
    with pytest.raises(ValueError, match="there is no caption set") as error:
        load_captions(name, captions="somewhere")
    assert words in str(error.value)


def test_no_files_named():
    with pytest.raises(ValueError, match="multi30k: neither captions= nor images="):
        load_captions("multi30k")


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert detect_format("org/my-captions") == "datasets"
    (tmp_path / "data").mkdir()
    for path in ("data/typo", "org/train.jsonl", "a/b/c", "../x"):
        with pytest.raises(FileNotFoundError, match="there is no file or folder"):
            detect_format(path)
    for read in (read_corpus, load_captions):
        with pytest.raises(FileNotFoundError, match="'org/my-captions' is no local file or folder"):
            read("org/my-captions")


# --- tables -------------------------------------------------------------------------------------------------------


def test_photos_stay_files(rows, photos):
    table = rows.to_datasets()
    raw = table.cast_column("image", datasets.Image(decode=False))
    assert raw["image"][0] == {"bytes": None, "path": str(photos[0])}
    assert table[1]["captions"] == [{"language": "en", "text": "a boat", "source": "human", "weight": 0.5}]
    assert table["licence"][:] == ["CC0"] * 3 and table["year"][2] == 2002
    same_rows(read_corpus(table), rows, photos)


def test_saved_to_disk_and_read_again(rows, photos, tmp_path):
    rows.to_datasets(split="test").save_to_disk(tmp_path / "saved")
    found = read_corpus(tmp_path / "saved")
    same_rows(found, rows, photos)
    assert found[0]["licence"] == "CC0" and found[1]["year"] == 2001


def test_a_folder_of_parquet_holds_the_photos(rows, photos, tmp_path):
    (tmp_path / "published").mkdir()
    rows.to_datasets(embed=True).to_parquet(tmp_path / "published" / "train-00000-of-00001.parquet")
    before = [photo.read_bytes() for photo in photos]
    for photo in photos:
        photo.rename(photo.with_suffix(".gone"))
    table = datasets.load_dataset(str(tmp_path / "published"), split="train")
    raw = table.cast_column("image", datasets.Image(decode=False))
    assert [cell["bytes"] for cell in raw["image"]] == before, "the very bytes, not compressed again"
    assert [cell["path"] for cell in raw["image"]] == ["0.png", "1.png", "2.png"], "and no folder of this machine"
    gone = [photo.with_suffix(".gone") for photo in photos]
    same_rows(read_corpus(table), rows, gone)
    same_rows(read_corpus(tmp_path / "published", format="datasets", split="train"), rows, gone)


def png(photo: Path) -> bytes:
    return photo.read_bytes()


def test_photos_of_every_origin(photos, tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, data in (("0.png", png(photos[0])), ("0.json", json.dumps({"captions": {"en": "a dog"}}).encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    line = {"image": base64.b64encode(png(photos[0])).decode() + " " * 300, "caption": {"en": "a dog"}}
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "0.jsonl").write_text(json.dumps(line))
    table = datasets.Dataset.from_dict({"image": [{"bytes": png(photos[0]), "path": None}], "caption_en": ["a dog"]})
    corpora = [
        read_corpus(tmp_path / "train.tar"),
        read_corpus(tmp_path / "lines", format="pretraining"),
        read_corpus(table.cast_column("image", datasets.Image())),
    ]
    given = [Image.open(photos[0]), png(photos[0]), {"bytes": png(photos[0]), "path": "x/0.png"}, photos[0]]
    for number, image in enumerate(given):
        corpora.append(CaptionDataset([{"image": image, "image_id": str(number), "captions": CAPTIONS[0]}]))
    for corpus in corpora:
        for embed in (False, True):
            found = corpus.to_datasets(embed=embed)
            np.testing.assert_array_equal(pixels(found[0]["image"]), np.asarray(Image.open(photos[0])))


def test_the_cache_knows_what_has_changed(rows, photos):
    def files(**options) -> list[str]:
        return [file["filename"] for file in rows.to_datasets(**options).cache_files]

    first = files(embed=True)
    assert files(embed=True) == first and files() != first
    rows.rows[0]["captions"][0]["text"] = "two dogs"
    second = files(embed=True)
    assert second != first and rows.to_datasets(embed=True)[0]["captions"][0]["text"] == "two dogs"
    photos[1].write_bytes(png(photos[2]))
    os.utime(photos[1], ns=(1, 1))
    assert files(embed=True) != second
    np.testing.assert_array_equal(pixels(rows.to_datasets(embed=True)[1]["image"]), np.asarray(Image.open(photos[2])))


def test_columns_that_are_no_scalars_are_left_out_and_named(rows):
    rows.rows[0]["tags"], rows.rows[1]["mixed"], rows.rows[2]["mixed"] = ["a"], "b", 1
    rows.rows[0]["score"], rows.rows[1]["score"] = 1, 0.5
    with pytest.warns(UserWarning, match="left out.*: tags, mixed"):
        table = rows.to_datasets()
    assert table.column_names == ["image", "image_id", "captions", "licence", "year", "score"]
    assert table["score"][:] == [1.0, 0.5, None]


def test_a_photo_that_cannot_be_read_is_named(rows, photos):
    photos[1].unlink()
    assert len(rows.to_datasets()) == 3
    with pytest.raises(Exception, match="generating the dataset") as error:
        rows.to_datasets(embed=True)
    assert "row 'i1'" in str(error.value.__cause__)


class Drawn:
    """A photo that is made when it is read."""

    def __init__(self, number: int):
        self.number = number

    def read(self) -> bytes:
        return self.number.to_bytes(4, "big") * 50_000


def test_memory_does_not_grow_with_the_number_of_photos():
    rows = [{"image": Drawn(n), "image_id": str(n), "captions": CAPTIONS[0]} for n in range(300)]  # 60 MB
    tracemalloc.start()
    table = to_datasets(CaptionDataset(rows))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 300 and peak < 40e6
