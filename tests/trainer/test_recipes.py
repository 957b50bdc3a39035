"""Recipes: the paper's numbers are in them, wrong keys are named, and what a run will be is said beforehand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from ccrk import CCRkForPreTraining, CCRkModel, CCRkTrainer
from ccrk.cli.main import main
from ccrk.trainer.estimate import (
    activation_bytes,
    count_parameters,
    planned_config,
    planned_model,
)
from ccrk.trainer.options import FIELDS, TrainOptions
from ccrk.trainer.recipes import load_recipe, recipe_names, recipe_table, recipe_text, resolve
from ccrk.trainer.run import training_arguments

HERE = Path(__file__).parent
PRETRAINING = {"pretrain-2m-6", "pretrain-2m-10", "pretrain-3m-6", "pretrain-3m-10"}
SIX, TEN = {"zh", "ja", "en", "de", "fr", "cs"}, {"cs", "de", "en", "es", "fr", "id", "ja", "ru", "tr", "zh"}


def given(name: str) -> dict:
    """What a recipe leaves to the user."""
    needs = {"data": ["somewhere"], "model": "start", "out": "out", "languages": ["de"], "split": ["train"]}
    read = load_recipe(name)
    return {"out": "out"} | {option: needs[option] for option in read.needs}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_and_makes_arguments(name):
    options, remarks = resolve(given(name), name)
    options.bf16 = False  # whether it can be had depends on the machine
    args = training_arguments(options)
    assert not remarks
    assert args.learning_rate == options.lr and args.max_grad_norm == options.clip
    assert load_recipe(name).description and "data" in load_recipe(name).needs


@pytest.mark.parametrize("name", sorted(PRETRAINING))
def test_pretraining_has_the_papers_numbers(name):
    options, _ = resolve(given(name), name)
    expected = {
        "lr": 1e-4, "epochs": 30, "warmup": 0.0300625, "batch_size": 128, "weight_decay": 0.01, "image_size": 224,
        "new_layer_multiplier": 2, "betas": [0.9, 0.98], "clip": 1, "max_length": 40, "max_words": 40,
        "augmentation": "pretrain", "variant": "official", "mask_ratio": 0.4, "max_masks": 12, "mlm_weight": 1,
        "temperature_range": [0.001, 0.5], "position_offset": 0, "text_layers": [1, 3, 5, 7, 9, 11],
        "fusion_layers": [13, 15, 17, 19, 21, 23], "decay_rules": "official", "clean_text": True,
    }  # fmt: skip
    assert {key: getattr(options, key) for key in expected} == expected
    assert set(options.languages) == (TEN if name.endswith("10") else SIX)
    photos = 1_863_804 if "2m" in name else 3_309_520
    assert abs(options.max_steps - 30 * photos / 128) < 30


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("finetune-xflickrco-en", {"lr": 3e-5, "epochs": 10, "batch_size": 64, "max_length": 80, "max_words": 80}),
        ("finetune-xflickrco-fewshot", {"lr": 1e-6, "epochs": 60, "batch_size": 64, "languages": ["de"]}),
        ("finetune-wit", {"lr": 3e-5, "epochs": 5, "batch_size": 80, "max_length": 80, "rerank": 128}),
        ("finetune-multi30k-en", {"epochs": 10, "max_length": 40, "max_words": 30, "languages": ["en"]}),
        ("finetune-multi30k-other", {"lr": 3e-5, "languages": ["de"], "rerank": 128}),
        ("finetune-multi30k-all", {"languages": ["en", "de", "fr", "cs"], "max_words": 30}),
        ("finetune-coco-en", {"rerank": 256, "max_words": 30, "languages": ["en"], "split": ["train"]}),
        ("finetune-coco-ja", {"rerank": 256, "languages": ["ja"], "format": ["yjcaptions"], "split": None}),
        ("finetune-coco-zh", {"rerank": 256, "languages": ["zh"], "format": ["coco-cn"]}),
        ("finetune-coco-all", {"languages": ["en", "ja", "zh"], "format": ["karpathy", "yjcaptions", "coco-cn"]}),
    ],
)
def test_finetuning_has_the_papers_numbers(name, expected):
    options, _ = resolve(given(name), name)
    common = {
        "image_size": 384, "augmentation": "finetune", "mlm_weight": 0, "variant": "one-to-one", "clip": 0,
        "captions_as_rows": True, "warmup": 0.1, "weight_decay": 0.01, "betas": [0.9, 0.98], "bf16": False,
        "new_layer_multiplier": 1, "temperature_range": None,
    }  # fmt: skip
    assert {key: getattr(options, key) for key in common | expected} == common | expected


def test_every_recipe_says_where_it_is_from():
    for name in recipe_names():
        text = (HERE.parents[1] / "trainer" / "recipes" / f"{name}.yaml").read_text()
        comments = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
        assert "authors" in comments or "As " in comments or "Ours" in comments, name


def test_words_of_the_command_line_override(tmp_path):
    options, _ = resolve({**given("finetune-coco-en"), "lr": 1.0, "rerank": 3}, "finetune-coco-en")
    assert (options.lr, options.rerank, options.epochs) == (1.0, 3, 10)
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: small-cpu\ndata: a.jsonl\nout: x\nepochs: 2\nlr: 1e-5\nset: {adam_epsilon: 1e-6}\n")
    options, _ = resolve({"set": {"full_determinism": True}}, str(mine))
    assert (options.data, options.epochs, options.lr) == (["a.jsonl"], 2.0, 1e-5)  # YAML reads 1e-5 as a word
    assert options.set == {"adam_epsilon": 1e-6, "full_determinism": True}
    assert options.freeze == "towers"
    options, remarks = resolve({"model": "there"}, str(mine))
    assert options.image_tower is None and "image_tower" in remarks[0]


def test_a_resolved_recipe_reads_back_as_the_same(tmp_path):
    options, _ = resolve({**given("small-gpu"), "columns": {"image": "Foto"}, "text_prefix": "query: "}, "small-gpu")
    (tmp_path / "r.yaml").write_text(recipe_text(options, "two\nlines"))
    again, _ = resolve({}, str(tmp_path / "r.yaml"))
    assert asdict(again) == asdict(options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown key 'lerning_rate'"),
        ("freze: image", "unknown key 'freze' (did you mean 'freeze'?)"),
        ("freeze: everything", "freeze is 'everything'; it is one of none, full, image"),
        ("epochs: many", "epochs is 'many', but it takes a number"),
        ("batch_size: 1.5", "batch_size is 1.5, but it takes a whole number"),
        ("bf16: 1", "bf16 is 1; it is true or false"),
        ("languages: [en, no]", "put the word in quotes"),
        ("lr: [1, 2]", "lr is a list"),
        ("text_layers: x-1", "text_layers is 'x-1'"),
        ("set: 3", "set is 3; it is a mapping"),
        ("needs: {modle: x}", "unknown option 'modle' (did you mean 'model'?)"),
        ("base: small-cup", "no recipe 'small-cup' to change (did you mean 'small-cpu'?)"),
        ("- a", "is not a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        load_recipe(str(tmp_path / "r.yaml"))
    assert message in str(error.value) and "r.yaml" in str(error.value)


def test_a_recipe_runs_no_code(tmp_path):
    (tmp_path / "r.yaml").write_text("data: !!python/object/apply:os.system ['touch harm']")
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_the_table_has_every_recipe():
    lines = recipe_table().splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()


# --- what a run will be -------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path, make_model, processor):
    model = make_model()
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def test_parameters_are_those_that_will_learn(tmp_path, start, rows, processor):
    for settings in (
        {},
        {"freeze": "image", "mlm_weight": 0.0},
        {"freeze_parameters": ["stages[.]0[.]", "embeddings"], "matching_weight": 0.0, "mlm_weight": 0.0},
        {"lora": "all-linear", "lora_rank": 2},
    ):
        options = TrainOptions(data=["x"], model=str(start), out=str(tmp_path / "out"), **settings)
        model_class = CCRkForPreTraining if options.mlm_weight else CCRkModel
        counted = count_parameters(planned_model(options, planned_config(options)))
        real = model_class.from_pretrained(start)
        trainer = CCRkTrainer(
            model=real, args=training_arguments(options), train_dataset=rows, processing_class=processor
        )
        parameters = list(trainer.model.parameters())
        assert counted.total == sum(p.numel() for p in parameters)
        assert counted.learning == sum(p.numel() for p in parameters if p.requires_grad)
        assert sum(total for total, _ in counted.parts.values()) == counted.total


def test_what_autograd_keeps_is_what_it_keeps_on_a_cpu(start):
    """Traced without numbers, against the same count over a real pass."""
    from ccrk.trainer.estimate import KeptBytes

    options = TrainOptions(data=["x"], model=str(start), out="out")
    model = planned_model(options, planned_config(options))
    real = CCRkModel.from_pretrained(start).train()
    with KeptBytes(real) as kept:
        real.get_image_features(torch.zeros(6, 3, 32, 32))
    assert activation_bytes(model, 6, "images") == (pytest.approx(kept.total, rel=0.02), 0)
    assert 0 < sum(activation_bytes(model, 6, "images", checkpointing=True)) < kept.total
    model.retriever.vision_model.requires_grad_(False)
    assert activation_bytes(model, 6, "images")[0] < 0.1 * kept.total


def test_dry_run_says_what_the_run_will_be(tmp_path, start, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [{"image": f"{i}.png", "captions": {"en": f"red dog {i}", "de": "rot " * 40}} for i in range(10)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for i in range(10):
        Path(f"{i}.png").write_bytes(b"no photo: a dry run opens none")
    words = ["train", "--dry-run", "--data", "data.jsonl", "--model", "start", "--out", "out", "--batch-size", "4"]
    assert main([*words, "--epochs", "3", "--max-length", "12"]) == 0
    printed = capsys.readouterr().out
    assert "rows              10, of which 2 are left out of each epoch" in printed
    assert "steps             2 an epoch, 6 in all (3 epochs)" in printed
    assert "longest 12 (20 texts sampled; 10 of them longer than --max-length)" in printed
    assert "batch             4 photos with up to 2 captions" in printed
    assert "memory            about" in printed and not Path("out").exists()
    recipe = yaml.safe_load(printed[printed.index("# the resolved recipe") :])
    assert recipe["epochs"] == 3.0 and set(recipe) == set(FIELDS) - {"resume"}
    assert main([*words, "--stream", "--max-steps", "5"]) == 0
    assert "steps             5 in all, of a stream" in capsys.readouterr().out


@pytest.mark.slow  # measures a process's memory, which a loaded machine disturbs
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["mini_batch=8"],
        pytest.param(["activation_checkpointing=true"], marks=pytest.mark.slow),
        pytest.param(["freeze=towers"], marks=pytest.mark.slow),
        pytest.param(["lora=all-linear"], marks=pytest.mark.slow),
    ],
    ids=lambda words: "-".join(words) or "plain",
)
def test_memory_is_as_estimated(tmp_path, words):
    """Within a factor of 1.4 of the growth of the peak resident memory of a real run of two steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # without this, holes between blocks count as taken; with adapters they are as large as what is needed
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, "-P", HERE / "memory.py", tmp_path, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1 / 1.4 < found["taken"] / found["estimated"] < 1.4, found


def test_the_recipes_are_beside_the_package():
    assert importlib.util.find_spec("ccrk.trainer.recipes").origin.endswith("recipes.py")
    assert len(recipe_names()) == 16 and PRETRAINING.issubset(recipe_names())
