"""`ccrk train`: trains, writes model and figures, takes recipes, says beforehand what it will be, in any processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, pipeline

from ccrk import CCRkModel, CCRkRetrievalPipeline
from ccrk.cli.main import build_parser, main
from ccrk.hub_cards.cards import check_card
from ccrk.trainer.options import FIELDS, GROUPS, option_table

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent.parent / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, photos and captions, which is also where the command runs."""
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    CCRkRetrievalPipeline(model=model, processor=processor).save_pretrained(tmp_path / "start")
    (tmp_path / "photos").mkdir()
    lines = []
    for i, noise in enumerate(np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i}.png")
        captions = {"en": [f"boat {i}", f"red boat {i}"], "de": f"Boot {i}"}
        lines.append(json.dumps({"image": f"photos/{i}.png", "id": str(i), "captions": captions}))
    lines.append(json.dumps({"image": "photos/gone.png", "captions": {"en": "nothing"}}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


START = ["--data", "data.jsonl", "--model", "start", "--out", "out", "--threads", "1"]
SHORT = ["--epochs", "1", "--batch-size", "3", "--rerank", "2"]


def train(*words: str) -> int:
    return main(["train", *START, *SHORT, *words])


def test_train_evaluate_search(place, capsys):
    assert train("--eval", "data.jsonl", "--freeze", "towers", "--cache-features") == 0
    printed = capsys.readouterr().out
    assert "left out: 1 x image file missing" in printed
    assert "MRV (std)" in printed
    report = json.loads((place / "out" / "evaluation.json").read_text())
    assert set(report["reranked"]["languages"]) == {"de", "en"}
    assert report["languages"]["en"]["queries"] == 6  # the first caption of each photo alone
    assert report["cost"]["cpu_s"] > 0
    card = check_card(place / "out")
    assert {"results/evaluation.json", "results/training.json"} <= set(card.files)
    text = card.files["README.md"].decode()
    assert "Trained on captions in English, German." in text and "| files | data.jsonl |" in text
    assert "of the captions among 6 photos" in text and str(place) not in text
    search = pipeline("ccr-retrieval", model=str(place / "out"), gallery=place / "photos")
    assert len(search("boat 3", top_k=2, rerank=2)) == 2


def test_what_was_resolved_is_a_recipe_that_repeats_the_run(place):
    assert train("--lr", "1e-3", "--seed", "5", "--set", "adam_epsilon=1e-6") == 0
    first = load_file(place / "out" / "model.safetensors")
    written = yaml.safe_load((place / "out" / "training_config.yaml").read_text())
    assert set(written) == set(FIELDS) - {"resume"}
    assert written["lr"] == 1e-3 and written["set"] == {"adam_epsilon": 1e-6} and written["data"] == ["data.jsonl"]
    assert main(["train", "--recipe", "out/training_config.yaml", "--out", "again"]) == 0
    second = load_file(place / "again" / "model.safetensors")
    assert all((first[name] == second[name]).all() for name in first)
    assert main(["train", "--recipe", "out/training_config.yaml", "--out", "other", "--lr", "2e-3"]) == 0
    third = load_file(place / "other" / "model.safetensors")
    assert any((first[name] != third[name]).any() for name in first)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks by the old name
def test_adapters_end_in_a_plain_model_and_in_a_folder(place):
    assert train("--lora", "attention", "--lora-rank", "2", "--mlm-weight", "0", "--eval", "data.jsonl") == 0
    assert isinstance(AutoModel.from_pretrained(place / "out"), CCRkModel)
    before, after = (load_file(place / name / "model.safetensors") for name in ("start", "out"))
    assert {"ccrk." + name for name in after if not name.startswith("ccrk.")} <= before.keys()
    assert (place / "out" / "adapter" / "adapter_model.safetensors").is_file()
    card = check_card(place / "out" / "adapter")
    assert "These are adapters" in card.files["README.md"].decode()
    # loaded as the card says, they give the model that was trained
    base = getattr(transformers, card.options.adapter).from_pretrained(place / "start")
    merged = PeftModel.from_pretrained(base, place / "out" / "adapter").merge_and_unload().state_dict()
    assert merged.keys() >= after.keys()
    assert all(torch.allclose(merged[name], weight, atol=1e-6) for name, weight in after.items())


def test_evaluation_during_training_chooses_and_stops(place, capsys):
    words = ["--eval", "data.jsonl", "--eval-steps", "1", "--best-metric", "ir@1_mean", "--early-stopping", "2"]
    assert train(*words, "--epochs", "20", "--lr", "0") == 0  # nothing changes, so nothing becomes better
    state = json.loads(next((place / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["best_global_step"] == 1
    assert "MRV (std)" in capsys.readouterr().out
    assert max(int(p.name.split("-")[1]) for p in (place / "out").glob("checkpoint-*")) <= 3


def test_a_stream_several_sources_and_single_captions(place, capsys):
    assert train("--stream", "--max-steps", "2") == 0
    assert train("--data", "data.jsonl", "--captions-as-rows", "--variant", "one-to-one", "--log-steps", "1") == 0
    printed = capsys.readouterr().out
    assert "each caption is an example of its own: 36" in printed  # two sources: each caption twice
    assert train("--stream") == 2
    assert "--stream needs --max-steps" in capsys.readouterr().err


def test_other_sizes_of_photos_and_texts(place):
    assert train("--image-size", "64", "--max-length", "9", "--clean-text", "--max-words", "4") == 0
    model = AutoModel.from_pretrained(place / "out")
    assert model.config.image_size == 64
    saved = json.loads((place / "out" / "processor_config.json").read_text())
    assert (saved["max_length"], saved["max_words"], saved["clean_text"]) == (9, 4, True)
    assert saved["image_processor"]["size"] == {"height": 64, "width": 64}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "d.jsonl", "--out", "o"], "say what to start from: --model"),
        (["--model", "m", "--out", "o"], "what is missing: --data"),
        ([*START, "--text-prefix", "query: ", "--pooling", "mean"], "--pooling, --text-prefix: these shape a new"),
        ([*START, "--set", "learning_rate=1"], "--set learning_rate: this is --lr"),
        ([*START, "--set", "adam_epsilom=1"], "did you mean 'adam_epsilon'?"),
        ([*START, "--set", "adam_epsilon"], "is not of the form NAME=VALUE"),
        ([*START, "--early-stopping", "2"], "--early-stopping needs something to evaluate on: --eval"),
        ([*START, "--format", "ccrk", "csv"], "--format names 2, but there are 1 sources"),
        ([*START, "--recipe", "pretrain-2m-60"], "did you mean 'pretrain-2m-6'?"),
        ([*START, "--betas", "0.9"], "--betas takes two numbers"),
        ([*START, "--batch-size", "0"], "--batch-size is 0"),
        (["--recipe", "finetune-multi30k-other", "--data", "d", "--out", "o"], "--languages (de, fr or cs)"),
        (["--recipe", "small-cpu"], "the recipe 'small-cpu' leaves to you: --data (captions in any format), --out"),
    ],
)
def test_errors_name_what_would_do(place, capsys, words, message):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_layers_are_told_apart_from_nonsense(capsys):
    args = build_parser("train").parse_args(["train", "--text-layers", "0-2,5"])
    assert args.text_layers == [0, 1, 2, 5]
    with pytest.raises(SystemExit):
        build_parser("train").parse_args(["train", "--text-layers", "x-1"])
    assert "'x-1' is not a list of layers" in capsys.readouterr().err


def test_help_and_list_of_recipes(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for name in FIELDS:
        assert f"--{name.replace('_', '-')}" in shown
    assert main(["train", "--list-recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("pretrain-3m-10 ") for line in lines)
    assert all(len(line.split(None, 1)) == 2 for line in lines)


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_has_the_table_of_options(group, checkout):
    missing = f"docs/training.md: the table of '{group}' is not what option_table('{group}') gives"
    assert option_table(group) in (checkout / "docs" / "training.md").read_text(encoding="utf-8"), missing


def test_resume_is_a_command_that_can_be_given_again(place, capsys):
    assert train("--resume", "--bf16") == 0
    assert "no checkpoint in out yet: the run begins" in capsys.readouterr().out
    first = load_file(place / "out" / "model.safetensors")
    assert train("--resume", "--bf16") == 0
    assert "the run begins" not in capsys.readouterr().out
    again = load_file(place / "out" / "model.safetensors")
    assert all(first[name].equal(again[name]) for name in first)  # it was at its end


@pytest.mark.slow
def test_the_example_compares_ways(place, capsys):
    file = Path(__file__).parent.parent.parent / "examples" / "compare_runs.py"
    spec = importlib.util.spec_from_file_location("compare_runs", file)
    compare_runs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare_runs)
    ways = ["--way", "K", "", "--way", "one", "--variant one-to-one --texts-per-image 1"]
    common = ["--data", "data.jsonl", "--eval", "data.jsonl", "--model", "start", "--max-steps", "1", "--rerank", "0"]
    words = ["runs", "--seeds", "0", *ways, "--", *common, "--batch-size", "3", "--threads", "1"]
    compare_runs.main(words)
    first = capsys.readouterr().out
    assert "MRV embeddings" in first and first.count('"R@1 embeddings"') == 2
    configs = [yaml.safe_load((place / "runs" / f"{n}-0" / "training_config.yaml").read_text()) for n in ("K", "one")]
    assert [one["variant"] for one in configs] == ["balanced", "one-to-one"]
    before = (place / "runs" / "K-0" / "evaluation.json").stat().st_mtime_ns
    compare_runs.main(words)  # what is there is not run again
    assert capsys.readouterr().out == first
    assert (place / "runs" / "K-0" / "evaluation.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(place):
    """Under torchrun; only process 0 prints, and the weights are those of a single process."""
    words = [
        *START,
        *SHORT,
        "--batch-size",
        "4",
        "--eval",
        "data.jsonl",
        "--lr",
        "1e-3",
        "--warmup",
        "0",
        "--set",
        "optim=sgd",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "ccrk.cli.main", "train", *words, "--out", "two"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in ("training on 6 images", "trained: ", "MRV (std)"):
        assert done.stdout.count(line) == (2 if line == "MRV (std)" else 1), line
    assert main(["train", *words]) == 0
    one, two = (load_file(place / name / "model.safetensors") for name in ("out", "two"))
    start = load_file(place / "start" / "model.safetensors")
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert moved > 1e-4
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert json.loads((place / "two" / "evaluation.json").read_text())["arguments"]["out"] == "two"
