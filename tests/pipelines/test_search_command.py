"""`ccrk search`, run in this process through the parser of the command line."""

from __future__ import annotations

import json

import pytest
import torch

from ccrk.cli.main import main


@pytest.fixture(scope="module")
def saved(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_photos_by_texts(saved, folder, search, capsys):
    assert (
        main(["search", "--top-k", "3", "--rerank", "5", "--json", str(saved), str(folder), "a dog", "the sun"]) == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == ["a dog", "the sun"]
    expected = search(folder)(["a dog", "the sun"], top_k=3, rerank=5)
    for line, row in zip(lines, expected, strict=True):
        assert [r["id"] for r in line["results"]] == [r["id"] for r in row]
        assert [r["score"] for r in line["results"]] == pytest.approx([r["score"] for r in row], abs=1e-4)


def test_options_stand_anywhere(saved, folder, capsys):
    """`argparse` by itself takes the gallery for the last bare word as soon as an option follows it."""
    printed = []
    for words in (["--top-k", "2", str(folder), "a dog", "sun"], [str(folder), "--top-k", "2", "a dog", "sun"]):
        assert main(["search", "--json", str(saved), *words]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].count("\n") == 2
    with pytest.raises(SystemExit):
        main(["search", str(saved), str(folder), "--nonsense", "a dog"])
    assert "--nonsense" in capsys.readouterr().err


def test_captions_by_photo_as_a_table(saved, folder, captions, search, tmp_path, capsys):
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(captions) + "\n\n", encoding="utf-8")
    threads = torch.get_num_threads()
    try:
        code = main(
            ["search", str(saved), str(folder / "00.png"), "--captions", str(file), "--image", "--threads", "1"]
        )
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(folder / "00.png") and lines[1].split() == ["#", "score"]
    expected = search(captions)(folder / "00.png")
    assert [line.split(maxsplit=2)[2] for line in lines[2:-1]] == [r["text"] for r in expected]


def test_table_marks_what_was_not_reranked(saved, folder, capsys):
    assert main(["search", "--rerank", "1", "--top-k", "2", str(saved), str(folder), "a dog"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["#", "score", "similarity", "match"]
    assert lines[2].split()[3] != "-" and lines[3].split()[3] == "-"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "nowhere", "a dog"], "there is no gallery folder 'nowhere'"),
        (["MODEL", "FOLDER"], "there is no query"),
        (["MODEL", "FOLDER", " "], "query 0 is empty"),
        (["--image", "MODEL", "FOLDER", "nowhere.png"], "query 0: there is no image file 'nowhere.png'"),
        (["--top-k", "0", "MODEL", "FOLDER", "a dog"], "top_k is 0"),
        (["--threads", "0", "MODEL", "FOLDER", "a dog"], "--threads is 0"),
        (["--captions", "nowhere.txt", "MODEL", "a dog"], "nowhere.txt: No such file"),
    ],
)
def test_errors_are_one_line(saved, folder, capsys, words, message):
    places = {"MODEL": str(saved), "FOLDER": str(folder)}
    assert main(["search", *(places.get(word, word) for word in words)]) == 2
    said = capsys.readouterr().err
    assert f"ccrk search: {message}" in said and "Traceback" not in said


def test_skipped_files_are_told(saved, photos, tmp_path, capsys):
    photos[0].save(tmp_path / "0.png")
    (tmp_path / "empty.png").touch()
    assert main(["search", str(saved), str(tmp_path), "a dog"]) == 0
    assert "ccrk search: 1 of the gallery could not be read" in capsys.readouterr().err
