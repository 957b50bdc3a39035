"""A Space whose model is in a private repository, at a revision, started by `python app.py`."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from ccrk.serving.space import build_search_space

pytestmark = pytest.mark.slow

PUSH = """
from huggingface_hub import HfApi
from transformers import pipeline
import ccrk
commit = pipeline("ccr-retrieval", model=sys.argv[1], device="cpu").push_to_hub("org/photos", private=True)
HfApi().create_tag("org/photos", tag="v1", revision=commit.oid)
HfApi().delete_file("model.safetensors", "org/photos")  # what is newest now cannot be loaded
"""


@pytest.fixture(scope="module")
def started():
    from importlib.util import module_from_spec, spec_from_file_location

    path = Path(__file__).parents[1] / "serving" / "space_process.py"
    spec = spec_from_file_location("ccrk_tests_space", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.started


def test_it_searches_with_the_model_of_the_hub(hub, client, tiny, started, tmp_path):
    from ccrk import CCRkRetrievalPipeline

    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer))
    CCRkRetrievalPipeline(model, processor, device="cpu").save_pretrained(tmp_path / "my-model")
    for name in ("pusher", "space-home", "photos"):
        (tmp_path / name).mkdir()
    for number, photo in enumerate(tiny.build_photos(6)):
        photo.save(tmp_path / "photos" / f"{number}.png")
    client(PUSH, hub.environment(tmp_path / "pusher"), tmp_path / "my-model", package=True)
    space = build_search_space("org/photos", tmp_path / "space", gallery=tmp_path / "photos", revision="v1").folder
    names = ("HF_ENDPOINT", "HF_HOME", "HF_MODULES_CACHE", "HF_HUB_DISABLE_XET", "HF_TOKEN", "NO_PROXY", "no_proxy")
    environment = {name: hub.environment(tmp_path / "space-home")[name] for name in names}
    with started(space, HF_HUB_OFFLINE="0", **environment) as address:
        with urllib.request.urlopen(f"{address}info") as answer:
            info = json.load(answer)
        assert (info["model"], info["items"]) == ("org/photos", 6)
        body = json.dumps({"queries": "ein Hund im Schnee", "k": 6}).encode()
        request = urllib.request.Request(f"{address}search", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            hits = json.load(answer)["results"][0]["hits"]
    pipe = CCRkRetrievalPipeline(model, processor, gallery=str(space / "photos"), device="cpu")
    wanted = pipe("ein Hund im Schnee", top_k=6)
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in wanted]
    assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in wanted], abs=2e-5)
