"""Folders of Spaces: complete, with metadata that the Hub takes, and nothing in them that was not meant for others."""

from __future__ import annotations

import ast

import PIL.Image
import pytest
from huggingface_hub import SpaceCard

from ccrk.cli.main import main
from ccrk.serving.guards import security_headers
from ccrk.serving.options import ServingOptions
from ccrk.serving.space import build_metric_space, build_search_space, read_card
from ccrk.serving.space_app import space_options

COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture
def photos(tmp_path, place):
    """A folder of photos: one with a place in its metadata, one that is broken, one that a link leads out to."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("one.png", "one.jpg", "more/größe & 50%.png")):
        exif = PIL.Image.Exif()
        exif[0x010E] = "taken at home"
        PIL.Image.new("RGB", (900, 600), (40 * number, 90, 160)).save(folder / name, exif=exif)
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "out.png").symlink_to(place / "outside.png")
    return folder


@pytest.fixture
def saved(tmp_path, model, processor):
    folder = tmp_path / "my-model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "trainer_state.json").write_text("{}")
    return folder


def names(folder) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_folder_with_a_model_of_the_hub(photos, tmp_path):
    out = tmp_path / "space"
    built = build_search_space("org/ccrk", out, gallery=photos, revision="v1", license="cc-by-4.0")
    assert built.photos == 3 and {name for name, _ in built.skipped} == {"broken.jpg", "out.png"}
    shown = {"photos/one.jpg", "photos/one-2.jpg", "photos/more/größe_50.jpg"}
    assert names(out) == {"app.py", "requirements.txt", "README.md", *shown}
    for name in shown:
        with PIL.Image.open(out / name) as photo:
            assert max(photo.size) == 640 and photo.format == "JPEG" and not photo.getexif()
    card = SpaceCard.load(out / "README.md").data.to_dict()
    assert card == read_card(out)
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["models"] == ["org/ccrk"]
    assert card["python_version"] == "3.11"
    assert card["sdk_version"].split(".")[0] == "6" and card["license"] == "cc-by-4.0"
    assert {card["colorFrom"], card["colorTo"]} <= COLOURS and len(card["short_description"]) <= 60
    assert (out / "requirements.txt").read_text().startswith("ccrk[serve]>=")
    code = (out / "app.py").read_text()
    constants = {
        node.targets[0].id: node.value.value
        for node in ast.parse(code).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert constants == {"MODEL": "org/ccrk", "REVISION": "v1", "GALLERY": "photos"}
    for file in out.rglob("*"):
        if file.suffix in (".py", ".md", ".txt"):
            assert str(tmp_path) not in file.read_text(), "no path of this machine"


def test_folder_with_a_model_of_ones_own(photos, saved, tmp_path):
    out = tmp_path / "space"
    assert main(["space", str(saved), "--gallery", str(photos), "--limit", "1", "--out", str(out)]) == 0
    found = names(out)
    assert {"my-model/config.json", "my-model/model.safetensors", "my-model/tokenizer.json"} <= found
    assert not {"my-model/training_args.bin", "my-model/trainer_state.json"} & found
    assert len([name for name in found if name.startswith("photos/")]) == 1
    assert 'MODEL = str(HERE / "my-model")' in (out / "app.py").read_text()
    assert "models" not in read_card(out)


def test_photos_of_a_data_set(tmp_path, capsys):
    import datasets

    photos = [PIL.Image.new("RGB", (50, 40), (n, 0, 0)) for n in range(5)]
    datasets.Dataset.from_dict({"photo": photos}).to_parquet(tmp_path / "set" / "train-0.parquet")
    words = ["space", "org/ccrk", "--dataset", str(tmp_path / "set"), "--column", "photo", "--limit", "3"]
    assert main([*words, "--out", str(tmp_path / "space")]) == 0
    assert names(tmp_path / "space" / "photos") == {f"{number:05d}.jpg" for number in range(3)}
    assert "3 photos" in capsys.readouterr().out
    assert "datasets" not in read_card(tmp_path / "space"), "a folder of this machine is no data set of the Hub"
    assert main([*words[:-4], "--out", str(tmp_path / "other")]) == 2
    assert "has no column 'image'; it has photo" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["mrv", "ccr_recall"])
def test_folder_of_a_metric(name, tmp_path):
    built = build_metric_space(name, tmp_path / "out")
    found = names(built.folder)
    assert {"app.py", "requirements.txt", "README.md", f"{name}.py"} <= found and "__init__.py" not in found
    card = read_card(built.folder)
    assert card["python_version"] == "3.11"
    assert card["sdk"] == "gradio" and {"evaluate", "metric"} <= set(card["tags"])
    assert {"gradio", "evaluate", "numpy"} <= {
        line.split(">")[0] for line in (built.folder / "requirements.txt").read_text().splitlines()
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["org/ccrk"], "give gallery or dataset, one of them"),
        (["nothing-of-that-name", "--gallery", "PHOTOS"], "neither a folder nor the id of a model"),
        (["org/ccrk", "--gallery", "nowhere"], "no gallery folder 'nowhere'"),
        (["org/ccrk", "--gallery", "PHOTOS", "--limit", "0"], "limit is 0"),
        (["PHOTOS", "--gallery", "PHOTOS"], "holds no model"),
        (["PHOTOS", "--gallery", "PHOTOS", "--revision", "v1"], "a revision ('v1') is of a model on the Hub"),
        ([], "give a MODEL, or --metric"),
        (["org/ccrk", "--metric", "mrv"], "give a MODEL, or --metric"),
        (["--metric", "bleu"], "there is no metric 'bleu'"),
        (["--metric", "mrv", "--gallery", "PHOTOS"], "--gallery goes with a MODEL"),
    ],
)
def test_errors_leave_nothing(words, told, photos, tmp_path, capsys):
    words = [str(photos) if word == "PHOTOS" else word for word in words]
    assert main(["space", *words, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(photos, tmp_path, capsys):
    before = names(photos)
    assert main(["space", "org/ccrk", "--gallery", str(photos), "--out", str(photos)]) == 2
    assert "is there already" in capsys.readouterr().err and names(photos) == before


def test_address_is_that_of_the_environment(photos, tmp_path, monkeypatch):
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "SPACE_ID", "CCRK_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    options = space_options(tmp_path, "org/ccrk", "photos")
    assert (options.host, options.port, options.embedded_in) == ("127.0.0.1", 7860, ())
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7861")
    monkeypatch.setenv("SPACE_ID", "org/space")
    options = space_options(tmp_path, "org/ccrk", "photos")
    assert (options.host, options.port) == ("0.0.0.0", 7861)
    headers = dict(security_headers(options.embedded_in))
    assert headers[b"content-security-policy"].endswith(b"frame-ancestors 'self' https://huggingface.co")
    assert b"x-frame-options" not in headers and b"x-frame-options" in dict(security_headers())
    with pytest.raises(ValueError, match="no folder '..' with photos"):
        space_options(tmp_path / "photos", "org/ccrk", "..")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "http")
    with pytest.raises(ValueError, match="GRADIO_SERVER_PORT is 'http'"):
        space_options(tmp_path, "org/ccrk", "photos")
    with pytest.raises(ValueError, match="embedded_in names 'https://a.example; script-src"):
        ServingOptions(embedded_in=["https://a.example; script-src *"])
