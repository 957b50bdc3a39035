"""Data sets of `datasets`: in memory, on disk, streamed; images are left as they stand in the files."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from ccrk.data.corpora import read_corpus, stream_corpus
from ccrk.data.report import SkipReport
from ccrk.data.sharding import BatchStream, EpochRows

datasets = pytest.importorskip("datasets")


def same(batch):
    return batch


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(rows: int = 3, **columns) -> datasets.Dataset:
    """Photos that are broken but for the first: decoding one would be an error."""
    images = [{"bytes": png(0) if n == 0 else b"no photo %d" % n, "path": None} for n in range(rows)]
    columns = columns or {"captions": [[{"language": "en", "text": f"photo {n}"}] for n in range(rows)]}
    dataset = datasets.Dataset.from_dict({"image": images, "image_id": [f"i{n}" for n in range(rows)], **columns})
    return dataset.cast_column("image", datasets.Image())


def found(dataset) -> dict[str, list[tuple[str, str]]]:
    return {row["image_id"]: [(c["language"], c["text"]) for c in row["captions"]] for row in dataset}


def test_rows_of_the_schema_with_images_that_stay_closed():
    captions = [
        [{"language": "en", "text": "one", "weight": 0.5}, {"language": "de", "text": "eins", "weight": None}],
        [{"language": "en", "text": " ", "weight": None}],
        [{"language": "de", "text": "drei", "weight": None}],
    ]
    dataset = read_corpus(table(captions=captions, license=["CC0"] * 3))
    assert found(dataset) == {"i0": [("en", "one"), ("de", "eins")], "i2": [("de", "drei")]}
    assert dataset[0]["captions"] == [
        {"language": "en", "text": "one", "weight": 0.5},
        {"language": "de", "text": "eins"},
    ]
    assert dataset[0]["image"].read() == png(0) and dataset[1]["image"].read() == b"no photo 2"
    assert dataset[0]["license"] == "CC0"
    assert dataset.skipped == {"caption empty": 1, "image without captions": 1}
    rows = next(iter(DataLoader(EpochRows(dataset), batch_sampler=[[(0, 1), (0, 0)]], num_workers=1, collate_fn=same)))
    assert rows[1]["image"].read() == png(0), "also from a worker"


def test_columns_by_language_and_records_of_one_image():
    dataset = read_corpus(table(caption_en=["one", "two", None], caption_de=["eins", "", ""]))
    assert found(dataset) == {"i0": [("en", "one"), ("de", "eins")], "i1": [("en", "two")]}
    joined = datasets.Dataset.from_dict({"path": ["a", "b", "a"], "text": ["one", "two", "three"]})
    assert found(read_corpus(joined, language="en")) == {"a": [("en", "one"), ("en", "three")], "b": [("en", "two")]}
    joined = table(text=["one", "two", "three"], language=["en", "de", "en"]).remove_columns("image_id")
    assert list(found(read_corpus(joined))) == ["0", "1", "2"], "images without ids are an image each"


def test_a_list_of_languages_and_a_list_of_texts():
    """As `datasets` gives a list of objects in some versions."""
    captions = {"language": ["en", "de"], "text": ["one", "eins"]}
    dataset = table(1, captions=[captions])
    assert found(read_corpus(dataset)) == {"i0": [("en", "one"), ("de", "eins")]}


def test_paths_in_a_folder(tmp_path):
    (tmp_path / "a.jpg").touch()
    paths = datasets.Dataset.from_dict(
        {"image": ["a.jpg", "b.jpg", "../c.jpg"], "caption_en": ["one", "two", "three"]}
    )
    dataset = read_corpus(paths, images=tmp_path)
    assert [row["image"] for row in dataset] == [str(tmp_path / "a.jpg")]
    assert dataset.skipped == {"image file missing": 1, "image path leaves the image folder": 1}


def test_from_disk_with_and_without_splits(tmp_path):
    table().save_to_disk(tmp_path / "one")
    assert len(read_corpus(tmp_path / "one")) == 3
    datasets.DatasetDict({"train": table(2), "test": table(1)}).save_to_disk(tmp_path / "two")
    assert len(read_corpus(tmp_path / "two", split="train")) == 2
    with pytest.raises(ValueError, match="several splits, and split= must name one: test, train"):
        read_corpus(tmp_path / "two")
    assert len(list(stream_corpus(tmp_path / "two", split="test"))) == 1


def test_a_stream_is_not_read_as_a_whole():
    with pytest.raises(ValueError, match="a IterableDataset cannot be indexed; stream_corpus reads it"):
        read_corpus(table().to_iterable_dataset())


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_stream_gives_each_record_once_to_any_number_of_workers(shards, workers):
    """`datasets` deals its shards out to workers by itself, which would leave some out here."""
    captions = [[{"language": "en", "text": "" if n == 4 else f"photo {n}"}] for n in range(11)]
    stream = stream_corpus(table(11, captions=captions).to_iterable_dataset(num_shards=shards), seed=1)
    report, read = SkipReport(), []
    for rank in (0, 1):
        batches = BatchStream(stream, 2, rank, 2, epochs=1)
        for batch in DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=same):
            report.merge(batch.skipped)
            read += batch
    assert sorted(row["image_id"] for row in read) == sorted(f"i{n}" for n in range(11) if n != 4)
    assert report == {"caption empty": 1, "image without captions": 1}
    photo = next(row["image"] for row in read if row["image_id"] == "i0")
    assert photo["bytes"] == png(0), "not decoded"


def test_a_stream_of_columns_and_without_features():
    def records():
        yield {"image": "a.jpg", "caption_en": "one", "n": 1}
        yield {"image": None, "caption_en": "two", "n": 2}

    stream = stream_corpus(datasets.IterableDataset.from_generator(records), shuffle=False)
    assert list(stream) == [
        {"image": "a.jpg", "image_id": "a.jpg", "captions": [{"language": "en", "text": "one"}], "n": 1, "epoch": 0}
    ]
    assert stream.skipped == {"record names no image": 1}
    with pytest.raises(ValueError, match="none of which is a caption"):
        next(iter(stream_corpus(table().remove_columns("captions").to_iterable_dataset())))
