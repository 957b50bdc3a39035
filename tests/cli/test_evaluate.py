"""`ccrk evaluate`: figures, report, comparison, a benchmark by name, TREC files, a run that goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccrk import CCRkRetrievalPipeline
from ccrk.cli.main import main
from ccrk.evaluation.trec import read_qrels, read_run

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent.parent / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

COUNT = 12


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, photos, captions and a benchmark's files, which is also where the command runs."""
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    CCRkRetrievalPipeline(model=model, processor=processor).save_pretrained(tmp_path / "start")
    (tmp_path / "photos").mkdir()
    lines, marked = [], {"en": [], "de": []}
    for i, noise in enumerate(np.random.default_rng(0).integers(0, 255, (COUNT, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i}.png")
        captions = {"en": [f"boat {i}", f"red boat {i}"], "de": f"Boot {i}"}
        lines.append(json.dumps({"image": f"photos/{i}.png", "id": f"photo {i}", "captions": captions}))
        for tag, text in (("en", f"boat {i}"), ("de", f"Boot {i}")):
            marked[tag].append(json.dumps({"sentences": [text], "id": str(i), "img_path": f"{i}.png"}))
    lines.append(json.dumps({"image": "photos/gone.png", "captions": {"en": "nothing"}}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    for tag, of_tag in marked.items():
        (tmp_path / "marks" / tag).mkdir(parents=True)
        (tmp_path / "marks" / tag / "test.jsonl").write_text("\n".join(of_tag))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*words: str) -> int:
    return main(["evaluate", "start", "--threads", "1", *words])


def test_figures_report_and_files(place, capsys):
    words = ["--data", "data.jsonl", "--rerank", "4", "--out", "one", "--cache", "kept", "--trec", "--name", "a model"]
    assert evaluate(*words) == 0
    printed = capsys.readouterr()
    assert read_qrels(place / "one" / "de.qrels")["de:photo%203"] == {"photo%203": 1}  # no spaces in TREC files
    result = json.loads((place / "one" / "evaluation.json").read_text())[0]
    assert result["name"] == "a model" and result["reranked"]["top"] == 4 and result["images"] == COUNT
    assert result["settings"]["cpu_s"] > 0 and result["settings"]["rerank"] == 4
    assert (place / "one" / "report.html").read_text().count("<h2") > 3
    assert "left out: 1 x image file missing" in printed.out and "best 4 re-ranked by itm+sim" in printed.out
    pieces = {path: path.stat().st_mtime_ns for path in (place / "kept").rglob("*.safetensors")}
    text = (place / "data.jsonl").read_text().replace("photo ", "photo-")
    (place / "named.jsonl").write_text(text)
    words = ["--data", "named.jsonl", "--rerank", "4", "--cache", "kept", "--first-captions", "--bf16"]
    assert evaluate(*words, "--out", "two", "--trec", "--compare", "one/evaluation.json") == 0
    assert all(path.stat().st_mtime_ns == written for path, written in pieces.items())
    assert "a model" in (place / "two" / "report.md").read_text()
    result = json.loads((place / "two" / "evaluation.json").read_text())[0]
    assert result["texts"] == 2 * COUNT
    run, qrels = read_run(place / "two" / "de.run"), read_qrels(place / "two" / "de.qrels")
    for row in range(COUNT):
        query = f"de:photo-{row}"
        order = sorted(run[query], key=run[query].get, reverse=True)
        assert order == [f"photo-{i}" for i in result["items"]["found"]["de"][row]]
        assert qrels[query] == {f"photo-{row}": 1}


def test_a_benchmark_by_name(place, capsys):
    words = ["--benchmark", "xflickrco", "--images", "photos", "--captions", "marks", "--languages", "en", "de"]
    assert evaluate(*words) != 0
    assert "test.jsonl" in capsys.readouterr().err  # not the published file
    assert evaluate(*words, "--no-check", "--mrv-languages", "en", "de", "--out", "marked") == 0
    printed = capsys.readouterr().out
    assert "xFlickr&CO" in printed and "as published tables have it" in printed
    result = json.loads((place / "marked" / "evaluation.json").read_text())[0]
    assert result["benchmark"] == "xflickrco" and result["mrv"]["languages"] == ["en", "de"]
    assert evaluate(*words, "--no-check", "--protocol", "official") == 0
    assert "best 128 re-ranked by itm" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_report_what_one_does(place):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["evaluate", "start", "--data", "data.jsonl", "--rerank", "3", "--batch-size", "4", "--threads", "1"]
    done = subprocess.run(
        [*launch, "-m", "ccrk.cli.main", *words, "--out", "two"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("by embeddings") == 1
    assert main([*words, "--out", "one"]) == 0
    one, two = (json.loads((place / name / "evaluation.json").read_text())[0] for name in ("one", "two"))
    for report in (one, two):
        del report["settings"]
    assert one == two


def test_the_example_compares_precisions(place, capsys):
    file = Path(__file__).parent.parent.parent / "examples" / "compare_precision.py"
    spec = importlib.util.spec_from_file_location("compare_precision", file)
    compare_precision = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare_precision)
    compare_precision.main(["start", "--data", "data.jsonl", "--rerank", "3", "--threads", "1"])
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert lines["captions"] == str(2 * COUNT)
    assert 0 < float(lines["largest error of a similarity"]) < 0.1
    assert lines["flips beyond twice the error"] == "0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --data or --benchmark"),
        (["--data", "data.jsonl", "--benchmark", "coco"], "either --data or --benchmark"),
        (["--data", "data.jsonl", "--rerank-score", "cosine"], "--rerank-score is 'cosine'"),
        (["--data", "data.jsonl", "--protocol", "paper"], "--protocol is 'paper'"),
        (["--data", "data.jsonl", "--rerank", "-1"], "--rerank is -1; it is at least 0"),
        (["--data", "data.jsonl", "--trec"], "name a folder for them with --out"),
        (["--data", "data.jsonl", "--year", "2017"], "belong to --benchmark"),
        (["--data", "data.jsonl", "--out", "x", "--compare", "data.jsonl"], "'data.jsonl' is not JSON"),
        (["--data", "data.jsonl", "--languages", "xx"], "xx"),
        (["--benchmark", "flickr", "--images", "photos"], "there is no benchmark 'flickr'"),
    ],
)
def test_errors_name_what_would_do(place, capsys, words, message):
    assert evaluate(*words) != 0
    assert message in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    for word in ("--benchmark", "--cache", "report.html", "torchrun", "--rerank"):
        assert word in shown
