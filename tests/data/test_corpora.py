"""The front door: which format files have, streams of every kind, and that no image is opened on the way."""

from __future__ import annotations

import base64
import json
import pickle  # noqa: S403 - only to see that a stream survives the way to a spawned worker process
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from ccrk.data.corpora import READERS, STREAMS, detect_format, read_corpus, stream_corpus
from ccrk.data.report import SkipReport
from ccrk.data.sharding import BatchStream

CAPTIONS = {"en": "a photo", "de": "ein Foto"}
PHOTO = base64.b64encode(bytes(range(256)) * 2).decode()


def same(batch):
    return batch


def write(path: Path, *records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "records", "expected"),
    [
        ("t.jsonl", [{"image": "a.jpg", "captions": CAPTIONS}], "ccrk"),
        ("t.jsonl", [{"image_path": "a.jpg", "caption": [{"language": "en", "text": "x"}]}], "ccrk"),
        ("t.jsonl", [{"image": PHOTO, "caption": CAPTIONS}], "pretraining"),
        ("t.jsonl", [{"image": "a.jpg", "caption": "x"}], "csv"),
        ("t.jsonl", [{"image": "a.jpg", "caption_de": "x"}], "csv"),
        ("t.jsonl", [{"caption_reference_description": "x"}], "wit"),
        ("t.jsonl", [{"sentences": ["x"], "img_path": "a.jpg"}], "xflickrco"),
        ("t.tsv", ["x"], "csv"),
        ("t.parquet", ["x"], "csv"),
        ("t.tar", ["x"], "webdataset"),
        ("t.json", [{"images": [{"sentences": []}]}], "karpathy"),
        ("t.json", [{"annotations": [], "images": [{"id": 1}]}], "coco"),
        ("yjcaptions26k_clean.json", [{"annotations": []}], "yjcaptions"),
        ("STAIR_captions_v1.2_val.json", [{"annotations": []}], "stair"),
    ],
)
def test_formats_of_files(tmp_path, name, records, expected):
    assert detect_format(write(tmp_path / name, *records)) == expected
    assert detect_format([tmp_path / name]) == detect_format(str(tmp_path / "*")) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"de/test.jsonl": {"sentences": ["x"], "img_path": "a.jpg"}}, "xflickrco"),
        ({"val.txt": "a.jpg", "val.en.gz": ""}, "multi30k"),
        ({"LICENSE": "free", "test_en.jsonl": {"caption_reference_description": "x"}}, "wit"),
        ({"imageid.human-written-caption.txt": "", "coco-cn_train.txt": ""}, "coco-cn"),
        ({"part-00": {"caption": CAPTIONS, "image": PHOTO}}, "pretraining"),
        ({"part-00": {"caption": CAPTIONS, "image_path": "a.jpg"}}, "pretraining"),
        ({"sizes.json": {}, "0.tar": ""}, "webdataset"),
        ({"dataset_dict.json": {}}, "datasets"),
    ],
)
def test_formats_of_folders(tmp_path, files, expected):
    for name, content in files.items():
        write(tmp_path / "data" / name, content)
    assert detect_format(tmp_path / "data") == expected


@pytest.mark.parametrize(
    "files",
    [{"a.txt": "just text"}, {"a.jsonl": {"captions": 3}}, {"a.json": "[]"}, {"a.json": "{"}, {"a/b.jsonl": {}}, {}],
)
def test_what_cannot_be_told_is_asked_for(tmp_path, files):
    for name, content in files.items():
        write(tmp_path / "data" / name, content)
    (tmp_path / "data").mkdir(exist_ok=True)
    file = next((f for f in (tmp_path / "data").iterdir() if f.is_file()), tmp_path / "data")
    for source in (file, tmp_path / "data"):
        with pytest.raises(
            ValueError, match=r"it cannot be seen which format .* has; format= names it: ccrk, xflickr"
        ):
            read_corpus(source)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere.*format=.datasets."):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="names no file"):
        read_corpus(str(tmp_path / "*.tar"))
    with pytest.raises(ValueError, match="read_corpus knows no format 'coco2017', but ccrk, xflickrco"):
        read_corpus(tmp_path, format="coco2017")
    with pytest.raises(ValueError, match="stream_corpus knows no format 'wit', but ccrk, pretraining"):
        stream_corpus(tmp_path, format="wit")
    with pytest.raises(ValueError, match="the format 'ccrk' has no option 'split'; it has images, languages, sources"):
        read_corpus(tmp_path, format="ccrk", split="train")
    with pytest.raises(ValueError, match="'ccrk' has no option 'columns'; it has images, check_images, sources"):
        stream_corpus(tmp_path, format="ccrk", columns={"image": "x"})
    assert set(STREAMS) <= set(READERS)


# --- streams ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ccrk", "pretraining", "webdataset"])
def corpus(request, tmp_path) -> tuple[str, Path]:
    """23 photos in three files; one caption is empty, and in the files of lines one line is cut off."""
    import io
    import tarfile

    texts = {n: {"en": f"photo {n}", "de": "" if n == 4 else f"Foto {n}"} for n in range(23)}
    for part in range(3):
        numbers = range(part, 23, 3)
        if request.param == "ccrk":
            records = [{"image": f"{n}.jpg", "id": n, "captions": texts[n]} for n in numbers]
        else:
            records = [{"image": PHOTO, "id": n, "caption": texts[n]} for n in numbers]
        if request.param != "webdataset":
            write(tmp_path / "data" / f"{part}.jsonl", *records, *(["{cut off"] if part == 1 else []))
            continue
        (tmp_path / "data").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "data" / f"{part}.tar", "w") as tar:
            for n in numbers:
                for name, data in ((f"{n}.jpg", b"photo"), (f"{n}.json", json.dumps({"captions": texts[n]}).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return request.param, tmp_path / "data"


def test_streams_of_files(corpus):
    name, folder = corpus
    stream = stream_corpus(folder, format=name, seed=3, buffer_size=5)
    orders = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        rows = list(stream)
        assert sorted(int(row["image_id"]) for row in rows) == list(range(23))
        assert stream.skipped == {"caption empty": 1, **({} if name == "webdataset" else {"record is not JSON": 1})}
        orders.append([row["image_id"] for row in rows])
    assert orders[0] != orders[1]
    image = rows[0]["image"]
    assert image == str(folder / f"{rows[0]['image_id']}.jpg") if name == "ccrk" else len(image.read()) in (5, 512)
    copy = pickle.loads(pickle.dumps(stream))  # noqa: S301
    assert [row["image_id"] for row in copy] == orders[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_of_files_in_batches(corpus, workers):
    name, folder = corpus
    stream = stream_corpus(str(folder / "*"), format=name, languages=["de"], buffer_size=5)
    report, read = SkipReport(), []
    for rank in range(2):
        batches = BatchStream(stream, 3, rank, 2, epochs=1)
        for batch in DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=same):
            report.merge(batch.skipped)
            read += batch
    assert sorted(int(row["image_id"]) for row in read) == [n for n in range(23) if n != 4]
    expected = {"caption empty": 1, "image without captions": 1, "language not wanted": 23}
    assert report == {**expected, **({} if name == "webdataset" else {"record is not JSON": 1})}


def test_a_stream_looks_for_images_only_when_asked(tmp_path):
    path = write(tmp_path / "t.jsonl", {"image": "gone.jpg", "captions": CAPTIONS})
    assert len(list(stream_corpus(path))) == 1
    stream = stream_corpus(path, check_images=True)
    assert list(stream) == [] and stream.skipped == {"image file missing": 1}


def test_reading_opens_no_image(corpus, monkeypatch):
    name, folder = corpus
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("an image was opened"))
    options = {"check_images": False} if name != "webdataset" else {}
    if name == "ccrk":
        (folder / "1.jsonl").write_text((folder / "1.jsonl").read_text().replace("{cut off", ""))
        assert len(read_corpus(folder / "1.jsonl", **options)) == 8
    else:
        assert len(read_corpus(folder, **options)) == 23
    assert len(list(stream_corpus(folder, format=name))) == 23
