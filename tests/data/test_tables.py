"""Tables of one's own: what their columns mean, one caption a record or one column a language, four kinds of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ccrk.data.corpora import read_corpus
from ccrk.data.tables import ColumnPlan, plan_columns


@pytest.fixture
def place(tmp_path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"photo " + name.encode())
    return tmp_path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding, newline="")
    return path


def found(dataset) -> dict[str, list[tuple[str, str]]]:
    return {row["image_id"]: [(c["language"], c["text"]) for c in row["captions"]] for row in dataset}


LONG = """file,language,caption,license
a.jpg,en,one,CC0
b.jpg,de,zwei,
a.jpg,de,"eins, eins",
a.jpg,,x,
gone.jpg,en,y,
"""


def test_one_caption_a_record(place):
    dataset = read_corpus(write(place / "t.csv", LONG))
    assert found(dataset) == {"a.jpg": [("en", "one"), ("de", "eins, eins")], "b.jpg": [("de", "zwei")]}
    assert dataset[0]["image"] == str(place / "a.jpg") and dataset[0]["license"] == "CC0"
    assert dataset.skipped == {"caption without language": 1, "image file missing": 1}


@pytest.mark.parametrize(
    ("name", "separator", "encoding"),
    [("t.csv", ";", "utf-8-sig"), ("t.tsv", "\t", "utf-8"), ("t.csv", "\t", "utf-8"), ("t.csv", ",", "utf-8")],
)
def test_a_column_for_each_language(place, name, separator, encoding):
    cells = [["image", "id", "caption_en", "caption_pt-BR", "photographer"], ["a.jpg", "7", "one", "um", "Ann"]]
    cells.append(["b.jpg", "8", "two", "", "Bob"])
    text = "\r\n".join(separator.join(row) for row in cells)
    dataset = read_corpus(write(place / name, text, encoding))
    assert found(dataset) == {"7": [("en", "one"), ("pt-BR", "um")], "8": [("en", "two")]}
    assert dataset[1]["photographer"] == "Bob" and dataset.skipped == {"caption empty": 1}
    assert found(read_corpus(place / name, languages=["pt-BR"])) == {"7": [("pt-BR", "um")]}


def test_columns_of_other_names(place):
    path = write(place / "t.csv", "foto,nr,beschreibung,sprache,text\na.jpg,1,eins,de,other\n")
    columns = {"image": "foto", "image_id": "nr", "caption": "beschreibung", "language": "sprache"}
    dataset = read_corpus(path, columns=columns)
    assert found(dataset) == {"1": [("de", "eins")]} and dataset[0]["text"] == "other"
    columns = {"image": "foto", "caption_de": "beschreibung", "caption_gsw": "text"}
    assert found(read_corpus(path, columns=columns)) == {"a.jpg": [("de", "eins"), ("gsw", "other")]}


def test_json_lines_with_one_text_or_several(place):
    records = [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": ["two", "too"]}]
    path = write(place / "t.jsonl", "\n".join(map(json.dumps, records)))
    assert found(read_corpus(path, language="en")) == {
        "a.jpg": [("en", "one")],
        "b.jpg": [("en", "two"), ("en", "too")],
    }
    write(path, json.dumps(records[0]) + "\n" + json.dumps({"caption": "x"}))
    with pytest.raises(ValueError, match="t.jsonl, line 2 has no 'image'"):
        read_corpus(path, language="en")


def test_parquet_with_paths_and_with_images(place):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    table = {
        "image": ["a.jpg", "b.jpg", "../c.jpg"],
        "caption_en": ["one", None, "x"],
        "caption_de": ["eins", "zwei", ""],
    }
    parquet.write_table(arrow.table(table), place / "paths.parquet")
    dataset = read_corpus(place / "paths.parquet")
    assert found(dataset) == {"a.jpg": [("en", "one"), ("de", "eins")], "b.jpg": [("de", "zwei")]}
    assert dataset.skipped == {"caption empty": 1, "image path leaves the image folder": 1}
    table["image"] = [b"one photo", b"another", None]
    parquet.write_table(arrow.table(table), place / "bytes.parquet")
    dataset = read_corpus(place / "bytes.parquet", languages=["de"])
    assert [row["image"].read() for row in dataset] == [b"one photo", b"another"]
    with pytest.raises(ValueError, match="t.parquet' is not Parquet"):
        read_corpus(write(place / "t.parquet", "image,caption_en\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,caption_en\na.jpg,one,two\n", "t.csv, line 2 has 3 cells, but the header has 2"),
        ("image,caption_en\nb.jpg,x\na.jpg\n", "t.csv, line 3 has 1 cells, but the header has 2"),
        ("image,caption_en,image\na.jpg,x,y\n", "two columns of the same name"),
        ('image,caption_en\na.jpg,"one"two\n', "t.csv, line 2 is not CSV"),
        ("", "holds no image with a caption"),
        ("image,caption_en\n,one\n", "1 x record names no image"),
        ("image,caption_en\ngone.jpg,one\n", "such as gone.jpg; images= names their folder"),
    ],
)
def test_files_that_are_no_such_table(place, text, message):
    with pytest.raises(ValueError, match=message):
        read_corpus(write(place / "t.csv", text))


def test_a_file_of_another_encoding_or_kind(place):
    (place / "t.csv").write_bytes("image,caption_fr\na.jpg,été\n".encode("latin-1"))
    with pytest.raises(ValueError, match="t.csv' is not UTF-8"):
        read_corpus(place / "t.csv")
    with pytest.raises(ValueError, match="t.xlsx' is no table by its name"):
        read_corpus(write(place / "t.xlsx", "x"), format="csv")


# --- what columns mean --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["image", "captions"], {}, {"captions": "captions"}),
        (["image", "text", "lang"], {}, {"caption": "text", "caption_language": "lang"}),
        (["image", "caption", "lang"], {"language": "en"}, {"caption": "caption", "language": "en"}),
        # beside a caption, caption_id is a number
        (
            ["image", "caption", "caption_id", "language"],
            {},
            {"caption": "caption", "caption_language": "language"},
        ),
        (
            ["image", "caption_id", "caption_en", "caption_raw"],
            {},
            {"by_language": {"id": "caption_id", "en": "caption_en"}},
        ),
        (
            ["image", "caption", "caption_de"],
            {"columns": {"caption_de": "caption_de"}},
            {"by_language": {"de": "caption_de"}},
        ),
        (
            ["file_name", "image_id", "captions_de"],
            {},
            {"image": "file_name", "image_id": "image_id", "by_language": {"de": "captions_de"}},
        ),
    ],
)
def test_the_meaning_of_columns(names, options, expected):
    plan = plan_columns(names, options.get("columns"), options.get("language"), "t")
    assert plan == ColumnPlan(**{"image": "image", **expected})


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (["photo", "caption"], None, "'t' has the columns 'photo', 'caption', none of which is the image"),
        (["image", "words"], None, "none of which is a caption by its name"),
        (["image", "caption"], None, "none of which is the language of 'caption'; language= names"),
        (["image", "caption", "caption_de"], None, "'caption' and columns by language; columns= must name those"),
        (["image", "caption"], {"image": "photo"}, "but not 'photo', which columns= names as the image"),
        (["image", "caption"], {"picture": "image"}, "columns= names 'picture', but the roles are image, image_id"),
    ],
)
def test_columns_that_do_not_tell(names, columns, message):
    with pytest.raises(ValueError, match=message):
        plan_columns(names, columns, None, "t")
