"""Loads what was pushed, in a process of its own: `load_models.py MODE WORK PART...`.

In MODE "package" `ccrk` is installed and nothing is trusted; in any other it cannot be imported. Outputs go to
WORK/MODE/NAME.safetensors and facts to WORK/MODE.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MODE, WORK, PARTS = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
REMOTE = MODE != "package"
if REMOTE:
    sys.modules["ccrk"] = None  # `import ccrk` raises ImportError from here on
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from outputs import outputs_of  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, pipeline  # noqa: E402

torch.set_num_threads(1)
if REMOTE:
    TRUST = {"trust_remote_code": True}
else:
    import ccrk  # noqa: F401

    TRUST = {}
seen: dict = {"modules": {}}
(WORK / MODE).mkdir(exist_ok=True)


def note(name: str, model, processor) -> None:
    """Writes down what a model makes of the photos and captions."""
    seen["modules"][name] = type(model).__module__
    save_file(outputs_of(model, processor, WORK), WORK / MODE / f"{name}.safetensors")


def error_of(function, *args, **kwargs) -> str:
    """The message of the error that a call ends in."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def load(repository: str, name: str | None = None, model_class=AutoModelForPreTraining, **options) -> None:
    """A model and a processor by their Auto classes."""
    model = model_class.from_pretrained(repository, **TRUST, **options)
    options.pop("code_revision", None)
    processor = AutoProcessor.from_pretrained(repository, **TRUST, **options)
    note(name or repository.split("/")[1], model, processor)


def search(repository: str, **options) -> list:
    """What the pipeline of a repository finds."""
    pipe = pipeline("ccr-retrieval", model=repository, gallery=str(WORK / "photos"), device="cpu", **TRUST, **options)
    seen["modules"][f"{repository} pipeline"] = type(pipe).__module__
    return pipe(json.loads((WORK / "captions.json").read_text()), top_k=4, rerank=3)


def core() -> None:
    """Model, processor, pipeline."""
    load("org/ccrk")
    load("org/ccrk", "ccrk-retriever", AutoModel)
    seen["search"] = search("org/ccrk")
    seen["untrusted"] = error_of(pipeline, "ccr-retrieval", model="org/ccrk", trust_remote_code=False, device="cpu")


def parts() -> None:
    """Pushed apart, loaded together; without the pipeline's file only the package has the task."""
    load("org/parts")
    seen["parts"] = error_of(search, "org/parts")


def revisions() -> None:
    """Tag, branch, hash; weights of one and code of another."""
    first = json.loads((WORK / "pushed.json").read_text())["first"]
    for revision in ("v1", "trial", "main"):
        load("org/moving", f"moving-{revision}", revision=revision)
    load("org/moving", "moving-sha", revision=first)
    seen["searches"] = {r: search("org/moving", revision=r) for r in ("v1", "main", "trial")}
    if REMOTE:
        load("org/moving", "moving-code", code_revision="other-code")
        options = {"revision": "v1", "code_revision": "other-code", **TRUST}
        seen["which_code"] = [
            AutoModel.from_pretrained("org/moving", **options).which_code,
            getattr(AutoModel.from_pretrained("org/moving", **TRUST), "which_code", None),
        ]
        # without code_revision the code is that of the weights' revision
        seen["code_of_revision"] = AutoModel.from_pretrained("org/moving", revision="other-code", **TRUST).which_code
    seen["no_revision"] = error_of(AutoModel.from_pretrained, "org/moving", revision="nowhere", **TRUST)


def shards() -> None:
    """Weights in several files."""
    load("org/sharded")


def trainer() -> None:
    """What the trainer has pushed."""
    load("org/trained")
    load("org/often")
    seen["trained"] = search("org/trained")


def adapter() -> None:
    """Adapters on the base model, both from the Hub."""
    from peft import PeftModel

    base = AutoModelForPreTraining.from_pretrained("org/base", **TRUST)
    processor = AutoProcessor.from_pretrained("org/adapter", **TRUST)
    note("adapter", PeftModel.from_pretrained(base, "org/adapter"), processor)
    if not REMOTE:
        from ccrk.trainer.adapters import CCRkPeftModel

        base = AutoModelForPreTraining.from_pretrained("org/base")
        loaded = CCRkPeftModel.from_pretrained(base, "org/adapter", is_trainable=True)
        note("adapter-own", loaded.eval(), processor)
        seen["full"] = list(loaded.full_names)
        seen["learning"] = sum(p.requires_grad for p in loaded.parameters())


def private() -> None:
    """What only some may read."""
    load("org/private")


def published() -> None:
    """What the command has published."""
    load("org/published")
    seen["published"] = search("org/published")


if __name__ == "__main__":
    for part in PARTS:
        globals()[part]()
    (WORK / f"{MODE}.json").write_text(json.dumps(seen))
