"""Updates of an index: only what is new or changed goes through the model, and the result is that of a fresh build."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from ccrk import CCRkModel
from ccrk.pipelines import gallery_sources, gallery_update
from ccrk.pipelines.gallery_sources import GalleryItem, gallery_items
from ccrk.pipelines.gallery_update import open_gallery_index, update_index
from ccrk.pipelines.image_states import ImageStateStore
from ccrk.pipelines.model_fingerprint import embedding_fingerprint, states_name

URIS = {"memory": "memory:{name}", "lance": "lance://{folder}/{name}"}


@pytest.fixture(params=URIS)
def new_uri(request, tmp_path):
    """Names of indexes that are not there yet, of each back end that is embedded."""
    made = []

    def name() -> str:
        made.append(None)
        return URIS[request.param].format(folder=tmp_path, name=f"{tmp_path.name}-{len(made)}")

    return name


@pytest.fixture(autouse=True)
def old_files(monkeypatch):
    """The photos of a test are a moment old; in real life most are not."""
    monkeypatch.setattr(gallery_sources, "SETTLED", -1.0)


@pytest.fixture
def place(photos, tmp_path) -> Path:
    """A folder of 12 photos."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    for number, photo in enumerate(photos):
        photo.save(root / ("more" if number % 3 == 2 else "") / f"{number:02d}.png")
    return root


@pytest.fixture
def pipe(search):
    """A pipeline that counts what it embeds."""
    pipe = search()
    pipe.counted = 0
    encode = pipe.encode

    def counting(modality, contents):
        pipe.counted += len(contents)
        return encode(modality, contents)

    pipe.encode = counting
    return pipe


def run(uri: str, source, pipe, **options):
    """One update as a user would do it; counts are those of the model's own calls."""
    chosen = {name: options.pop(name) for name in ("columns", "photos") if name in options}
    items = gallery_items(source, **chosen)
    index = open_gallery_index(uri, embedding_fingerprint(pipe.model, pipe.processor), items)
    before = pipe.counted
    try:
        report = update_index(index, items, pipe, batch_size=5, **options)
        assert report.embedded == pipe.counted - before
        assert report.rows == index.count()
    finally:
        index.close()
    return report


def contents(uri: str) -> dict[str, dict]:
    """Everything that an index holds, by id, vectors as lists."""
    from ccrk.pipelines.indexes import open_index

    index = open_index(uri)
    rows = {row.pop("id"): row for row in index.scan([*index.columns, "vector"])}
    index.close()
    return rows


def assert_equal(found: dict[str, dict], expected: dict[str, dict]) -> None:
    assert found.keys() == expected.keys()
    for identity, row in expected.items():
        for name, value in row.items():
            if name == "vector":
                torch.testing.assert_close(
                    torch.as_tensor(found[identity]["vector"]), torch.as_tensor(value), rtol=1e-5, atol=2e-6
                )
            else:
                assert found[identity][name] == value, (identity, name)


def counts(report) -> dict[str, int]:
    names = ("added", "changed", "deleted", "unchanged", "retold", "kept", "embedded", "reused")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def test_first_run_and_nothing_to_do(new_uri, place, pipe, photos):
    uri = new_uri()
    report = run(uri, place, pipe)
    assert counts(report) == {"added": 12, "embedded": 12} and report.rows == 12
    rows = contents(uri)
    row = rows["more/02.png"]
    assert row["path"] == str(place / "more" / "02.png") and row["size"] == (place / "more" / "02.png").stat().st_size
    assert (row["width"], row["height"], row["taken"]) == (photos[2].width, photos[2].height, None)
    expected, _ = pipe.encode("image", [pipe.prepare("image", photos[2])])
    torch.testing.assert_close(torch.as_tensor(row["vector"]), expected[0], rtol=1e-5, atol=2e-6)
    assert counts(run(uri, place, pipe)) == {"unchanged": 12}
    assert_equal(contents(uri), rows)


def test_update_embeds_only_what_is_new_or_changed(new_uri, place, pipe, photos):
    uri, extra = new_uri(), photos[3:6]
    run(uri, place, pipe)
    extra[0].rotate(90).save(place / "new.png")
    extra[1].rotate(90).save(place / "00.png")
    (place / "01.png").unlink()
    report = run(uri, place, pipe)
    assert counts(report) == {"added": 1, "changed": 1, "deleted": 1, "unchanged": 10, "embedded": 2}
    fresh = new_uri()
    run(fresh, place, pipe)
    assert_equal(contents(uri), contents(fresh))


def test_a_touched_file_is_hashed_and_not_embedded(new_uri, place, pipe):
    uri = new_uri()
    run(uri, place, pipe)
    os.utime(place / "00.png")
    assert counts(run(uri, place, pipe)) == {"retold": 1, "unchanged": 11}
    assert contents(uri)["00.png"]["changed"] == (place / "00.png").stat().st_ctime_ns
    assert counts(run(uri, place, pipe)) == {"unchanged": 12}


def test_what_programs_set_back_is_noticed(new_uri, place, pipe):
    uri = new_uri()
    run(uri, place, pipe)
    before = (place / "00.png").stat()
    (place / "00.png").write_bytes((place / "00.png").read_bytes()[:-1] + b"x")
    os.utime(place / "00.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    report = run(uri, place, pipe)
    assert report.unchanged == 11 and report.changed + len(report.skipped) == 1


def test_rehash_relies_on_no_time(new_uri, place, pipe, photos, monkeypatch):
    monkeypatch.setattr(GalleryItem, "stamp", lambda item: (1, 1))  # a disk without times
    uri = new_uri()
    run(uri, place, pipe)
    photos[0].rotate(90).save(place / "00.png")
    assert counts(run(uri, place, pipe)) == {"unchanged": 12}
    assert counts(run(uri, place, pipe, rehash=True)) == {"unchanged": 11, "changed": 1, "embedded": 1}


def test_recently_changed_files_are_hashed_again(new_uri, place, pipe, photos, monkeypatch):
    monkeypatch.setattr(gallery_sources, "SETTLED", 60.0)
    uri = new_uri()
    run(uri, place, pipe)
    assert {row["changed"] for row in contents(uri).values()} == {None}
    stamp = GalleryItem.stamp
    stamps = {item.id: stamp(item) for item in gallery_items(place)}
    monkeypatch.setattr(GalleryItem, "stamp", lambda item: stamps[item.id])  # a clock that has not ticked since
    photos[0].rotate(90).save(place / "00.png")
    assert counts(run(uri, place, pipe)) == {"unchanged": 11, "changed": 1, "embedded": 1}


def test_renamed_and_doubled_files_are_not_embedded_again(new_uri, place, pipe):
    uri = new_uri()
    shutil.copy2(place / "00.png", place / "twin.png")
    report = run(uri, place, pipe)
    assert counts(report) == {"added": 13, "embedded": 12, "reused": 1}
    (place / "more").rename(place / "moved")
    shutil.copy2(place / "03.png", place / "third.png")
    report = run(uri, place, pipe)
    assert counts(report) == {"added": 5, "deleted": 4, "unchanged": 9, "reused": 5}
    fresh = new_uri()
    run(fresh, place, pipe)
    assert_equal(contents(uri), contents(fresh))


def test_contents_that_change_places(new_uri, place, pipe):
    """Whose vector is reused must still be that content's when it is fetched."""
    uri = new_uri()
    run(uri, place, pipe)
    names = ["00.png", "01.png", "03.png"]
    data = [(place / name).read_bytes() for name in names]
    for name, other in zip(names, data[1:] + data[:1], strict=True):
        (place / name).write_bytes(other)
    report = run(uri, place, pipe)
    assert report.changed == 3 and report.embedded == 0
    fresh = new_uri()
    run(fresh, place, pipe)
    assert_equal(contents(uri), contents(fresh))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_contents_that_change_places_across_writes(new_uri, place, pipe, photos, rows, monkeypatch):
    uri = new_uri()
    run(uri, place, pipe)
    monkeypatch.setattr(gallery_update, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(gallery_update, "WRITE_ROWS", rows)
    data = (place / "00.png").read_bytes()
    photos[0].rotate(90).save(place / "00.png")  # what later ones hold is not here any more
    for name in ("04.png", "06.png", "07.png", "zz.png"):
        (place / name).write_bytes(data)
    for name in ("aa.png", "bb.png"):
        (place / name).write_bytes((place / "00.png").read_bytes())
    run(uri, place, pipe)
    fresh = new_uri()
    run(fresh, place, pipe)
    found, expected = contents(uri), contents(fresh)
    assert_equal(found, expected)


def test_own_columns_change_without_the_model(new_uri, place, pipe, tmp_path):
    def table(year: int) -> Path:
        file = tmp_path / "photos.jsonl"
        names = [path.relative_to(place).as_posix() for path in sorted(place.rglob("*.png"))]
        file.write_text("\n".join(json.dumps({"path": n, "year": year if n == "00.png" else 1}) for n in names))
        return file

    uri = new_uri()
    assert counts(run(uri, table(1), pipe, photos=place)) == {"added": 12, "embedded": 12}
    assert counts(run(uri, table(2), pipe, photos=place)) == {"retold": 1, "unchanged": 11}
    rows = contents(uri)
    assert {name: row["year"] for name, row in rows.items() if row["year"] != 1} == {"00.png": 2}
    assert rows["00.png"]["width"], "what was known from opening stays"
    fresh = new_uri()
    run(fresh, table(2), pipe, photos=place)
    assert_equal(rows, contents(fresh))
    with pytest.raises(ValueError, match="lacks the column 'other'"):
        (tmp_path / "photos.jsonl").write_text(json.dumps({"path": "00.png", "other": 1}))
        run(uri, tmp_path / "photos.jsonl", pipe, photos=place)
    with pytest.raises(ValueError, match="has as int64 the column 'year' .string."):
        (tmp_path / "photos.jsonl").write_text(json.dumps({"path": "00.png", "year": "x"}))
        run(uri, tmp_path / "photos.jsonl", pipe, photos=place)


def test_a_folder_that_moved_keeps_its_vectors(new_uri, place, pipe):
    uri = new_uri()
    run(uri, place, pipe)
    moved = place.rename(place.with_name("elsewhere"))
    assert counts(run(uri, moved, pipe)) == {"retold": 12}
    assert all(row["path"].startswith(str(moved)) for row in contents(uri).values())


def test_texts_in_languages(new_uri, pipe, captions, tmp_path):
    file = tmp_path / "texts.csv"
    lines = ["text,language", *(f"{caption},{'de' if i % 2 else 'en'}" for i, caption in enumerate(captions))]
    file.write_text("\n".join(lines))
    uri = new_uri()
    assert counts(run(uri, file, pipe)) == {"added": 8, "embedded": 8}
    file.write_text("\n".join([lines[0], "ein neuer Satz,de", *lines[2:]]))
    assert counts(run(uri, file, pipe)) == {"added": 1, "deleted": 1, "unchanged": 7, "embedded": 1}
    rows = contents(uri)
    assert {row["text"] for row in rows.values()} == {"ein neuer Satz", *captions[1:]}
    new = next(row for row in rows.values() if row["text"] == "ein neuer Satz")
    expected, _ = pipe.encode("text", ["ein neuer Satz"])
    torch.testing.assert_close(torch.as_tensor(new["vector"]), expected[0], rtol=1e-5, atol=2e-6)
    with pytest.raises(ValueError, match="a gallery of texts, and the folder .* holds images"):
        place = tmp_path / "p"
        place.mkdir()
        Image.new("RGB", (8, 8)).save(place / "a.png")
        run(uri, place, pipe)


def test_rows_that_no_index_can_hold_are_listed(new_uri, pipe, captions, tmp_path):
    file, uri = tmp_path / "texts.jsonl", new_uri()
    rows = [{"id": str(n), "text": text, "note": "fine", "number": n} for n, text in enumerate(captions)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert counts(run(uri, file, pipe)) == {"added": 8, "embedded": 8}
    rows[2]["note"], rows[5]["text"] = "a\0b", "two\0parts"
    rows.append({"id": "8", "text": "new", "note": "c\0d", "number": 8})
    file.write_text("\n".join(map(json.dumps, rows)))
    report = run(uri, file, pipe)
    assert counts(report) == {"unchanged": 6, "kept": 2, "embedded": 2}
    assert sorted(name for name, _ in report.skipped) == ["2", "5", "8"] and report.rows == 8
    assert all("NUL" in cause for _, cause in report.skipped)
    assert contents(uri)["2"]["note"] == "fine"


def test_dataset(new_uri, pipe, photos):
    dataset = datasets.Dataset.from_dict({"image": photos, "image_id": [f"p{i}" for i in range(12)]})
    dataset = dataset.cast_column("image", datasets.Image())
    uri = new_uri()
    assert counts(run(uri, dataset, pipe)) == {"added": 12, "embedded": 12}
    assert counts(run(uri, dataset.select(range(11, 0, -1)), pipe)) == {"unchanged": 11, "deleted": 1}


def test_broken_files_are_listed_and_the_rest_is_indexed(new_uri, place, pipe, tmp_path):
    (place / "empty.png").touch()
    (place / "cut.png").write_bytes((place / "00.png").read_bytes()[:60])
    (place / "dangling.png").symlink_to(place / "nowhere.png")
    uri = new_uri()
    report = run(uri, place, pipe)
    assert report.added == 12 and sorted(name for name, _ in report.skipped) == [
        "cut.png",
        "dangling.png",
        "empty.png",
    ]
    report.write_skipped(tmp_path / "skipped.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {line["item"] for line in lines} == {"cut.png", "dangling.png", "empty.png"} and all(
        line["cause"] for line in lines
    )
    assert report.counts()["skipped"] == 3 and json.dumps(report.counts())
    # repaired, and one that was fine breaks: its row is of a photo that is no more
    Image.new("RGB", (9, 9)).save(place / "empty.png")
    (place / "00.png").write_bytes(b"broken")
    report = run(uri, place, pipe)
    assert counts(report) == {"added": 1, "deleted": 1, "unchanged": 11, "embedded": 1}
    assert "00.png" not in contents(uri)


def test_what_is_only_out_of_reach_stays(new_uri, place, pipe, monkeypatch):
    """Root may read everything, so the refusals come from stand-ins."""
    uri = new_uri()
    run(uri, place, pipe)
    real_scandir, real_open = os.scandir, Path.open

    def scandir(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_scandir(path)

    def open_path(path, *args, **kwargs):
        if path.name == "00.png":
            raise OSError(5, "Input/output error", str(path))
        return real_open(path, *args, **kwargs)

    os.utime(place / "00.png")
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(Path, "open", open_path)
    report = run(uri, place, pipe)
    assert counts(report) == {"unchanged": 7, "kept": 5} and report.rows == 12
    assert sorted(cause for _, cause in report.skipped) == ["Input/output error", "Permission denied"]


def test_a_wrong_source_removes_nothing(new_uri, place, pipe, photos, tmp_path):
    uri = new_uri()
    run(uri, place, pipe)
    before = contents(uri)
    other = tmp_path / "other"
    other.mkdir()
    for number in range(3):
        photos[number].rotate(90).save(other / f"x{number}.png")
    with pytest.raises(ValueError, match=r"12 of the 12 rows .* nothing was deleted.*--allow-delete-all"):
        run(uri, other, pipe)
    assert_equal(contents(uri), before)
    for name in sorted(place.rglob("*.png"))[:7]:
        name.unlink()
    with pytest.raises(ValueError, match=r"7 of the 12 rows"):
        run(uri, place, pipe)
    assert counts(run(uri, place, pipe, allow_delete_all=True)) == {"deleted": 7, "unchanged": 5}
    # a folder in which everything was damaged at once looks mounted, and is as suspicious
    for name in place.rglob("*.png"):
        name.write_bytes(b"\0" * 10)
    with pytest.raises(ValueError, match=r"5 of the 5 rows"):
        run(uri, place, pipe)
    assert len(contents(uri)) == 5


def test_what_changes_while_it_is_read_is_left_for_the_next_run(new_uri, place, pipe, photos, monkeypatch):
    """Two files of equal content, of which the first is overwritten between being hashed and being opened."""
    shutil.copy(place / "00.png", place / "000.png")
    opened = GalleryItem.open

    def open_late(item, processor):
        if item.id == "00.png":
            photos[4].rotate(90).save(place / "00.png")
        return opened(item, processor)

    monkeypatch.setattr(GalleryItem, "open", open_late)
    uri = new_uri()
    report = run(uri, place, pipe)
    assert report.added == 12 and report.skipped == [
        ("00.png", "it was changed while it was read; it is for the next update")
    ]
    monkeypatch.setattr(GalleryItem, "open", opened)
    assert counts(run(uri, place, pipe)) == {"added": 1, "unchanged": 12, "embedded": 1}
    fresh = new_uri()
    run(fresh, place, pipe)
    assert_equal(contents(uri), contents(fresh))


def test_rows_that_another_update_removes_meanwhile(new_uri, place, pipe, monkeypatch):
    uri = new_uri()
    run(uri, place, pipe)
    (place / "00.png").rename(place / "moved.png")
    items = gallery_items(place)
    index = open_gallery_index(uri, embedding_fingerprint(pipe.model, pipe.processor), items)
    scan, calls = index.scan, []

    def scan_then_lose(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            index.delete(["00.png"])
        return scan(*args, **kwargs)

    monkeypatch.setattr(index, "scan", scan_then_lose)
    with pytest.raises(ValueError, match="another update of .* has removed '00.png' meanwhile: run it again"):
        update_index(index, items, pipe, batch_size=5)
    monkeypatch.undo()
    index.close()
    assert run(uri, place, pipe).rows == 12


def test_another_model_is_refused(new_uri, place, pipe, search, build_model):
    uri = new_uri()
    run(uri, place, pipe)
    other = search(model=build_model(CCRkModel, seed=1))
    other.counted = 0
    with pytest.raises(ValueError, match="holds vectors of .* cannot be compared.*revision"):
        run(uri, place, other)
    assert other.counted == 0


def test_an_index_that_is_no_gallery_is_refused(new_uri, place, pipe):
    from ccrk.pipelines.indexes import create_index

    uri = new_uri()
    create_index(uri, embedding_fingerprint(pipe.model, pipe.processor), {"year": "int64"}).close()
    with pytest.raises(ValueError, match="no gallery that was made by an update"):
        run(uri, place, pipe)


def test_batches_are_written_as_they_come(new_uri, place, pipe, monkeypatch):
    """What was written before something fails is there, and the next run does the rest."""
    monkeypatch.setattr(gallery_update, "WRITE_ROWS", 4)
    uri, encode = new_uri(), pipe.encode

    def failing(modality, contents):
        if pipe.counted >= 10:
            raise RuntimeError("the power went out")
        return encode(modality, contents)

    pipe.encode = failing
    with pytest.raises(RuntimeError, match="power"):
        run(uri, place, pipe)
    assert len(contents(uri)) == 10
    pipe.encode = encode
    assert counts(run(uri, place, pipe)) == {"unchanged": 10, "added": 2, "embedded": 2}


def test_bfloat16_keeps_the_fingerprint(new_uri, place, pipe):
    uri, exact = new_uri(), new_uri()
    run(uri, place, pipe, bf16=True)
    run(exact, place, pipe)
    for identity, row in contents(uri).items():
        other = torch.as_tensor(contents(exact)[identity]["vector"])
        vector = torch.as_tensor(row["vector"])
        assert float(vector @ other) > 0.99 and float(vector.norm()) == pytest.approx(1, abs=1e-4)
    assert counts(run(uri, place, pipe)) == {"unchanged": 12}


def test_states_are_kept_added_and_pruned(new_uri, place, pipe, tmp_path):
    def store(**options) -> ImageStateStore:
        return ImageStateStore(tmp_path / "states", states_name(pipe.model, pipe.processor), **options)

    uri = new_uri()
    run(uri, place, pipe)
    report = run(uri, place, pipe, states=store())
    assert counts(report) == {"unchanged": 12, "embedded": 12} and report.states == 12
    rows = contents(uri)
    assert all(row["hash"] in store() for row in rows.values())
    report = run(uri, place, pipe, states=store())
    assert counts(report) == {"unchanged": 12} and report.states == 0
    Image.new("RGB", (9, 9), "red").save(place / "new.png")
    (place / "00.png").unlink()
    report = run(uri, place, pipe, states=store())
    assert counts(report) == {"unchanged": 11, "added": 1, "deleted": 1, "embedded": 1} and report.states == 1
    assert len(store()) == 12 and rows["00.png"]["hash"] not in store()
    _, hidden = pipe.encode("image", [pipe.prepare("image", Image.new("RGB", (9, 9), "red"))])
    (kept,) = store().get([contents(uri)["new.png"]["hash"]])
    torch.testing.assert_close(kept.float(), hidden[0], rtol=1e-3, atol=1e-3)
    small = ImageStateStore(tmp_path / "small", "m", max_bytes=3 * kept.nbytes)
    report = run(uri, place, pipe, states=small)
    assert report.states == 3
    report = run(uri, place, pipe, states=ImageStateStore(tmp_path / "small", "m", max_bytes=3 * kept.nbytes))
    assert report.embedded == 0
