"""`ccrk publish` without a Hub: what is collected, what is refused, what is told."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ccrk import CCRkRetrievalPipeline
from ccrk.cli.main import main
from ccrk.hub_cards.collecting import collect
from ccrk.hub_cards.figures import CardError
from ccrk.hub_cards.publishing import PublishOptions, explain, make_plan

TESTS = Path(__file__).parent.parent


def load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


made = load("ccrk_tests_made_runs", TESTS / "hub_cards" / "made_runs.py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A tiny model without its pipeline, as `save_pretrained` leaves it."""
    tiny = load("ccrk_tests_tiny", TESTS / "pipelines" / "tiny.py")
    folder, processor = tmp_path_factory.mktemp("saved"), tiny.build_processor()
    tiny.build_model(len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """The same, in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def plan_of(folder, **options):
    return make_plan(PublishOptions(str(folder), "org/thing", **options), CCRkRetrievalPipeline.files_beside)


def refused(folder, **options) -> str:
    with pytest.raises(CardError) as error:
        plan_of(folder, **options)
    return str(error.value)


def test_dry_run_without_network_shows_the_plan(model, capsys):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert main(["publish", str(model), "org/thing", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "ccr_retrieval.py" in told and "(for those who load it without the package)" in told
    assert "card: made of nothing: it says that nothing was measured" in told
    assert "is not known: the Hub cannot be reached" in told
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_publishing_offline_is_one_line(model, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert main(["publish", str(model), "org/thing", "--yes"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ccrk publish: the Hub cannot be reached") and "x" * 34 not in error
    assert len(error.splitlines()) == 1


def test_the_pipeline_is_added_where_it_is_missing(model):
    plan = plan_of(model)
    config = json.loads(plan.collection.entries["config.json"].read())
    assert config["custom_pipelines"]["ccr-retrieval"]["impl"] == "ccr_retrieval.CCRkRetrievalPipeline"
    assert "ccr_retrieval.py" in plan.collection.entries and not (model / "ccr_retrieval.py").exists()


def test_what_does_not_belong_stays_and_says_why(model, tmp_path):
    (tmp_path / "private.txt").write_text("mine")
    (model / "link.json").symlink_to(tmp_path / "private.txt")
    (model / "out").symlink_to(tmp_path)
    (model / "adapter_config.json").write_text("{}")
    for name in (
        "optimizer.pt",
        "training_args.bin",
        ".env",
        "notes.txt",
        "helper.py",
        "model-00001-of-00009.safetensors",
    ):
        (model / name).write_bytes(b"x")
    (model / "checkpoint-10").mkdir()
    (model / "feature_cache").mkdir()
    found = collect(model, "model")
    why = dict(found.left_out)
    assert why["link.json"] == why["out"] == "a link out of the folder"
    assert "pickled" in why["optimizer.pt"] and "pickled" in why["training_args.bin"]
    assert why[".env"] == "hidden" and why["notes.txt"] == "no part of a model"
    assert why["helper.py"] == "code that the model does not use"
    assert why["model-00001-of-00009.safetensors"] == "weights that the index does not name"
    assert why["adapter_config.json"].startswith("of adapters, beside a whole model")
    assert "checkpoint-10/" in why and "feature_cache/" in why
    assert not set(why) & set(found.entries)


def test_shards_are_published_with_their_index(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks the weights 'model-00002-of-00002.safetensors': the folder is half made" in refused(model)
    (model / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert "model-00002-of-00002.safetensors' is cut off, or no file of weights" in refused(model)
    save_file({"b": np.zeros(3)}, model / "model-00002-of-00002.safetensors")
    found = collect(model, "model").entries
    assert {*index["weight_map"].values(), "model.safetensors.index.json"} <= set(found)
    index["weight_map"]["c"] = "../elsewhere.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks the weights '../elsewhere.safetensors'" in refused(model)


def test_half_made_folders_are_refused(model, tmp_path, capsys):
    (model / "heads_ccrk.py").unlink()
    assert "lacks the code 'heads_ccrk.py'" in refused(model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "'pytorch_model.bin' is a pickle, save as safetensors" in refused(model)
    (model / "config.json").unlink()
    assert "is no model (there is no config.json" in refused(model)
    assert main(["publish", str(tmp_path / "none"), "org/thing", "--dry-run"]) == 2
    assert "is no folder: there is nothing of that name" in capsys.readouterr().err


def test_secrets_are_refused(model):
    (model / "training_config.yaml").write_text("# a remark\nmodel: x\n# token hf_" + "a1" * 17 + "\n")
    message = refused(model)
    assert (
        "'training_config.yaml', line 3: this looks like a secret ('hf_a1a...')" in message and "a1" * 4 not in message
    )


def test_paths_of_this_machine_are_told(model):
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "name_or_path": f"{model}/start"}))
    assert any("tokenizer_config.json" in one and "a path of this machine" in one for one in plan_of(model).remarks)


def test_paths_in_the_training_configuration_become_names(model):
    (model / "training_config.yaml").write_text(
        "# run\ndata: [/srv/a/train.jsonl, org/data]\nlr: 0.001\nmodel: ../start\n"
    )
    entry = plan_of(model).collection.entries["training_config.yaml"]
    assert entry.read().decode() == "# run\ndata: [train.jsonl, org/data]\nlr: 0.001\nmodel: start\n"
    assert entry.note == "paths replaced by names"
    (model / "training_config.yaml").write_text("data:\n  - /srv/a/train.jsonl  # mine, in another form\nlr: 0.001\n")
    assert plan_of(model).collection.entries["training_config.yaml"].read() == b"data:\n- train.jsonl\nlr: 0.001\n"


def test_an_evaluation_of_older_weights_is_not_taken(model):
    made.write_runs(model)
    plan = plan_of(model)
    assert "results/evaluation.json" in plan.collection.entries
    os.utime(model / "evaluation.json", (1, 1))
    plan = plan_of(model)
    assert "results/evaluation.json" not in plan.collection.entries
    assert any("evaluation.json is older than the weights" in remark for remark in plan.remarks)
    plan = plan_of(model, evaluations=[str(model / "evaluation.json")])
    assert "results/evaluation.json" in plan.collection.entries


def test_cards_written_by_hand(model):
    (model / "README.md").write_text("# Mine\n\nFinds photos.\n")
    plan = plan_of(model)
    assert plan.verdict == "written by hand; it shows no figures"
    assert plan.collection.entries["README.md"].read() == b"# Mine\n\nFinds photos.\n"
    (model / "README.md").write_text("# Mine\n\nFinds 98.1 % of the photos.\n")
    assert "line 3: the figure '98.1 %' has no source" in refused(model) and "--new-card" in refused(model)
    assert plan_of(model, new_card=True).verdict.startswith("made of")
    (model / "README.md").write_text(
        "---\nlibrary_name: peft\n---\n[More Information Needed]\n### Versions\n- PEFT 0.21.2\n"
    )
    assert plan_of(model).verdict.startswith("made of")


def test_options_of_an_earlier_card_are_kept(model):
    from ccrk.hub_cards.cards import model_card, weights_in
    from ccrk.hub_cards.model_card import CardOptions

    options = CardOptions("old", "org/old", license="mit", texts={"limits": "None that I know."})
    model_card(options, {}, weights_in(model)).write(model)
    text = plan_of(model, card={"tags": ["birds"]}).collection.entries["README.md"].read().decode()
    assert "license: mit" in text and "None that I know." in text and "- birds" in text and 'model="org/thing"' in text
    weights = load_file(model / "model.safetensors")
    save_file({**weights, "more": np.zeros(1)}, model / "model.safetensors")
    assert "the card is of other weights" in refused(model)
    text = plan_of(model, new_card=True).collection.entries["README.md"].read().decode()
    assert "license: mit" in text


def test_adapters_need_a_base_that_others_have(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    save_file({"a": np.zeros(3)}, tmp_path / "adapter_model.safetensors")
    assert "--base-model org/name" in refused(tmp_path)
    plan = plan_of(tmp_path, base_model="org/base")
    assert json.loads(plan.collection.entries["adapter_config.json"].read())["base_model_name_or_path"] == "org/base"
    text = plan.collection.entries["README.md"].read().decode()
    assert "base_model:\n- org/base" in text and "PeftModel.from_pretrained" in text and "library_name: peft" in text


def test_spaces_and_metrics(tmp_path, checkout):
    plan = plan_of(checkout / "metrics" / "mrv")
    assert plan.kind == "space" and {"mrv.py", "rank_variation.py", "README.md"} <= set(plan.collection.entries)
    (tmp_path / "README.md").write_text("---\ntitle: T\nsdk: gradio\ncolorFrom: blue\n---\n")
    assert "starts 'app.py', which is not there" in refused(tmp_path)
    (tmp_path / "app.py").write_text("print(1)")
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "a.css").write_text("")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "app.pyc").write_bytes(b"x")
    plan = plan_of(tmp_path)
    assert plan.kind == "space" and set(plan.collection.entries) == {"README.md", "app.py", "static/a.css"}
    (tmp_path / "hub_token.txt").write_text("x")
    assert "'hub_token.txt' looks like a secret by its name" in refused(tmp_path)
    (tmp_path / "hub_token.txt").unlink()
    (tmp_path / "README.md").write_text("---\ntitle: T\nsdk: gradio\ncolorFrom: mauve\n---\n")
    assert "colorFrom is 'mauve'" in refused(tmp_path)


def test_the_cards_of_both_metrics_are_valid(checkout):
    for name in ("mrv", "ccr_recall"):
        plan = plan_of(checkout / "metrics" / name)
        assert plan.verdict == "the metadata of a Space is complete", name


def test_data_sets(tmp_path):
    from ccrk.hub_cards.cards import dataset_card
    from ccrk.hub_cards.data_card import DataCardOptions

    (tmp_path / "data.jsonl").write_text("{}\n")
    assert "name it with --type" in refused(tmp_path)
    assert "has no README.md" in refused(tmp_path, kind="dataset")
    dataset_card(DataCardOptions("Photos"), {"rows": 1, "captions": {"de": 2}}).write(tmp_path)
    plan = plan_of(tmp_path)
    assert plan.kind == "dataset" and "results/data.json" in plan.collection.entries
    assert plan.verdict.startswith("checked: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo": "name"}, "does not say whose it is"),
        ({"repo": "a/b/c"}, "is no name of a repository"),
        ({"repo": "a/b", "kind": "notebook"}, "--type is 'notebook'"),
        ({"repo": "a/b", "create_pr": True, "tag": "v1"}, "--create-pr goes with neither"),
    ],
)
def test_options_that_do_not_go(options, message):
    with pytest.raises(ValueError, match=message):
        PublishOptions("folder", **options)


def test_leaderboards_have_a_form(model, capsys):
    assert main(["publish", str(model), "org/thing", "--dry-run", "--leaderboard", "xflickrco"]) == 2
    assert "is not of the form BENCHMARK=ORG/DATASET:TASK" in capsys.readouterr().err


def test_errors_hold_no_token():
    from huggingface_hub.errors import LocalTokenNotFoundError

    options = PublishOptions("folder", "org/thing")
    assert explain(LocalTokenNotFoundError("hf_secret"), options).startswith("you are not logged in")
    assert "cannot be reached" in explain(ConnectionError("refused"), options)
