"""Models pushed to a Hub and loaded from it in other processes, with the package and where it cannot be imported."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

HERE = Path(__file__).parent
PARTS = ("core", "parts", "revisions", "shards", "trainer", "adapter", "private")
CODE = {"modeling_ccrk.py", "configuration_ccrk.py", "processing_ccrk.py", "image_processing_ccrk.py"}
WHOLE = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md", *CODE}


class Place:
    """A Hub and a folder, with the processes that push to it and load from it."""

    def __init__(self, hub, work: Path):
        self.hub, self.work = hub, work

    def run(self, script: str, *words, home: str, token: str | None = None, **environment: str):
        """Runs a script of this folder with a home of its own, from an empty folder."""
        (self.work / home).mkdir(exist_ok=True)
        (self.work / "elsewhere").mkdir(exist_ok=True)
        given = self.hub.environment(self.work / home, token, OMP_NUM_THREADS="1", **environment)
        return subprocess.run(
            [sys.executable, "-P", HERE / script, *map(str, words)],
            env=given,
            cwd=self.work / "elsewhere",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def push(self, *parts: str) -> dict:
        """Pushes; gives what the script wrote down."""
        done = self.run("push_models.py", self.work, *parts, home="pusher")
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads((self.work / "pushed.json").read_text())

    def load(self, mode: str, *parts: str, home: str | None = None, **environment: str) -> dict:
        """Loads; gives the facts, and under `tensors` the outputs by name."""
        done = self.run("load_models.py", mode, self.work, *parts, home=home or mode, **environment)
        assert done.returncode == 0, done.stderr[-4000:]
        facts = json.loads((self.work / f"{mode}.json").read_text())
        return facts | {"tensors": outputs(self.work / mode)}

    def files(self, name: str, revision: str = "main") -> set[str]:
        """What is in a repository."""
        repository = self.hub.store.repository("model", name)
        return set(repository.commit(repository.resolve(revision))["tree"]) - {".gitattributes"}

    def titles(self, name: str, revision: str = "main") -> list[str]:
        """The commits of a branch, newest first."""
        repository = self.hub.store.repository("model", name)
        return [commit["title"] for _, commit in repository.history(repository.resolve(revision))]


def outputs(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by the name of their file."""
    return {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same outputs, and outputs that could differ."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensor.std() > 0
        torch.testing.assert_close(found[name], tensor, rtol=2e-6, atol=2e-6)


def same_search(found: list, wanted: list) -> None:
    """The same photos with the same scores."""
    assert [[hit["path"] for hit in row] for row in found] == [[hit["path"] for hit in row] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert [hit["score"] for hit in row] == pytest.approx([hit["score"] for hit in other], rel=2e-6, abs=2e-5)


@pytest.fixture(scope="module")
def place(start_hub, tiny, tmp_path_factory):
    work = tmp_path_factory.mktemp("round_trip")
    (work / "photos").mkdir()
    for number, photo in enumerate(tiny.build_photos(6)):
        photo.save(work / "photos" / f"{number}.png")
    (work / "captions.json").write_text(json.dumps(tiny.CAPTIONS))
    # pages of three entries and parts of 20 kB, so that both ways of sending files and lists are gone
    with start_hub(work / "hub", page=3, part_size=20_000) as hub:
        yield Place(hub, work)


def test_pushed_pipeline_loads_where_the_package_is_not(place):
    """One commit with everything; model, processor and pipeline from it, outputs equal."""
    place.push("core")
    assert place.titles("org/ccrk") == ["Upload CCRkRetrievalPipeline", "initial commit"]
    assert place.files("org/ccrk") >= WHOLE | {"ccr_retrieval.py"}
    seen = place.load("remote", "core")
    for name in ("ccrk", "ccrk-retriever"):
        equal(seen["tensors"][name], outputs(place.work / "expected")["ccrk"])
    assert all(module.startswith("transformers_modules.") for module in seen["modules"].values())
    assert "trust_remote_code=True" in seen["untrusted"]
    assert [len(row) for row in seen["search"]] == [4] * 8


# --- the rest takes a minute and more -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(place):
    """All pushed, loaded without the package, with it, and again without a connection: facts by mode."""
    pushed = place.push(*PARTS)
    seen = {"pushed": pushed, "wanted": outputs(place.work / "expected")}
    seen["remote"] = place.load("remote_all", *PARTS)
    seen["package"] = place.load("package", *PARTS)
    before = len(place.hub.requests)
    # the home of the first, so that its cache and its modules are there
    seen["offline"] = place.load("offline", "core", "shards", "trainer", home="remote_all", HF_HUB_OFFLINE="1")
    assert len(place.hub.requests) == before, "offline is offline"
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["remote", "package", "offline"])
def test_outputs_are_equal(everything, mode):
    aliases = {
        "ccrk-retriever": "ccrk",
        "adapter-own": "adapter",
        "moving-sha": "moving-v1",
        "moving-code": "moving-main",
    }
    found = everything[mode]["tensors"]
    assert len(found) == (5 if mode == "offline" else 13)
    for name, tensors in found.items():
        equal(tensors, everything["wanted"][aliases.get(name, name)])
    start = "ccrk." if mode == "package" else "transformers_modules."
    modules = {name: module for name, module in everything[mode]["modules"].items() if not name.startswith("adapter")}
    assert all(module.startswith(start) for module in modules.values()), modules


@pytest.mark.slow
def test_searches_are_equal(everything):
    for name in ("search", "trained"):
        for mode in ("package", "offline"):
            same_search(everything[mode][name], everything["remote"][name])
    for revision, row in everything["remote"]["searches"].items():
        same_search(everything["package"]["searches"][revision], row)
    assert everything["remote"]["searches"]["v1"] != everything["remote"]["searches"]["main"]


@pytest.mark.slow
def test_revisions_have_their_own_weights_and_code(everything, place):
    first = ["Upload CCRkRetrievalPipeline", "initial commit"]
    for branch in ("main", "trial"):  # weights alone, onto a repository with the pipeline, which it stays
        assert place.titles("org/moving", branch) == ["Upload CCRkForPreTraining", *first]
    wanted = everything["wanted"]
    for one, other in (("moving-v1", "moving-trial"), ("moving-v1", "moving-main"), ("moving-trial", "moving-main")):
        assert not torch.allclose(wanted[one]["match"], wanted[other]["match"], atol=1e-3)
    assert everything["remote"]["which_code"] == ["other", None]
    assert everything["remote"]["code_of_revision"] == "other"
    for mode in ("remote", "package"):
        assert "nowhere" in everything[mode]["no_revision"]
        assert "valid git identifier" in everything[mode]["no_revision"]


@pytest.mark.slow
def test_shards(place, everything):
    names = {name for name in place.files("org/sharded") if name.endswith(".safetensors")}
    assert len(names) > 2 and "model.safetensors.index.json" in place.files("org/sharded")


@pytest.mark.slow
def test_trainer_pushes_all_that_is_needed_and_nothing_else(place, everything):
    assert place.titles("org/trained") == ["trained", "initial commit"]
    assert place.titles("org/trained", "trial") == ["untrained", "initial commit"]
    steps = [f"Training in progress, step {step}" for step in (4, 2)]
    assert place.titles("org/often") == ["End of training", *steps, "initial commit"]
    for name in ("org/trained", "org/often"):
        files = place.files(name)
        assert files >= WHOLE | {"ccr_retrieval.py"}
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))], "models, no pickles"
        assert not [file for file in files if file.startswith(("checkpoint", "feature_cache", "runs", "incomplete"))]
        assert not files & {"trainer_state.json", "skipped.json", "files.json"}
    repository = place.hub.store.repository("model", "org/often")
    for _, commit in repository.history(repository.resolve("main"))[:3]:  # each of them can be loaded
        assert WHOLE - {"README.md"} | {"ccr_retrieval.py"} <= set(commit["tree"])


@pytest.mark.slow
def test_adapters_know_what_learned_in_full(everything, place):
    assert everything["package"]["full"] == everything["pushed"]["full"] != []
    assert everything["package"]["learning"] > len(everything["package"]["full"])
    files = place.files("org/adapter")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= files
    assert not [file for file in files if file.endswith((".bin", ".pt"))]
    repository = place.hub.store.repository("model", "org/adapter")
    _, entry = repository.entry("main", "adapter_config.json")
    assert json.loads(repository.content(entry))["base_model_name_or_path"] == "org/base"
    by_hand = place.hub.store.repository("model", "org/adapter-by-hand")
    entries = [(one, one.entry("main", "adapter_model.safetensors")[1]) for one in (repository, by_hand)]
    pushed, again = (load(one.content(entry)) for one, entry in entries)
    # as tensors: the order of what is noted in such a file is not always the same
    assert pushed.keys() == again.keys() and all(torch.equal(again[name], tensor) for name, tensor in pushed.items())
    assert set(everything["pushed"]["full"]) <= set(pushed), "what learned in full is pushed by hand too"


@pytest.mark.slow
def test_parts_alone_are_no_pipeline(everything):
    assert "Unknown task" in everything["remote"]["parts"]
    assert everything["package"]["parts"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["nobody", "stranger", "wrong"])
def test_private_repository_says_who_may_read(place, everything, who):
    token = {"nobody": "", "stranger": place.hub.stranger, "wrong": "hf_wrong"}[who]
    done = place.run("load_models.py", "remote_private", place.work, "private", home=f"home_{who}", token=token)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()
    words = " ".join(last[-8:])
    assert "org/private" in words and ("token" in words or "credentials" in words), words
    assert not (place.work / "remote_private.json").exists()


@pytest.mark.slow
def test_push_that_breaks_leaves_the_old_one_whole(place, everything):
    """The process is killed while its weights travel; then the connection breaks in the commit."""
    titles, files = place.titles("org/ccrk"), place.files("org/ccrk")
    failure = place.hub.fail("PUT", "/storage/", "hang", times=99)
    script = [sys.executable, "-P", str(HERE / "push_models.py"), str(place.work), "again"]
    process = subprocess.Popen(script, env=place.hub.environment(place.work / "pusher"), stderr=subprocess.DEVNULL)
    try:
        assert failure.happened.wait(300)
    finally:
        process.kill()
        process.wait()
        place.hub.failures.clear()
    assert place.titles("org/ccrk") == titles and place.files("org/ccrk") == files
    place.hub.fail("POST", "org/ccrk/commit", "cut")
    done = place.run("push_models.py", place.work, "again", home="pusher")
    place.hub.failures.clear()
    assert done.returncode != 0 and "ProtocolError" in done.stderr
    assert place.titles("org/ccrk") == titles
    equal(place.load("remote_after", "core")["tensors"]["ccrk"], everything["wanted"]["ccrk"])


@pytest.mark.slow
def test_published_by_the_command(place, tiny):
    """A plan, one commit, the same again: none; what is there loads where the package is not."""
    spec = importlib.util.spec_from_file_location("ccrk_tests_outputs", HERE / "outputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer), seed=60)
    folder = place.work / "to_publish"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")

    def publish(*words: str):
        code = "import sys; from ccrk.cli.main import main; sys.exit(main(sys.argv[1:]))"
        given = place.hub.environment(place.work / "pusher", OMP_NUM_THREADS="1")
        line = [sys.executable, "-P", "-c", code, "publish", str(folder), "org/published", *words]
        return subprocess.run(line, env=given, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    start = len(place.hub.requests)
    done = publish("--dry-run")
    assert done.returncode == 0 and "dry run: nothing was published" in done.stdout, done.stderr
    assert "training_args.bin" in done.stdout, "it says what stays"
    assert {method for method, _ in place.hub.requests[start:]} <= {"GET", "HEAD"}
    assert place.hub.store.repository("model", "org/published") is None
    for _ in range(2):
        done = publish("--yes", "--message", "first")
        assert done.returncode == 0, done.stderr
        assert place.titles("org/published") == ["first", "initial commit"]
    assert "nothing changed" in done.stdout
    files = place.files("org/published")
    assert files >= WHOLE | {"ccr_retrieval.py"} and "training_args.bin" not in files
    wanted = module.outputs_of(model, processor, place.work)
    for mode in ("remote_published", "package"):
        seen = place.load(mode, "published", home=f"home_{mode}")
        equal(seen["tensors"]["published"], wanted)
        assert [len(row) for row in seen["published"]] == [4] * 8
