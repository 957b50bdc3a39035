"""Sources of galleries: ids that stay, hashes of content, own columns, and everything that can be wrong with files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from ccrk.pipelines import gallery_sources
from ccrk.pipelines.gallery_sources import GalleryError, gallery_items
from ccrk.pipelines.gallery_tables import StoredPhoto


def ids(items) -> list[str]:
    return [item.id for item in items]


def save_photo(photo: Image.Image, path: Path, taken: str | None = None) -> Path:
    exif = Image.Exif()
    if taken:
        exif.get_ifd(0x8769)[0x9003] = taken
    photo.save(path, exif=exif)
    return path


def test_folder(folder, photos, processor):
    items = gallery_items(folder)
    assert len(items) == 12 and items.modality == "image" and "more/02.png" in ids(items)
    again = gallery_items(os.path.relpath(folder))
    assert ids(again) == ids(items) and [i.known for i in again] == [i.known for i in items]
    item = items.items[0]
    assert item.known == {"path": str(folder / "00.png")}
    image, opened = item.open(processor)
    assert image.tobytes() == photos[0].tobytes()
    assert opened == {"width": photos[0].width, "height": photos[0].height, "taken": None}
    assert item.stamp()[0] == (folder / "00.png").stat().st_size
    assert len({i.digest() for i in items}) == 12


def test_equal_content_has_one_hash_and_two_ids(photos, tmp_path):
    photos[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    a, b = gallery_items(tmp_path)
    assert a.digest() == b.digest() and a.id != b.id


def test_date_taken_and_orientation(photos, processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif.get_ifd(0x8769)[0x9003] = "2024:05:31 18:20:00"
    photos[0].save(tmp_path / "a.jpg", exif=exif)
    save_photo(photos[1], tmp_path / "b.jpg", "not a date")
    save_photo(photos[2], tmp_path / "c.jpg", "0000:00:00 00:00:00")
    known = [item.open(processor)[1] for item in gallery_items(tmp_path)]
    assert known[0] == {"width": photos[0].height, "height": photos[0].width, "taken": "2024-05-31T18:20:00"}
    assert [one["taken"] for one in known[1:]] == [None, None]


@pytest.mark.parametrize(
    "name", ["with space.png", "schöne Grüße 狗.png", "line\nbreak.png", "quote'\"%s{}.png", "-.PNG"]
)
def test_odd_names(photos, processor, tmp_path, name):
    photos[0].save(tmp_path / name, format="png")
    (item,) = gallery_items(tmp_path)
    assert item.id == name and item.open(processor)[0].size == photos[0].size and item.digest()


def test_names_that_are_no_text_are_listed(photos, tmp_path):
    photos[0].save(tmp_path / "good.png")
    os.link(tmp_path / "good.png", os.fsencode(tmp_path) + b"/\xff.png")
    items = gallery_items(tmp_path)
    assert ids(items) == ["good.png"]
    assert len(items.skipped) == 1 and "valid Unicode" in items.skipped[0][1]
    json.dumps(items.skipped).encode()


def test_links_and_loops(photos, processor, tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    photos[0].save(tmp_path / "outside.png")
    photos[1].save(inside / "real.png")
    (inside / "link.png").symlink_to(tmp_path / "outside.png")
    (inside / "self.png").symlink_to(inside / "self.png")
    (inside / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (inside / "loop").symlink_to(inside)
    items = {item.id: item for item in gallery_items(inside)}
    assert set(items) == {"link.png", "real.png", "self.png", "dangling.png"}, "linked folders are not walked"
    assert items["link.png"].open(processor)[0].size == photos[0].size
    for name in ("self.png", "dangling.png"):
        with pytest.raises(GalleryError):
            items[name].stamp()


def test_pipes_are_not_read(photos, tmp_path):
    """Opening one would wait for ever."""
    photos[0].save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    pipe = next(item for item in gallery_items(tmp_path) if item.id == "pipe.png")
    with pytest.raises(GalleryError, match="no regular file"):
        pipe.stamp()


@pytest.mark.parametrize(
    ("name", "words"),
    [("empty.png", "empty"), ("cut.png", "damaged or truncated"), ("text.jpg", "not an image"), ("bomb.png", "large")],
)
def test_broken_files(photos, processor, tmp_path, name, words):
    photos[0].save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    if name == "bomb.png":
        Image.new("1", (20000, 20000)).save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes({"empty.png": b"", "cut.png": data[:-40], "text.jpg": b"no photo"}[name])
    item = next(item for item in gallery_items(tmp_path) if item.id == name)
    with pytest.raises(GalleryError, match=words) as caught:
        item.open(processor)
    assert caught.value.gone


def test_giant_files_are_not_read(photos, tmp_path):
    photos[0].save(tmp_path / "good.png")
    with (tmp_path / "giant.jpg").open("wb") as file:
        file.truncate(gallery_sources.MAX_FILE_BYTES + 1)
    item = next(item for item in gallery_items(tmp_path) if item.id == "giant.jpg")
    with pytest.raises(GalleryError, match="a photo has at most"):
        item.stamp()


def test_time_of_a_file_that_just_changed_is_not_trusted(photos, tmp_path):
    path = save_photo(photos[0], tmp_path / "a.png")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    (item,) = gallery_items(tmp_path)
    assert abs(item.stamp()[1] / 1e9 - time.time()) < 60, "what `utime` says is not believed"
    assert gallery_sources.trusted_time(item.stamp()) is None
    assert gallery_sources.trusted_time((1, 1_700_000_000)) == 1_700_000_000
    assert gallery_sources.trusted_time((1, time.time_ns() + 10**12)) is None, "a clock ahead of ours"


def test_a_locked_folder_is_told(photos, tmp_path, monkeypatch):
    """Root may read everything, so the refusal comes from a stand-in for `scandir`."""
    photos[0].save(tmp_path / "good.png")
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    items = gallery_items(tmp_path)
    assert items.unlisted == ("locked/",) and items.skipped == [(str(tmp_path / "locked"), "Permission denied")]


def test_text_file(tmp_path):
    file = tmp_path / "captions.txt"
    lines = ["a dog", "  ", "ein Hund", "狗", "a dog", ""]
    file.write_text("\n".join(lines), encoding="utf-8-sig")
    items = gallery_items(file)
    assert items.modality == "text" and [i.known["text"] for i in items] == ["a dog", "ein Hund", "狗", "a dog"]
    assert ids(items)[3] == ids(items)[0] + "-2" and items.items[3].digest() == items.items[0].digest()
    before = {i.known["text"]: i.id for i in items if not i.id.endswith("-2")}
    file.write_text("\n".join(["new", *lines[::-1]]), encoding="utf-8")
    after = {i.known["text"]: i.id for i in gallery_items(file) if not i.id.endswith("-2")}
    assert {text: after[text] for text in before} == before, "moving a line changes no id"
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no text"):
        gallery_items(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        gallery_items(file)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_tables_of_photos(folder, processor, tmp_path, suffix):
    rows = [
        {"id": "007", "path": "00.png", "place": "here", "year": 2001, "score2": 0.5, "good": True, "width": 7},
        {"id": "008", "path": "more/02.png", "place": None, "year": None, "score2": None, "good": None, "width": 7},
        {"id": "007", "path": "03.png", "place": "twice", "year": 1, "score2": 0.1, "good": False, "width": 7},
        {"id": "009", "path": "https://x/y.png", "place": "z", "year": 1, "score2": 0.1, "good": False, "width": 7},
        {"id": "010", "path": None, "place": "z", "year": 1, "score2": 0.1, "good": False, "width": 7},
    ]
    file = write_table(tmp_path / f"photos{suffix}", rows)
    items = gallery_items(file, photos=folder)
    assert ids(items) == ["007", "008"]
    assert items.items[0].known == {
        "path": str(folder / "00.png"),
        "place": "here",
        "year": 2001,
        "score2": 0.5,
        "good": True,
    }
    assert items.items[1].known["place"] is None and items.items[1].open(processor)
    assert [name for name, _ in items.skipped] == ["010", "007", "009"]
    causes = "there is no path in row 4", "the id '007' is that of an earlier row", "it is an address"
    assert all(said.startswith(cause) for (_, said), cause in zip(items.skipped, causes, strict=True))
    assert {name: items.columns[name] for name in ("place", "year", "score2", "good")} == {
        "place": "string",
        "year": "int64",
        "score2": "float64",
        "good": "bool",
    }
    chosen = gallery_items(file, columns=["year"], photos=folder)
    assert set(chosen.items[0].known) == {"path", "year"}
    with pytest.raises(ValueError, match="column 'nope' of the table .* is not there"):
        gallery_items(file, columns=["nope"], photos=folder)
    with pytest.raises(ValueError, match="has a column 'width', as a gallery of images has itself"):
        gallery_items(file, columns=["width"], photos=folder)


def write_table(file: Path, rows: list[dict]) -> Path:
    table = pa.Table.from_pylist(rows)
    if file.suffix == ".parquet":
        pa.parquet.write_table(table, file)
    elif file.suffix == ".csv":
        pa.csv.write_csv(table, file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_paths_of_a_table_are_relative_to_it(folder):
    file = write_table(folder.parent / "list.jsonl", [{"image": f"{folder.name}/00.png"}])
    (item,) = gallery_items(file)
    assert item.id == f"{folder.name}/00.png" and item.content == folder / "00.png"


def test_table_of_texts_in_languages(tmp_path):
    rows = [{"caption": "a dog", "language": "en"}, {"caption": "ein\nHund, zwei", "language": "de"}]
    for suffix in (".csv", ".parquet"):
        items = gallery_items(write_table(tmp_path / f"texts{suffix}", rows))
        assert items.modality == "text" and items.columns["language"] == "string"
        assert [i.known for i in items] == [{"text": r["caption"], "language": r["language"]} for r in rows]


def test_dates_numbers_and_lists_of_a_table(tmp_path):
    import datetime

    moment = datetime.datetime(2024, 5, 31, 18, 20)
    rows = [{"text": "a", "when": moment, "day": moment.date(), "tags": ["x"], "share": float("nan")}]
    (item,) = gallery_items(write_table(tmp_path / "t.parquet", rows))
    assert item.known == {"text": "a", "when": "2024-05-31T18:20:00", "day": "2024-05-31", "share": None}
    with pytest.raises(ValueError, match="'tags' of .* holds no plain values"):
        gallery_items(tmp_path / "t.parquet", columns=["tags"])


def test_bad_column_names_say_what_to_do(tmp_path):
    file = write_table(tmp_path / "t.csv", [{"text": "a", "two words": 1}])
    with pytest.raises(ValueError, match="'two words'.*choose others by `columns`"):
        gallery_items(file)
    assert len(gallery_items(file, columns=[])) == 1


def test_datasets(photos, processor, tmp_path, folder):
    rows = {"image": photos, "image_id": [f"p{i}" for i in range(12)], "year": list(range(12))}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    items = gallery_items(dataset.shuffle(seed=0))
    assert sorted(ids(items)) == sorted(rows["image_id"]) and "year" in items.columns
    for item in items:
        number = int(item.id[1:])
        assert isinstance(item.content, StoredPhoto) and item.stamp() is None
        assert item.open(processor)[0].tobytes() == photos[number].tobytes()
        assert item.known == {"path": None, "year": number}
    hashes = {item.id: item.digest() for item in items}
    dataset.save_to_disk(tmp_path / "saved")
    assert {item.id: item.digest() for item in gallery_items(tmp_path / "saved")} == hashes
    dataset.to_parquet(tmp_path / "inside.parquet")
    assert {item.id: item.digest() for item in gallery_items(tmp_path / "inside.parquet")} == hashes
    paths = datasets.Dataset.from_dict({"image": [str(folder / "00.png")]}).cast_column("image", datasets.Image())
    assert gallery_items(paths).items[0].content == folder / "00.png"
    with pytest.raises(TypeError, match="streaming"):
        gallery_items(dataset.to_iterable_dataset())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.csv", b"a,b\n1\n", "cannot be read"),
        ("a.csv", b"a,b\n1,2\n", "no column of photos .* or texts .* it has: a, b"),
        ("a.jsonl", b"{", "cannot be read"),
        ("a.csv", b"path\n", "holds no photo"),
        ("a.db", b"", "a source is a folder of photos, a table"),
    ],
)
def test_what_is_no_source(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        gallery_items(tmp_path / name)


def test_sources_that_are_not_there(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no file or folder '.*nowhere'"):
        gallery_items(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="of type int"):
        gallery_items(3)
    with pytest.raises(ValueError, match="holds no photos"):
        gallery_items(tmp_path)
    with pytest.raises(ValueError, match="is no table"):
        gallery_items(folder, columns=["year"])
