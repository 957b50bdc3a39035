"""`ccrk embed` and `ccrk export` through the parser of the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from ccrk.cli.main import main

SPEC = importlib.util.spec_from_file_location("ccrk_tests_tiny", Path(__file__).parents[1] / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    processor = tiny.build_processor()
    tiny.build_model(len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for number, photo in enumerate(tiny.build_photos(6)):
        photo.save(root / f"{number}.png")
    (root / "broken.png").write_bytes(b"no photo")
    return root


def test_embed_into_an_index_that_search_and_index_know(saved, place, tmp_path, capsys):
    uri = f"lance://{tmp_path}/photos.lance"
    words = ["embed", str(place), "--model", str(saved), "--to", str(tmp_path / "shards"), "--shard-size", "3"]
    assert main([*words, "--into", uri]) == 0
    out, err = capsys.readouterr()
    assert "6  rows in 3 shards" in out and "3 computed now" in out and f"6 in {uri}" in out
    assert "skipped broken.png: " in err
    assert main([*words, "--into", uri, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["shards"], said["computed"], said["rows"], said["written"], said["index_rows"]) == (3, 0, 6, 0, 6)
    assert main(["search", str(saved), uri, "a dog", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert len(found) == 6 and found[0]["path"].startswith(str(place))
    assert main(["index", str(place), "--model", str(saved), "--to", uri, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["embedded"], said["deleted"], said["rows"]) == (0, 0, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no file or folder 'nowhere'"),
        (["PLACE", "--workers", "2"], "add --ray"),
        (["PLACE", "--batch-size", "0"], "--batch-size is 0"),
        (["PLACE", "--columns", "year"], "is no table"),
    ],
)
def test_wrong_words(saved, place, tmp_path, capsys, words, message):
    words = [str(place) if word == "PLACE" else word for word in words]
    assert main(["embed", *words, "--model", str(saved), "--to", str(tmp_path / "shards")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


@pytest.mark.slow
def test_export(saved, tmp_path, capsys):
    from ccrk.pipelines.onnx_encoders import OnnxEncoders

    assert main(["export", str(saved), "--to", str(tmp_path / "onnx")]) == 0
    out = capsys.readouterr().out
    assert "MiB, in" in out and "image_embeds: at most" in out and "cosine at least" in out
    assert OnnxEncoders(tmp_path / "onnx").fingerprint.dimension == 12
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert main(["export", str(saved), "--to", str(tmp_path / "mine")]) == 2
    assert "is no export of this package" in capsys.readouterr().err
