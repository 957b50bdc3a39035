"""`ccrk train` from a model folder: trains, writes model and figures, and the result can be searched."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from ccrk import CCRkRetrievalPipeline
from ccrk.cli.main import main
from ccrk.cli.train import layer_list

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent.parent / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def test_train_evaluate_search(tmp_path, capsys):
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    CCRkRetrievalPipeline(model=model, processor=processor).save_pretrained(tmp_path / "start")
    (tmp_path / "photos").mkdir()
    lines = []
    for i, noise in enumerate(np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i}.png")
        lines.append(
            json.dumps({"image": f"photos/{i}.png", "id": i, "captions": {"en": f"boat {i}", "de": f"Boot {i}"}})
        )
    lines.append(json.dumps({"image": "photos/gone.png", "captions": {"en": "nothing"}}))
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines))
    words = [
        "--data",
        str(data),
        "--eval",
        str(data),
        "--model",
        str(tmp_path / "start"),
        "--out",
        str(tmp_path / "out"),
    ]
    options = ["--epochs", "1", "--batch-size", "3", "--rerank", "2", "--freeze", "towers", "--cache-features"]
    assert main(["train", *words, *options, "--threads", "2"]) == 0
    printed = capsys.readouterr().out
    assert "left out: 1 x image file missing" in printed
    assert "MRV (std)" in printed
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(report["reranked"]["languages"]) == {"de", "en"}
    assert report["cost"]["cpu_s"] > 0
    search = pipeline("ccr-retrieval", model=str(tmp_path / "out"), gallery=tmp_path / "photos")
    assert len(search("boat 3", top_k=2, rerank=2)) == 2


def test_layer_lists():
    assert layer_list("0-2,5,7-8") == [0, 1, 2, 5, 7, 8]
    with pytest.raises(Exception, match="'x-1' is not a list of layers"):
        layer_list("x-1")


def test_nothing_to_start_from(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"x")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": "a.png", "captions": {"en": "a"}}))
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "--image-tower" in capsys.readouterr().err


def test_options_of_a_new_model_do_not_go_with_one_that_is_there(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"x")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": "a.png", "captions": {"en": "a"}}))
    words = ["--data", str(data), "--out", str(tmp_path / "out"), "--model", str(tmp_path)]
    assert main(["train", *words, "--text-prefix", "query: ", "--pooling", "mean"]) == 2
    assert "--pooling, --text-prefix: these shape a new model" in capsys.readouterr().err
