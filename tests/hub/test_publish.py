"""`ccrk publish` and `CCRkTrainer.push_to_hub` against a Hub: what is there afterwards, and what never gets there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccrk import CCRkRetrievalPipeline

HERE = Path(__file__).parent

COMMAND = """
import contextlib, io, os, shutil
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
from ccrk.cli.main import main
api, model = HfApi(), Path(sys.argv[1])

def run(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["publish", *map(str, words)])
    return [code, out.getvalue(), err.getvalue()]

def commits(**more):
    return [one.title for one in api.list_repo_commits("org/photos", **more)]
"""

PUSHES = (
    COMMAND
    + """
times = {p: p.stat().st_mtime_ns for p in model.rglob("*")}
seen["dry"] = run(model, "org/photos", "--dry-run", "--private")
seen["there after dry"] = api.repo_exists("org/photos")
seen["no terminal"] = run(model, "org/photos")
class Terminal(io.StringIO):
    def isatty(self):
        return True

sys.stdin = Terminal("no\\n")
seen["declined"] = run(model, "org/photos")
seen["there after no"] = api.repo_exists("org/photos")
sys.stdin = Terminal("y\\n")
seen["agreed"] = run(model, "org/asked")
seen["there after yes"] = api.repo_exists("org/asked")
mine = [model, "org/photos", "--yes", "--license", "mit"]
seen["first"] = run(*mine, "--message", "First", "--tag", "v1")
seen["files"] = api.list_repo_files("org/photos")
seen["tags"] = [one.name for one in api.list_repo_refs("org/photos").tags]
seen["after first"] = commits()
seen["untouched"] = times == {p: p.stat().st_mtime_ns for p in model.rglob("*")}
seen["again"] = run(*mine)
seen["licence"] = run(model, "org/photos", "--yes", "--license", "apache-2.0", "--message", "Other licence")
seen["after licence"] = commits()
seen["branch"] = run(*mine, "--branch", "try/out", "--message", "Back")
seen["on the branch"] = commits(revision="try/out")
seen["proposal"] = run(*mine, "--create-pr")
seen["after proposal"] = commits()
seen["theirs"] = run(model, "other/photos", "--yes")
here = snapshot_download("org/photos")
copy = shutil.copytree(here, model.parent / "copy")
seen["copy"] = run(copy, "org/photos", "--dry-run")
text = (copy / "README.md").read_text()
(copy / "README.md").write_text(text.replace("## Intended use", "Better by 12.5 points.\\n\\n## Intended use"))
seen["refused"] = run(copy, "org/photos", "--yes")
seen["at the end"] = commits()
seen["texts"] = {str(p.relative_to(here)): p.read_text(errors="replace") for p in Path(here).rglob("*") if p.is_file()}
api.upload_file(repo_id="org/photos", path_or_fileobj=b"mine", path_in_repo="results/mine.txt")
(model / "evaluation.json").unlink()
seen["unmeasured"] = run(*mine, "--message", "Not measured")
seen["files then"] = api.list_repo_files("org/photos")
seen["default"] = run(model, "org/ccrk", "--yes")
from transformers import pipeline
search = pipeline("ccr-retrieval", gallery=["a green tree", "the sun"])  # no model is named: org/ccrk
seen["found"] = search("the sun", top_k=1)[0]["text"]
os.environ.pop("HF_TOKEN")
seen["nobody"] = run(model, "org/photos", "--yes")
seen["secret told"] = sys.argv[2] in json.dumps(seen)
"""
)


@pytest.fixture(scope="module")
def made():
    """Run files with figures."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("ccrk_tests_runs", HERE.parent / "hub_cards" / "made_runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tiny, made, tmp_path) -> Path:
    """A model with its code, pipeline and run files, and what a training leaves beside them."""
    folder = tmp_path / "photos"
    processor = tiny.build_processor()
    CCRkRetrievalPipeline(model=tiny.build_model(len(processor.tokenizer)), processor=processor).save_pretrained(
        folder
    )
    made.write_runs(folder)
    (folder / "training_config.yaml").write_text("# run\ndata: [/home/somebody/train.jsonl]\nlr: 0.001\n")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"state")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / ".cache").mkdir()
    return folder


def test_publishing(hub, client, home, model, made):
    seen = client(PUSHES, hub.environment(home), model, hub.token, package=True)
    code, plan, _ = seen["dry"]
    assert code == 0 and not seen["there after dry"]
    assert "model org/photos (new, private), branch main, one commit" in plan and "dry run: nothing was" in plan
    for left in (
        "checkpoint-3/: a checkpoint",
        "training_args.bin: may hold pickled",
        "evaluation.json: holds captions",
    ):
        assert left in plan
    assert "card: made of training_run.json, evaluation.json" in plan
    assert seen["no terminal"][0] == 2 and "say --yes to publish, or --dry-run" in seen["no terminal"][2]

    assert seen["declined"][0] == 1 and "nothing was published" in seen["declined"][1] and not seen["there after no"]
    assert seen["agreed"][0] == 0 and "Publish this? [y/N]" in seen["agreed"][1] and seen["there after yes"]

    assert seen["first"][0] == 0 and f"published: {hub.endpoint}/org/photos/commit/" in seen["first"][1]
    assert seen["after first"][0] == "First" and len(seen["after first"]) <= 2  # the Hub's own first commit beside it
    assert seen["tags"] == ["v1"] and seen["untouched"], "the folder is only read"
    assert {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json"} <= set(seen["files"])
    assert {"modeling_ccrk.py", "ccr_retrieval.py", "README.md", "card_sources.json"} <= set(seen["files"])
    assert {"results/evaluation.json", "results/training.json", "training_config.yaml"} <= set(seen["files"])
    never = ("checkpoint", "optimizer", ".bin", ".pt", "cache", "training_run")
    assert "evaluation.json" not in seen["files"]
    assert not [name for name in seen["files"] if any(part in name for part in never)]

    assert seen["again"][0] == 0 and "nothing changed" in seen["again"][1]
    assert "README.md" in seen["licence"][1] and "changed" in seen["licence"][1]
    assert seen["after licence"] == ["Other licence", *seen["after first"]]
    assert seen["on the branch"] == ["Back", *seen["after licence"]]
    # the small Hub takes no proposals: that it was asked for one shows in what it says
    assert seen["proposal"][0] == 2 and "the Hub says: this small Hub has no pull requests" in seen["proposal"][2]
    assert seen["after proposal"] == seen["after licence"]

    assert seen["theirs"][0] == 2 and "you have no right to write to 'other/photos'" in seen["theirs"][2]
    assert seen["copy"][0] == 0 and "figures as in their sources" in seen["copy"][1]
    assert seen["refused"][0] == 2 and "the figure '12.5' has no source" in seen["refused"][2]
    assert seen["at the end"] == seen["after licence"] and not seen["secret told"]
    assert seen["nobody"][0] == 2 and "you are not logged in: log in with `hf auth login`" in seen["nobody"][2]

    # what the earlier card had goes with it, in the same commit; what somebody else put there stays
    assert "taken from the repository:" in seen["unmeasured"][1]
    assert "results/evaluation.json" not in seen["files then"] and "results/mine.txt" in seen["files then"]
    assert not [name for name in seen["files then"] if name.startswith("assets/")]

    assert seen["default"][0] == 0 and seen["found"] == "the sun"

    texts = seen["texts"]
    assert "data: [train.jsonl]" in texts["training_config.yaml"]
    for name, text in texts.items():
        for private in (made.CAPTION, made.PHOTO, made.FOLDER, "/home/somebody", str(model.parent), hub.token):
            assert private not in text, name


TRAINER = """
import importlib.util
import torch
from pathlib import Path
from ccrk import CCRkTrainer, CCRkTrainingArguments
spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
torch.set_num_threads(1)
rows, processor = tiny.make_rows(6), tiny.make_processor()
arguments = CCRkTrainingArguments(
    sys.argv[2], max_steps=2, per_device_train_batch_size=3, report_to="none", save_steps=1, push_to_hub=True,
    hub_model_id="org/trained", use_cpu=True, eval_languages=["en", "de"], dataloader_pin_memory=False,
)
trainer = CCRkTrainer(
    model=tiny.make_model(processor), args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=processor
)
trainer.train()
trainer.evaluate()
trainer.push_to_hub(license="mit")
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
seen["commits"] = [one.title for one in api.list_repo_commits("org/trained")]
seen["files"] = api.list_repo_files("org/trained")
seen["ever"] = sorted({f for c in api.list_repo_commits("org/trained")
                       for f in api.list_repo_files("org/trained", revision=c.commit_id)})
seen["card"] = Path(hf_hub_download("org/trained", "README.md")).read_text()
seen["local"] = sorted(p.name for p in Path(sys.argv[2]).iterdir())
"""

LOADED = """
import torch
from transformers import AutoModel, AutoProcessor, pipeline
search = pipeline("ccr-retrieval", model="org/trained", gallery=["red dog", "Hund"], trust_remote_code=True)
seen["found"] = search("Hund", top_k=1)[0]["text"]
"""


@pytest.mark.slow
def test_the_trainer_pushes_a_repository_that_loads_anywhere(hub, client, home, tmp_path):
    tiny = HERE.parent / "trainer" / "tiny.py"
    seen = client(TRAINER, hub.environment(home), tiny, tmp_path / "out", package=True)
    assert seen["commits"][0] == "End of training"
    assert "Measured in English, German." in seen["card"] and "| steps | 2 (" in seen["card"]
    assert "license: mit" in seen["card"] and 'model="org/trained"' in seen["card"]
    assert {"model.safetensors", "modeling_ccrk.py", "ccr_retrieval.py", "results/evaluation.json"} <= set(
        seen["files"]
    )
    assert "training_args.bin" in seen["local"], "transformers writes it"
    assert not [
        name for name in seen["ever"] if "training_args" in name or "checkpoint" in name or name == "evaluation.json"
    ]
    assert client(LOADED, hub.environment(home))["found"] == "Hund"
