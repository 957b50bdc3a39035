"""An evaluation that was cut off goes on: same figures, nothing computed twice, nothing confused."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ccrk.evaluation import reranking
from ccrk.evaluation.fingerprints import TOWERS, data_fingerprint
from ccrk.evaluation.retrieval import evaluate_retrieval

SCRIPT = Path(__file__).resolve().parent / "evaluate_process.py"
spec = importlib.util.spec_from_file_location("evaluate_process", SCRIPT)
evaluate_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evaluate_process)

OPTIONS = {"rerank": 4, "batch_size": 5}


class Counted:
    """Counts the images and texts that pass through the towers, and the pairs that are scored."""

    def __init__(self, model, monkeypatch):
        self.images = self.texts = self.pairs = 0
        retriever = model.ccrk
        image, text, match = retriever.vision_model.forward, retriever.text_model.forward, retriever.match_rows

        def images(pixels, *args, **kwargs):
            self.images += len(pixels)
            return image(pixels, *args, **kwargs)

        def texts(ids, *args, **kwargs):
            self.texts += len(ids)
            return text(ids, *args, **kwargs)

        def pairs(*args, **kwargs):
            self.pairs += len(args[3])
            return match(*args, **kwargs)

        monkeypatch.setattr(retriever.vision_model, "forward", images)
        monkeypatch.setattr(retriever.text_model, "forward", texts)
        monkeypatch.setattr(retriever, "match_rows", pairs)

    def taken(self) -> tuple[int, int, int]:
        counts = self.images, self.texts, self.pairs
        self.images = self.texts = self.pairs = 0
        return counts


@pytest.fixture
def model(lively_model):
    return lively_model


def test_what_is_there_is_not_computed_again(rows, processor, model, tmp_path, monkeypatch):
    plain = evaluate_retrieval(model, processor, rows, details=True, **OPTIONS)
    counted = Counted(model, monkeypatch)
    first = evaluate_retrieval(model, processor, rows, details=True, cache=tmp_path, **OPTIONS)
    images, texts, pairs = counted.taken()
    assert (images, texts) == (len(rows), first["texts"]) and pairs
    again = evaluate_retrieval(model, processor, rows, details=True, cache=tmp_path, **OPTIONS)
    assert counted.taken() == (0, 0, 0)
    assert plain == first == again
    deeper = evaluate_retrieval(model, processor, rows, cache=tmp_path, rerank=6, batch_size=5)
    images, texts, pairs = counted.taken()
    assert (images, texts) == (0, 0) and pairs  # other pairs, the same features
    assert deeper["reranked"] == evaluate_retrieval(model, processor, rows, rerank=6, batch_size=5)["reranked"]


def test_other_weights_rows_and_options_have_other_names(rows, processor, model, tmp_path, monkeypatch):
    counted = Counted(model, monkeypatch)
    evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS)
    counted.taken()
    evaluate_retrieval(model, processor, rows, cache=tmp_path, bf16=True, **OPTIONS)
    assert counted.taken()[0] == len(rows)
    changed = [{**rows[0], "captions": [{"language": "en", "text": "another"}]}, *rows[1:]]
    evaluate_retrieval(model, processor, changed, cache=tmp_path, **OPTIONS)
    assert counted.taken()[0] == len(rows)
    with torch.no_grad():
        model.ccrk.itm_head[0].weight.mul_(2)
    evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS)
    images, texts, pairs = counted.taken()
    assert (images, texts) == (0, 0) and pairs  # only the second stage has changed
    with torch.no_grad():
        model.ccrk.visual_projection[0].weight.mul_(-1)
    evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS)
    assert counted.taken()[0] == len(rows)


def test_names_tell_languages_and_processors_apart(rows, processor, model):
    towers = list(TOWERS.values())
    name = data_fingerprint(model, processor, rows, towers)
    assert name == data_fingerprint(model, copy.deepcopy(processor), [dict(row) for row in rows], towers)
    relabelled = [
        {**rows[0], "captions": [{**caption, "language": "xx"} for caption in rows[0]["captions"]]},
        *rows[1:],
    ]
    darker = copy.deepcopy(processor)
    darker.image_processor.image_mean = [0.25, 0.25, 0.25]
    shorter = copy.deepcopy(processor)
    shorter.max_words = 2
    others = [
        data_fingerprint(model, processor, relabelled, towers),
        data_fingerprint(model, darker, rows, towers),
        data_fingerprint(model, shorter, rows, towers),
        data_fingerprint(model, processor, rows[:-1], towers),
    ]
    assert len({name, *others}) == 5


@pytest.mark.parametrize("calls", [1, 2, 4, 6, 9, 12])
def test_a_run_that_fails_in_the_middle_goes_on(rows, processor, model, tmp_path, monkeypatch, calls):
    monkeypatch.setattr(reranking, "IMAGES_AT_ONCE", 2)
    plain = evaluate_retrieval(model, processor, rows, **OPTIONS)
    counted = Counted(model, monkeypatch)
    evaluate_retrieval(model, processor, rows, **OPTIONS)
    total = counted.taken()
    left = [calls]

    def limited(name, owner):
        whole = getattr(owner, name)

        def forward(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, forward)

    with monkeypatch.context():
        for name, owner in (("forward", model.ccrk.vision_model), ("forward", model.ccrk.text_model)):
            limited(name, owner)
        limited("match_rows", model.ccrk)
        with pytest.raises(KeyboardInterrupt):
            evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS)
    done = counted.taken()
    left[0] = 10**9
    assert evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS) == plain
    again = counted.taken()
    repeated = [a + b - c for a, b, c in zip(done, again, total, strict=True)]
    assert repeated[:2] == [0, 0] and 0 <= repeated[2] <= 2 * len(rows) * 3  # the pairs of two images at most


def test_killed_for_real(tmp_path):
    """SIGKILL while it computes; then again to the end."""
    evaluate_process.write_rows(tmp_path)
    words = [sys.executable, "-P", str(SCRIPT), "alone", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*words, "0.4"], env=environment)  # slow, so that it can be met in the middle
    pieces = lambda: sorted((tmp_path / "cache").rglob("*.safetensors"))  # noqa: E731
    end = time.time() + 120
    while len(pieces()) < 3 and time.time() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in pieces()}
    assert 3 <= len(before) <= 6
    subprocess.run([*words, "0"], env=environment, check=True)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert len(pieces()) > len(before)
    report = json.loads((tmp_path / "alone.json").read_text())
    rows = json.loads((tmp_path / "rows.json").read_text())
    torch.set_num_threads(1)
    assert report == json.loads(json.dumps(evaluate_process.report(rows, None)))


def test_a_piece_that_is_not_whole_is_computed_again(rows, processor, model, tmp_path, caplog, monkeypatch):
    first = evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS)
    pieces = sorted(tmp_path.rglob("*.safetensors"))
    for piece in (pieces[0], pieces[-1]):
        piece.write_bytes(piece.read_bytes()[:-7])
    counted = Counted(model, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS) == first
    assert caplog.text.count("cannot be read") == 2 and str(pieces[0]) in caplog.text
    images, texts, _ = counted.taken()
    assert images == 5 and 0 < texts <= 5  # the first piece is one of images, the last one of texts


def test_broken_photos_are_counted_again(rows, processor, model, tmp_path):
    paths = []
    for i, row in enumerate(rows):
        row["image"].save(tmp_path / f"{i}.png")
        paths.append({**row, "image": str(tmp_path / f"{i}.png")})
    (tmp_path / "3.png").write_bytes(b"no image")
    options = {"on_broken": "skip", "cache": tmp_path / "cache", **OPTIONS}
    first = evaluate_retrieval(model, processor, paths, **options)
    assert first["skipped"]["images"] == 1
    assert evaluate_retrieval(model, processor, paths, **options) == first


def test_no_room_keeps_what_was_computed(rows, processor, model, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(OSError, match="cannot be written.*name another cache folder"):
            evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.partial*"))
    plain = evaluate_retrieval(model, processor, rows, **OPTIONS)
    assert evaluate_retrieval(model, processor, rows, cache=tmp_path, **OPTIONS) == plain
