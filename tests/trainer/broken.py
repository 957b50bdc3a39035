"""A corpus of JSON lines of which one row in twenty is broken, in fifteen ways; and a training that meets it.

`torchrun --nproc_per_node 2 broken.py OUTPUT_DIR CORPUS READING` trains in two processes and writes what was counted.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ccrk.data.report import (
    CAPTION_EMPTY,
    IMAGE_MISSING,
    IMAGE_OUTSIDE,
    NO_CAPTIONS,
    NOT_A_RECORD,
    NOT_JSON,
    OTHER_LANGUAGE,
)

LANGUAGES = ["en", "de"]
BATCH = 50
# kind -> what is counted when files are looked for while reading, and when they are not (as in streams)
KINDS = {
    "missing file": ([IMAGE_MISSING], ["file missing"]),
    "folder": ([IMAGE_MISSING], ["is a folder"]),
    "empty file": (["empty"], None),
    "web page": (["web page"], None),
    "truncated JPEG": (["truncated"], None),
    "corrupt PNG": (["corrupt data"], None),
    "text as image": (["not an image"], None),
    "decompression bomb": (["too many pixels"], None),
    "outside the folder": ([IMAGE_OUTSIDE], None),
    "one empty caption": ([CAPTION_EMPTY], None),
    "control characters": ([CAPTION_EMPTY, NO_CAPTIONS], None),
    "other language": ([OTHER_LANGUAGE, NO_CAPTIONS], None),
    "no captions": ([NO_CAPTIONS], None),
    "not JSON": ([NOT_JSON], None),
    "no image": ([NOT_A_RECORD], None),
}
USABLE = ("one empty caption",)  # what is left of them is trained on
UNREADABLE = ("not JSON", "no image")  # an error of the whole file where it is read strictly
# of these no row is made
UNREAD = ("outside the folder", "other language", "no captions", *UNREADABLE)


def _picture(place: int, kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(place)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((40, 48), Image.Resampling.BILINEAR).save(buffer, kind)
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _spoiled(kind: str, place: int) -> bytes:
    if kind == "corrupt PNG":
        data = bytearray(_picture(place, "PNG"))
        data[60:90] = bytes(30)
        return bytes(data)
    return {
        "empty file": b"",
        "web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "truncated JPEG": _picture(place)[:400],
        "text as image": b"a photo of a dog",
        "decompression bomb": _bomb(),
    }.get(kind, _picture(place))


def write_corpus(folder: Path, count: int, parts: int = 4) -> Counter:
    """Writes photos and files of JSON lines; how many rows are broken in which way."""
    (folder / "photos").mkdir(parents=True)
    (folder / "folder.jpg").mkdir()
    made, lines, kinds = Counter(), [], list(KINDS)
    words = ["boat", "dog", "red", "cat"]
    for place in range(count):
        kind = kinds[place // 20 % len(kinds)] if place % 20 == 7 else ""
        made[kind] += bool(kind)
        name = f"photos/{place}.jpg"
        captions = {"en": f"{words[place % 4]} {place}", "de": f"Hund {place}"}
        if kind == "one empty caption":
            captions["de"] = "  "
        elif kind == "control characters":
            captions = {"en": "\x00\x07"}
        elif kind == "other language":
            captions = {"xx": "nobody reads this"}
        elif kind == "no captions":
            captions = {}
        record = {"image": name, "id": f"photo{place}", "captions": captions}
        if kind == "folder":
            record["image"] = "folder.jpg"
        elif kind == "outside the folder":
            record["image"] = "../../secret.jpg"
        elif kind == "no image":
            del record["image"]
        elif kind != "missing file":
            (folder / name).write_bytes(_spoiled(kind, place))
        lines.append(json.dumps(record)[: 30 if kind == "not JSON" else None])
    for part in range(parts):
        (folder / f"part{part}.jsonl").write_text("\n".join(lines[part::parts]) + "\n")
    del made[""]
    return made


def expected(made: Counter, checked: bool) -> dict[str, int]:
    """What has to be counted of such a corpus, with files looked for or not."""
    counts: Counter = Counter()
    for kind, number in made.items():
        when_checked, when_not = KINDS[kind]
        for cause in when_checked if checked or when_not is None else when_not:
            counts[cause] += number
    return dict(counts)


def read(corpus: Path):
    """All rows of the corpus; lines that hold no record are counted."""
    from ccrk.data.caption_files import iter_captions
    from ccrk.data.report import SkipReport
    from ccrk.data.rows import CaptionDataset

    report, rows = SkipReport(), []
    for path in sorted(corpus.glob("*.jsonl")):
        rows += iter_captions(path, report, languages=LANGUAGES, strict=False)
    return CaptionDataset(rows, report)


def train(out: Path, corpus: Path, reading: str, workers: int) -> dict:
    """One epoch; what was counted by the reader and by the trainer, and how many rows were used in how many steps."""
    import tiny

    from ccrk import CCRkTrainer, CCRkTrainingArguments
    from ccrk.data.corpora import stream_corpus

    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if reading == "stream":
        dataset = stream_corpus(corpus, format="ccrk", languages=LANGUAGES, buffer_size=100)
        number = sum(1 for record in dataset.records(0) if isinstance(record, dict))
        of_reader, length = {}, {"max_steps": -(-number // BATCH)}
    else:
        dataset = read(corpus)
        of_reader, length = dict(dataset.skipped), {"num_train_epochs": 1}
        number = len(dataset)
    processor = tiny.make_processor()
    args = CCRkTrainingArguments(
        str(out),
        per_device_train_batch_size=BATCH // world_size,
        dataloader_num_workers=workers,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        **length,
    )
    model = tiny.make_model(processor)
    trainer = CCRkTrainer(model=model, args=args, train_dataset=dataset, processing_class=processor)
    used = tiny.note_used(trainer)
    trainer.train()
    counts = {"used": used, "rows": number, "steps": trainer.state.global_step, "reader": of_reader}
    return counts | {"all": dict(trainer.all_skipped()), "own": dict(trainer.skipped)}


def main(out: Path, corpus: Path, reading: str) -> None:
    """Trains and writes down what each process has counted."""
    torch.set_num_threads(1)
    result = train(out, corpus, reading, workers=1)
    (out / f"{reading}-{os.environ['RANK']}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
