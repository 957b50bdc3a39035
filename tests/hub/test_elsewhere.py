"""Captions and models that other libraries load from a Hub by their names, in processes of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ccrk import CCRkRetrievalPipeline

pytestmark = pytest.mark.slow

PUSH = """
from ccrk.data.corpora import read_corpus
from ccrk.pipelines.loading import load_pipeline

lines, model = sys.argv[1:]
for split, count in (("train", 3), ("test", 2)):
    dataset = read_corpus(lines)
    dataset.rows = dataset.rows[:count]
    seen[split] = dataset.push_to_hub("org/my-captions", split=split)
load_pipeline(model).push_to_hub("org/sentences")
"""

LOAD = """
import datasets
from sentence_transformers import SentenceTransformer

found = datasets.load_dataset("org/my-captions")
seen["sizes"] = {split: len(table) for split, table in found.items()}
seen["captions"] = found["train"]["captions"][:]
seen["size"] = found["train"][0]["image"].size
raw = found["train"].cast_column("image", datasets.Image(decode=False))
seen["bytes"] = [cell["bytes"].hex() for cell in raw["image"]]
seen["paths"] = [cell["path"] for cell in raw["image"]]
model = SentenceTransformer("org/sentences", device="cpu", trust_remote_code=True)
seen["texts"] = model.encode(["a dog in the snow", "un chat noir"]).tolist()
seen["photos"] = model.encode([row["image"] for row in found["train"]]).tolist()
"""

READ = """
from ccrk.data.by_name import load_captions
from ccrk.data.corpora import read_corpus, stream_corpus

dataset = read_corpus("org/my-captions", split="train")
seen["ids"] = [row["image_id"] for row in dataset.rows]
seen["captions"] = [row["captions"] for row in dataset.rows]
seen["bytes"] = [row["image"].read().hex() for row in dataset.rows]
seen["table"] = len(load_captions("org/my-captions", split="test"))
seen["stream"] = sorted(row["image_id"] for row in stream_corpus("org/my-captions", split="train"))
from ccrk.evaluation.mteb_model import CCRkEncoder

meta = CCRkEncoder("org/sentences", device="cpu").mteb_model_meta
seen["meta"] = [meta.name, meta.revision, meta.reference]

from ccrk.cli.main import main

words = ["--data", "org/my-captions", "--split", "train", "--model", sys.argv[1], "--out", "trained"]
seen["trained"] = main(["train", *words, "--max-steps", "1", "--batch-size", "3"])
try:
    read_corpus("org/nothing")
except FileNotFoundError as error:
    seen["missing"] = str(error)
"""


@pytest.fixture(scope="module")
def work(tiny, tmp_path_factory):
    """Photos, captions and a model."""
    work = tmp_path_factory.mktemp("work")
    lines = []
    for number, photo in enumerate(tiny.build_photos(3)):
        photo.save(work / f"{number}.png")
        captions = {"en": [f"photo {number}", "a dog"], "de": f"Foto {number}"}
        lines.append(json.dumps({"image": f"{number}.png", "id": str(number), "captions": captions}))
    (work / "captions.jsonl").write_text("\n".join(lines))
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    CCRkRetrievalPipeline(model, processor, device="cpu").save_pretrained(work / "model")
    return work, model, processor


def test_published_captions_and_models_by_their_names(hub, client, work, tiny, tmp_path):
    work, model, processor = work
    homes = {}
    for name in ("pusher", "loader", "reader"):
        (tmp_path / name).mkdir()
        homes[name] = hub.environment(tmp_path / name, hub.token)
    pushed = client(PUSH, homes["pusher"], work / "captions.jsonl", work / "model", package=True)
    assert all("org/my-captions" in address for address in pushed.values())
    photos = [(work / f"{number}.png") for number in range(3)]
    expected = [
        [("en", f"photo {number}"), ("en", "a dog"), ("de", f"Foto {number}")] for number in range(3)
    ]  # in the order of the file

    found = client(LOAD, homes["loader"])
    assert found["sizes"] == {"train": 3, "test": 2}
    assert [[(c["language"], c["text"]) for c in row] for row in found["captions"]] == expected
    assert found["bytes"] == [photo.read_bytes().hex() for photo in photos]
    assert found["paths"] == [photo.name for photo in photos], "and nothing of where they were"
    with torch.no_grad():
        texts = model.get_text_features(**processor(text=["a dog in the snow", "un chat noir"], return_tensors="pt"))
        images = model.get_image_features(**processor(images=photos, return_tensors="pt"))
    np.testing.assert_allclose(found["texts"], texts.pooler_output.numpy(), atol=2e-6)
    np.testing.assert_allclose(found["photos"], images.pooler_output.numpy(), atol=2e-6)

    found = client(READ, homes["reader"], work / "model", package=True)
    commit = hub.store.repository("model", "org/sentences").resolve("main")
    assert found["meta"] == ["org/sentences", commit, f"{hub.endpoint}/org/sentences"]
    assert found["trained"] == 0 and (tmp_path / "reader" / "trained" / "modules.json").is_file()
    assert found["ids"] == ["0", "1", "2"] == found["stream"] and found["table"] == 2
    assert [[(c["language"], c["text"]) for c in row] for row in found["captions"]] == expected
    assert found["bytes"] == [photo.read_bytes().hex() for photo in photos]
    assert "'org/nothing' is no local file or folder, and on the Hub" in found["missing"]
