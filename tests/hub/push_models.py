"""Pushes tiny models in every way to the Hub that the environment names: `push_models.py WORK PART...`.

WORK holds `photos/` and `captions.json`, to compare on.
What each repository must give is written to WORK/expected/NAME.safetensors, and what happened to WORK/pushed.json.
Parts: `core`, `revisions`, `shards`, `trainer`, `adapter`, `private`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from ccrk import CCRkForPreTraining, CCRkRetrievalPipeline

torch.set_num_threads(1)
WORK, PARTS = Path(sys.argv[1]), sys.argv[2:]
TESTS = Path(__file__).parents[1]
OTHER_CODE = "\nCCRkPreTrainedModel.which_code = 'other'\n"


def load(name: str, path: Path):
    """A file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = load("tiny", TESTS / "pipelines" / "tiny.py")
outputs_of = load("outputs", TESTS / "hub" / "outputs.py").outputs_of
api, processor, seen = HfApi(), tiny.build_processor(), {}


def pipe_of(seed: int) -> CCRkRetrievalPipeline:
    """A pipeline whose weights are those of the seed."""
    model = tiny.build_model(len(processor.tokenizer), CCRkForPreTraining, seed=seed)
    return CCRkRetrievalPipeline(model, processor, device="cpu")


def expect(name: str, model, used=processor) -> None:
    """Writes down what loading this must give."""
    (WORK / "expected").mkdir(exist_ok=True)
    save_file(outputs_of(model, used, WORK), WORK / "expected" / f"{name}.safetensors")


def core() -> None:
    """The pipeline, and its parts by themselves."""
    pipe = pipe_of(0)
    pipe.push_to_hub("org/ccrk")
    expect("ccrk", pipe.model)


def again() -> None:
    """Other weights onto what is there."""
    pipe_of(1).push_to_hub("org/ccrk")


def parts() -> None:
    """A model and a processor, each pushed by itself."""
    pipe = pipe_of(3)
    pipe.model.push_to_hub("org/parts")
    pipe.processor.push_to_hub("org/parts")
    expect("parts", pipe.model)


def revisions() -> None:
    """A tag, a branch and a newer main with other weights each; and a branch with other code."""
    pipe = pipe_of(10)
    first = pipe.push_to_hub("org/moving")
    api.create_tag("org/moving", tag="v1", revision=first.oid)
    api.create_branch("org/moving", branch="other-code", revision=first.oid)
    expect("moving-v1", pipe.model)
    pipe = pipe_of(11)
    pipe.model.push_to_hub("org/moving", revision="trial")  # the pipeline is there already
    expect("moving-trial", pipe.model)
    pipe = pipe_of(12)
    pipe.model.push_to_hub("org/moving")
    expect("moving-main", pipe.model)
    file = Path(sys.modules["ccrk.pretrained_ccrk"].__file__)
    changed = (file.read_text() + OTHER_CODE).encode()
    options = {"repo_id": "org/moving", "revision": "other-code", "path_in_repo": file.name}
    api.upload_file(path_or_fileobj=changed, **options)
    seen["first"] = first.oid


def shards() -> None:
    """Weights in several files."""
    pipe = pipe_of(20)
    pipe.push_to_hub("org/sharded", max_shard_size="20KB")
    expect("sharded", pipe.model)


def training(name: str, model, **options):
    """A trainer that takes a few steps."""
    from ccrk import CCRkTrainer, CCRkTrainingArguments

    rows = load("rows", TESTS / "trainer" / "tiny.py").make_rows()
    given = {"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2, "save_steps": 2}
    given |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "hub_model_id": f"org/{name}"}
    args = CCRkTrainingArguments(str(WORK / name), **(given | options))
    return CCRkTrainer(model=model, args=args, train_dataset=rows, processing_class=processor)


def trainer() -> None:
    """A push at the end of a training, and one with each checkpoint."""
    trainer = training("trained", pipe_of(30).model)
    trainer.push_to_hub(commit_message="untrained", revision="trial", blocking=False).result()
    trainer.train()
    (WORK / "trained" / "feature_cache").mkdir()
    (WORK / "trained" / "feature_cache" / "large.safetensors").write_bytes(b"not for others")
    trainer.push_to_hub(commit_message="trained")
    expect("trained", trainer.model.eval())
    trainer = training("often", pipe_of(31).model, push_to_hub=True, hub_strategy="every_save", hub_always_push=True)
    trainer.train()
    trainer.push_to_hub()
    expect("often", trainer.model.eval())


def adapter() -> None:
    """Adapters, and the model that they belong to, from the Hub."""
    from ccrk.trainer.adapters import plain_model

    pipe_of(40).push_to_hub("org/base")
    base = CCRkForPreTraining.from_pretrained("org/base")
    trainer = training("adapter", base, lora="attention", lora_rank=2, save_strategy="no")
    trainer.train()
    trainer.push_to_hub()
    seen["full"] = list(trainer.model.full_names)
    expect("adapter", plain_model(trainer.model).eval())


def private() -> None:
    """A repository that not everyone may read."""
    pipe = pipe_of(50)
    pipe.push_to_hub("org/private", private=True)
    expect("private", pipe.model)


if __name__ == "__main__":
    for part in PARTS:
        globals()[part]()
    (WORK / "pushed.json").write_text(json.dumps(seen))
