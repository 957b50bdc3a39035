"""A saved model in fresh processes: as remote code without the package, saved again from there, and with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ccrk import CCRkForPreTraining, CCRkRetrievalPipeline

pytestmark = pytest.mark.slow
MODES = ("remote", "remote_again", "package")
LOST = "ccrk.fusion_model.layer.1.crossattention.self.key.weight"


@pytest.fixture(scope="module")
def pipe(tiny):
    processor = tiny.build_processor()
    model = tiny.build_model(len(processor.tokenizer), CCRkForPreTraining)
    return CCRkRetrievalPipeline(model, processor, device="cpu")


@pytest.fixture(scope="module")
def work(tiny, pipe, tmp_path_factory) -> Path:
    """A folder with the model, a broken copy of it, photos and captions."""
    work = tmp_path_factory.mktemp("work")
    (work / "photos").mkdir()
    for number, photo in enumerate(tiny.build_photos(6)):
        photo.save(work / "photos" / f"{number}.png")
    (work / "captions.json").write_text(json.dumps(tiny.CAPTIONS))
    pipe.save_pretrained(work / "model")
    pipe.save_pretrained(work / "broken")
    weights = load_file(work / "broken" / "model.safetensors")
    del weights[LOST]
    save_file(weights, work / "broken" / "model.safetensors", metadata={"format": "pt"})
    return work


@pytest.fixture(scope="module")
def seen(work) -> dict[str, tuple[dict, dict]]:
    """What each process saw: facts and tensors, by mode."""
    script = Path(__file__).with_name("load_everything.py")
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    result = {}
    for mode in MODES:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(work / f"modules_{mode}"),
            "OMP_NUM_THREADS": "1",
        }
        folder = work / ("model" if mode == "remote" else "again")
        done = subprocess.run(
            [sys.executable, script, mode, folder, work],
            cwd=elsewhere,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{mode}: {done.stderr[-3000:]}"
        result[mode] = json.loads((work / f"{mode}.json").read_text()), load_file(work / f"{mode}.safetensors")
    return result


@pytest.fixture(scope="module")
def expected(work, pipe, tiny) -> dict[str, torch.Tensor]:
    photos = [str(photo) for photo in sorted((work / "photos").iterdir())]
    batch = pipe.processor(images=photos, text=tiny.CAPTIONS, return_tensors="pt")
    with torch.no_grad():
        output, second = pipe.retriever(**batch), pipe.model(**batch)
        return {
            "image_embeds": output.image_embeds,
            "text_embeds": output.text_embeds,
            "pretraining_logits": second.logits_per_image,
            "match": pipe.retriever.match(**batch),
            "mlm": pipe.model.mlm_head(second.text_hidden_states),
            "pixel_values": batch["pixel_values"],
            "input_ids": batch["input_ids"],
            "sentence_image": output.image_embeds,
            "sentence_text": output.text_embeds,
        }


@pytest.mark.parametrize("mode", MODES)
def test_outputs_equal_those_of_the_package(seen, expected, mode):
    _, tensors = seen[mode]
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=2e-6, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mode", MODES)
def test_search_equals_the_package(seen, pipe, tiny, work, mode):
    rows = pipe(tiny.CAPTIONS, gallery=work / "photos", top_k=4, rerank=3)
    for found, row in zip(seen[mode][0]["search"], rows, strict=True):
        assert [r["path"] for r in found] == [r["path"] for r in row]
        for name in ("score", "similarity"):
            assert [r[name] for r in found] == pytest.approx([r[name] for r in row], rel=2e-6, abs=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_classes_come_from_where_they_should(seen, mode):
    modules = seen[mode][0]["modules"]
    own = {name: module for name, module in modules.items() if name != "AutoTokenizer"}
    start = "ccrk." if mode == "package" else "transformers_modules."
    assert all(module.startswith(start) for module in own.values()), own
    assert modules["AutoTokenizer"].startswith("transformers.")


@pytest.mark.parametrize("mode", MODES)
def test_loading_twice_gives_equal_weights(seen, mode):
    assert seen[mode][0]["weights_equal"]


@pytest.mark.parametrize("mode", MODES)
def test_missing_weight_is_an_error_that_names_it(seen, mode):
    facts, _ = seen[mode]
    assert LOST.removeprefix("ccrk.") in facts["broken"] and facts["broken"].startswith("ValueError")
    assert LOST in facts["broken_pretraining"] and facts["broken_pretraining"].startswith("ValueError")


@pytest.mark.parametrize("mode", MODES)
def test_trust_is_needed_only_without_the_package(seen, mode):
    facts, _ = seen[mode]
    assert facts["trusted"] == ""
    for name in ("untrusted", "untrusted_sentences"):
        assert facts[name] == "" if mode == "package" else "trust_remote_code=True" in facts[name]


@pytest.mark.parametrize("mode", MODES)
def test_gallery_by_uri(seen, mode):
    words = "there is no index in" if mode == "package" else "pip install ccrk"
    assert words in seen[mode][0]["uri"]


def test_saving_again_keeps_everything(seen, work):
    del seen  # it wrote the second folder
    configs = [json.loads((work / name / "config.json").read_text()) for name in ("model", "again")]
    for config in configs:
        assert config["custom_pipelines"]["ccr-retrieval"]["impl"] == "ccr_retrieval.CCRkRetrievalPipeline"
        assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForPreTraining"}
        assert "_saved_pipelines" not in config
    files = [{file.name for file in (work / name).iterdir()} for name in ("model", "again")]
    assert files[0] == files[1]
    weights = [load_file(work / name / "model.safetensors") for name in ("model", "again")]
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


def test_plain_save_of_a_loaded_model_names_no_pipeline_that_is_not_there(work, tmp_path):
    model = CCRkForPreTraining.from_pretrained(work / "model")
    assert not hasattr(model.config, "custom_pipelines")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "custom_pipelines" not in config
    model.save_pretrained(work / "model")  # where the pipeline's file is, the name stays
    config = json.loads((work / "model" / "config.json").read_text())
    assert "ccr-retrieval" in config["custom_pipelines"]
