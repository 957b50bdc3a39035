"""`ccrk index` and what `ccrk search` does with its indexes, through the parser of the command line."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

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
    return root


def run(capsys, *words) -> dict:
    assert main(["index", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def search(capsys, *words) -> list[dict]:
    assert main(["search", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[0])["results"]


def test_index_update_and_search(saved, place, tmp_path, capsys):
    uri = f"lance://{tmp_path}/photos.lance"
    said = run(capsys, place, "--model", saved, "--to", uri)
    assert (said["index"], said["added"], said["embedded"], said["rows"]) == (uri, 6, 6, 6)
    (place / "0.png").unlink()
    (place / "broken.png").write_bytes(b"no photo")
    assert main(["index", str(place), "--model", str(saved), "--to", uri, "--skipped", str(tmp_path / "s.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert "1  deleted" in out and "5  unchanged" in out and f"5  rows in {uri}" in out
    assert "skipped broken.png: " in err and json.loads((tmp_path / "s.jsonl").read_text())["item"] == "broken.png"
    results = search(capsys, saved, uri, "a dog")
    expected = search(capsys, saved, place, "a dog")
    assert [r["id"] for r in results] == [r["id"] for r in expected] and len(results) == 5
    assert [r["score"] for r in results] == pytest.approx([r["score"] for r in expected], abs=1e-4)


def test_columns_and_filters(saved, place, tmp_path, capsys):
    table = tmp_path / "photos.csv"
    lines = [f"{n}.png,{2000 + n},{'here' if n % 2 else 'there'},x" for n in range(6)]
    table.write_text("\n".join(["path,year,place,note", *lines]))
    uri = f"lance://{tmp_path}/i"
    run(capsys, table, "--photos", place, "--columns", "year, place", "--model", saved, "--to", uri)
    assert set(search(capsys, saved, uri, "a dog")[0]) >= {"year", "place", "width"}
    assert "note" not in search(capsys, saved, uri, "a dog")[0]
    found = search(capsys, saved, uri, "a dog", "--where", "year=2001..2004", "--where", "place=here")
    assert {r["year"] for r in found} == {2001, 2003}
    assert len(search(capsys, saved, uri, "a dog", "--where", "year=2001,2005", "--rerank", 4)) == 2
    assert main(["search", str(saved), uri, "a dog", "--where", "year=x"]) == 2
    assert "the column holds a whole number" in capsys.readouterr().err
    assert main(["search", str(saved), str(place), "a dog", "--where", "year=1"]) == 2
    assert "needs an index" in capsys.readouterr().err


def test_states_beside_the_index(saved, place, tmp_path, capsys):
    uri = f"lance://{tmp_path}/i"
    assert run(capsys, place, "--model", saved, "--to", uri, "--states")["states"] == 6
    assert (tmp_path / "i-states").is_dir()
    kept = search(capsys, saved, uri, "a dog", "--rerank", "auto")
    assert all(result["match"] is not None for result in kept)
    shutil.rmtree(tmp_path / "i-states")
    assert "match" not in search(capsys, saved, uri, "a dog", "--rerank", "auto")[0]
    computed = {r["id"]: r["match"] for r in search(capsys, saved, uri, "a dog", "--rerank", 6)}
    assert [r["match"] for r in kept] == pytest.approx([computed[r["id"]] for r in kept], abs=0.02)


def test_texts_as_a_gallery(saved, place, tmp_path, capsys):
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(tiny.CAPTIONS), encoding="utf-8")
    uri = f"lance://{tmp_path}/texts"
    threads = torch.get_num_threads()
    try:
        said = run(capsys, file, "--model", saved, "--to", uri, "--bf16", "--threads", 1, "--batch-size", 3)
    finally:
        torch.set_num_threads(threads)
    assert said["added"] == len(tiny.CAPTIONS)
    results = search(capsys, saved, uri, "--image", place / "0.png", "--rerank", "auto")
    assert {r["text"] for r in results} == set(tiny.CAPTIONS) and results[0]["match"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--model", "MODEL", "--to", "lance://TMP/x"], "there is no file or folder 'nowhere' to index"),
        (["PHOTOS", "--model", "MODEL", "--to", "TMP/x"], "names no index"),
        (["PHOTOS", "--model", "MODEL", "--to", "s3://x"], "names no index"),
        (["PHOTOS", "--model", "MODEL", "--to", "memory:x"], "would be gone with this process"),
        (
            ["PHOTOS", "--model", "MODEL", "--to", "milvus://h:1/x", "--states"],
            "name a folder for the states of 'milvus://h:1/x'",
        ),
        (["PHOTOS", "--model", "MODEL", "--to", "lance://TMP/x", "--batch-size", "0"], "--batch-size is 0"),
        (["PHOTOS", "--model", "MODEL", "--to", "lance://TMP/x", "--columns", "year"], "is no table"),
        (["TEXTS", "--model", "MODEL", "--to", "lance://TMP/x", "--states"], "--states keeps what re-ranking needs"),
        (["PHOTOS", "--model", "MODEL", "--to", "lance://PHOTOS"], "holds something else"),
    ],
)
def test_errors_are_one_line(saved, place, tmp_path, capsys, words, message):
    (tmp_path / "texts.txt").write_text("a dog")
    places = {"MODEL": saved, "PHOTOS": place, "TEXTS": tmp_path / "texts.txt", "TMP": tmp_path}
    for name, path in places.items():
        words = [word.replace(name, str(path)) for word in words]
    assert main(["index", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and "ccrk index: " in said and "Traceback" not in said
