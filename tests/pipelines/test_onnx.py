"""Encoders as ONNX files: what the model computes, at other sizes than they were traced with, and nothing broken."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ccrk import CCRkProcessor
from ccrk.pipelines import onnx_export
from ccrk.pipelines.model_fingerprint import embedding_fingerprint
from ccrk.pipelines.onnx_encoders import MANIFEST, OnnxEncoders, file_digest
from ccrk.pipelines.onnx_export import export_encoders, sample_inputs

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def exported(model, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "float32"
    export_encoders(model, processor, folder)
    return folder


@pytest.fixture(scope="module")
def encoders(exported) -> OnnxEncoders:
    return OnnxEncoders(exported, threads=1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_photos(encoders, model, count):
    pixels = sample_inputs(model, count, 1, 2)["pixel_values"]
    with torch.no_grad():
        ours, theirs = encoders.get_image_features(pixels), model.get_image_features(pixels)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, **CLOSE)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, **CLOSE)


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 38), (3, 6), (4, 17)])
def test_texts(encoders, model, count, length):
    inputs = sample_inputs(model, 1, count, length)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        ours, theirs = encoders.get_text_features(ids, mask), model.get_text_features(ids, mask)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, **CLOSE)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    unmasked = encoders.get_text_features(ids[:1])
    torch.testing.assert_close(unmasked.pooler_output, ours.pooler_output[:1], **CLOSE)


@pytest.mark.parametrize(("images", "texts", "length"), [(1, 1, 1), (2, 3, 6), (4, 3, 20)])
def test_matching(encoders, model, images, texts, length):
    inputs = sample_inputs(model, images, texts, length)
    given = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model.match(**given)
        pairs = torch.tensor([[images - 1, 0], [0, texts - 1], [0, 0]])
        chosen = model.match(**given, pairs=pairs)
    assert expected.shape == (images, texts, 2)
    torch.testing.assert_close(encoders.match(**given), expected, **CLOSE)
    torch.testing.assert_close(encoders.match(**given, batch_size=2), expected, **CLOSE)
    torch.testing.assert_close(encoders.match(**given, pairs=pairs), chosen, **CLOSE)
    states = {name: inputs[name] for name in ("image_hidden_states", "text_hidden_states", "attention_mask")}
    torch.testing.assert_close(encoders.match(**states), expected, **CLOSE)


def test_numpy_in_numpy_out(encoders, model):
    inputs = {name: value.numpy() for name, value in sample_inputs(model, 2, 3, 6).items()}
    given = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    logits = encoders.match(**given)
    assert isinstance(logits, np.ndarray) and logits.shape == (2, 3, 2)
    vectors = encoders.get_text_features(given["input_ids"], given["attention_mask"]).pooler_output
    assert isinstance(vectors, np.ndarray) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoders.match(**given, pairs=np.zeros((0, 2), int)).shape == (0, 2)


@pytest.mark.parametrize("pair", [[2, 0], [0, 3], [-1, 0]])
def test_a_pair_beyond_what_is_given(encoders, model, pair):
    inputs = sample_inputs(model, 2, 3, 6)
    with pytest.raises(ValueError, match="beyond the 2 images and 3 texts"):
        encoders.match(inputs["pixel_values"], inputs["input_ids"], pairs=[pair])


def test_what_is_in_the_folder(exported, encoders, model, processor):
    assert encoders.fingerprint == embedding_fingerprint(model, processor) and not encoders.int8
    manifest = json.loads((exported / MANIFEST).read_text())
    assert set(manifest["files"]) == {path.name for path in exported.iterdir()} - {MANIFEST}
    assert all(file_digest(exported / name) == digest for name, digest in manifest["files"].items())
    assert all(found["max"] < 1e-4 for found in manifest["differences"].values())
    again = CCRkProcessor.from_pretrained(exported)
    assert again(text=["a dog"])["input_ids"] == processor(text=["a dog"])["input_ids"]
    here = str(Path(onnx_export.__file__).parent)
    for path in exported.glob("*.onnx"):
        assert here.encode() not in path.read_bytes()  # no paths of the machine that it was made on
        onnx.checker.check_model(str(path), full_check=True)


def test_running_takes_neither_model_nor_exporter(exported):
    code = f"""
import sys
from ccrk.pipelines.onnx_encoders import OnnxEncoders
import numpy as np
print(OnnxEncoders({str(exported)!r}).get_image_features(np.zeros((2, 3, 32, 32), np.float32)).pooler_output.shape)
print([name for name in ("timm", "onnx", "onnxscript") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(2, 12)", "[]"]


@pytest.mark.slow
def test_exporting_again_repairs_a_folder_and_gives_the_same_files(exported, model, processor, tmp_path):
    folder = tmp_path / "twice"
    shutil.copytree(exported, folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*.onnx*")}
    (folder / "text.onnx").write_bytes(b"broken")
    export_encoders(model, processor, folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*.onnx*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["twice"]  # nothing is left beside it


@pytest.mark.slow
def test_int8(model, processor, tmp_path):
    manifest = export_encoders(model, processor, tmp_path / "int8", int8=True)
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]
    encoders = OnnxEncoders(tmp_path / "int8", threads=1)
    assert encoders.int8
    for part in ("image", "text", "fusion"):
        graph = onnx.load(tmp_path / "int8" / f"{part}.onnx", load_external_data=False).graph
        assert "MatMulInteger" in {node.op_type for node in graph.node}
    # random weights of a few columns are a hard case
    assert manifest["differences"]["image_embeds"]["cosine"] > 0.99
    assert manifest["differences"]["text_embeds"]["cosine"] > 0.98
    inputs = sample_inputs(model, 3, 4, 12)
    states = {name: inputs[name] for name in ("image_hidden_states", "text_hidden_states", "attention_mask")}
    with torch.no_grad():
        expected = model.match(**states)
    apart = (encoders.match(**states) - expected).abs()
    assert 0 < apart.median() < 0.05 * expected.abs().max() and apart.max() < 0.3 * expected.abs().max()


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx.data", "tokenizer.json"])
def test_a_broken_file_is_refused(exported, tmp_path, name):
    folder = tmp_path / "broken"
    shutil.copytree(exported, folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(ValueError, match=f"{name}' is broken or was changed"):
        OnnxEncoders(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"lacks its file '{name}'"):
        OnnxEncoders(folder)


def test_folders_that_hold_no_export(exported, model, processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="ccrk export makes them"):
        OnnxEncoders(tmp_path)
    for text in (
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 9, "files": {}, "int8": 0, "image_size": 1, "fingerprint": 0}',
    ):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=MANIFEST):
            OnnxEncoders(tmp_path)
    manifest = json.loads((exported / MANIFEST).read_text())
    manifest["files"] = {"../secret": "0" * 64}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    (tmp_path.parent / "secret").write_text("")
    with pytest.raises(ValueError, match="lacks its file '../secret'"):
        OnnxEncoders(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no export of this package"):
        export_encoders(model, processor, tmp_path / "other")


def test_what_is_not_the_model_is_refused(exported, model):
    class Wrong(OnnxEncoders):
        def get_text_features(self, *args):
            output = super().get_text_features(*args)
            output.pooler_output = output.pooler_output + 0.01
            return output

    with pytest.raises(ValueError, match="'text_embeds' is 0.01.* away from the model's.*nothing was written"):
        onnx_export._differences(model, Wrong(exported), int8=False)


def test_a_model_in_bfloat16_is_refused(build_model, processor, tmp_path):
    with pytest.raises(ValueError, match="load it in float32"):
        export_encoders(build_model().to(torch.bfloat16), processor, tmp_path / "half")
