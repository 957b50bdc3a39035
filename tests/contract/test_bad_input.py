"""What happens to bad input: each case ends in a result or in an error that names the thing and the cause.

Run as a script it prints the table of the documentation.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccrk import CCRkConfig, CCRkModel, CCRkRetrievalPipeline
from ccrk.cli.main import main as command
from ccrk.conversion_ccrk import convert_checkpoint, read_checkpoint

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent.parent / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
OFFICIAL = Path(__file__).parent.parent / "fixtures" / "official_tiny"
SIDE = tiny.IMAGE_SIZE


class Bench:
    """A tiny model with its processor, and a folder to spoil things in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.processor = tiny.build_processor()
        self.model = tiny.build_model(len(self.processor.tokenizer))

    def photo(self, name: str, image: Image.Image | None = None, **options) -> Path:
        """Saves a photo and returns its path."""
        path = self.folder / name
        (image or Image.new("RGB", (40, 30), (200, 30, 30))).save(path, **options)
        return path

    def file(self, name: str, content: bytes) -> Path:
        """Writes a file and returns its path."""
        path = self.folder / name
        path.write_bytes(content)
        return path

    def pixels(self, path) -> torch.Tensor:
        """What the model would see of a photo."""
        return self.processor(images=[path], return_tensors="pt")["pixel_values"]

    def checkpoint(self, change: Callable[[dict], None]) -> Path:
        """The small reference checkpoint, changed."""
        state = {k: v.clone() for k, v in read_checkpoint(OFFICIAL / "ccrk_official.th").items()}
        change(state)
        path = self.folder / "changed.th"
        torch.save({"model": state}, path)
        return path

    def convert(self, path, config=OFFICIAL / "config.json", out="out"):
        """Converts into the folder."""
        return convert_checkpoint(str(path), self.folder / out, config=config)

    def search(self, gallery, query="a dog", **options):
        """A search with the tiny model."""
        pipe = CCRkRetrievalPipeline(model=self.model, processor=self.processor, gallery=gallery)
        return pipe(query, **options)


def truncated(bench: Bench) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    path = bench.photo("cut.jpg", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def exif_rotated(bench: Bench) -> Path:
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))  # left half white: upright, it is the top
    exif = Image.Exif()
    exif[0x0112] = 6
    return bench.photo("turned.jpg", image, exif=exif)


def animated(bench: Bench) -> Path:
    frames = [Image.new("RGB", (30, 30), color) for color in ((250, 0, 0), (0, 250, 0))]
    return bench.photo("moving.gif", frames[0], save_all=True, append_images=frames[1:])


def broken_gallery(bench: Bench) -> list[dict]:
    folder = bench.folder / "photos"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "good.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not a photo")
    return bench.search(folder)


def unwritable(bench: Bench):
    (bench.folder / "taken").write_text("a file where a folder is wanted")
    return bench.convert(OFFICIAL / "ccrk_official.th", out="taken/out")


def nan_weights(bench: Bench):
    bench.model.ccrk.text_projection[0].weight.data.fill_(float("nan"))
    return bench.search(["a dog", "a cat"])


def missing_weight(bench: Bench):
    from safetensors.torch import load_file, save_file

    bench.model.save_pretrained(bench.folder / "model")
    file = bench.folder / "model" / "model.safetensors"
    state = load_file(file)
    del state["ccrk.itm_head.3.bias"]
    save_file(state, file, metadata={"format": "pt"})
    return CCRkModel.from_pretrained(bench.folder / "model")


def run_command(*words: str):
    """A command line; its message on stderr becomes the error."""
    err, out = io.StringIO(), io.StringIO()
    with redirect_stderr(err), redirect_stdout(out):
        code = command(list(words))
    if code:
        raise ValueError(err.getvalue().strip())
    return out.getvalue()


def executable_pickle(bench: Bench):
    class Payload:
        def __reduce__(self):
            return os.system, ("touch " + str(bench.folder / "executed"),)

    path = bench.folder / "payload.th"
    torch.save({"model": Payload()}, path)
    try:
        return bench.convert(path)
    finally:
        assert not (bench.folder / "executed").exists()


# name -> (what to do, None where it must work, or words that the error must hold)
CASES: dict[str, tuple[Callable[[Bench], object], tuple[str, ...] | None]] = {
    "photo: missing file": (lambda b: b.pixels(b.folder / "no.jpg"), ("no.jpg", "there is no image file")),
    "photo: zero bytes": (lambda b: b.pixels(b.file("zero.jpg", b"")), ("zero.jpg", "empty (0 bytes)")),
    "photo: text in a .jpg": (lambda b: b.pixels(b.file("text.jpg", b"hello")), ("text.jpg", "not an image")),
    "photo: truncated JPEG": (lambda b: b.pixels(truncated(b)), ("cut.jpg", "truncated")),
    "photo: a folder": (lambda b: b.pixels(b.folder), ("is a folder",)),
    "photo: CMYK": (lambda b: b.pixels(b.photo("cmyk.jpg", Image.new("CMYK", (30, 30)))), None),
    "photo: RGBA": (lambda b: b.pixels(b.photo("rgba.png", Image.new("RGBA", (30, 30), (9, 9, 9, 0)))), None),
    "photo: 16-bit grey": (
        lambda b: b.pixels(b.photo("deep.png", Image.fromarray(np.full((20, 20), 32896, np.uint16)))),
        None,
    ),
    "photo: animated GIF": (lambda b: b.pixels(animated(b)), None),
    "photo: EXIF-rotated": (lambda b: b.pixels(exif_rotated(b)), None),
    "photo: 1 x 1": (lambda b: b.pixels(b.photo("dot.png", Image.new("RGB", (1, 1)))), None),
    "photo: 20000 x 20": (lambda b: b.pixels(b.photo("strip.png", Image.new("RGB", (20000, 20)))), None),
    "photo: 400 megapixels": (
        lambda b: b.pixels(b.photo("bomb.png", Image.new("1", (20000, 20000)))),
        ("bomb.png", "too large"),
    ),
    "gallery: some broken photos": (broken_gallery, None),
    "gallery: no folder": (lambda b: b.search(b.folder / "nowhere"), ("nowhere",)),
    "gallery: empty folder": (lambda b: b.search(b.folder), ("no ", str)),
    "gallery: unknown back end": (lambda b: b.search("mystery://x"), ("mystery",)),
    "query: empty": (lambda b: b.search(["a", "b"], ""), ("empty",)),
    "query: blank": (lambda b: b.search(["a", "b"], " \t\n"), ("empty",)),
    "query: control characters only": (lambda b: b.search(["a", "b"], "\x00\x07"), ("empty",)),
    "query: 10,000 words": (lambda b: b.search(["a", "b"], "dog " * 10_000), None),
    "query: a number": (lambda b: b.search(["a", "b"], 7), ("int",)),
    "query: top_k=0": (lambda b: b.search(["a", "b"], "dog", top_k=0), ("top_k is 0",)),
    "caption: empty, nested": (
        lambda b: b.processor(text=[["a dog"], ["a cat", "  "]]),
        ("caption 1 of image 1 is empty",),
    ),
    "caption: not a string": (lambda b: b.processor(text=["a", None]), ("text 1 is NoneType",)),
    "batch: 1 image, captions for 2": (
        lambda b: b.processor(images=[Image.new("RGB", (9, 9))], text=[["a"], ["b"]]),
        ("1 images but captions for 2",),
    ),
    "batch: loss without image_index": (
        lambda b: b.model(
            pixel_values=torch.zeros(2, 3, SIDE, SIDE), input_ids=torch.ones(2, 4, dtype=torch.long), return_loss=True
        ),
        ("needs image_index",),
    ),
    "batch: wrong image size": (
        lambda b: b.model.get_image_features(torch.zeros(1, 3, 99, 99)),
        ("(1, 3, 99, 99)", f"(B, 3, {SIDE}, {SIDE})"),
    ),
    "model: NaN weights": (nan_weights, ("NaN",)),
    "model: a weight missing": (missing_weight, ("itm_head.3.bias",)),
    "config: unknown image tower": (
        lambda b: CCRkModel(CCRkConfig(vision_config={"architecture": "swin_of_nowhere"})),
        ("swin_of_nowhere", "cannot be built"),
    ),
    "config: text model of another family": (
        lambda b: CCRkConfig(text_config={"model_type": "gpt2"}),
        ("gpt2",),
    ),
    "convert: text file named .th": (
        lambda b: b.convert(b.file("a.th", b"hello" * 50)),
        ("a.th", "not a torch checkpoint"),
    ),
    "convert: truncated .th": (
        lambda b: b.convert(b.file("half.th", (OFFICIAL / "ccrk_official.th").read_bytes()[:700_000])),
        ("half.th", "not a torch checkpoint"),
    ),
    "convert: empty .th": (lambda b: b.convert(b.file("zero.th", b"")), ("zero.th", "0 bytes")),
    "convert: code in the pickle": (executable_pickle, ("payload.th", "weights_only")),
    "convert: wrong shape": (
        lambda b: b.convert(b.checkpoint(lambda s: s.update({"temp": torch.zeros(3)}))),
        ("wrong shape: temp is (3,)",),
    ),
    "convert: missing tensor": (
        lambda b: b.convert(b.checkpoint(lambda s: s.pop("text_proj.bias"))),
        ("missing", "text_projection.0.bias"),
    ),
    "convert: unexpected tensor": (
        lambda b: b.convert(b.checkpoint(lambda s: s.update({"surprise": torch.zeros(1)}))),
        ("unexpected: surprise",),
    ),
    "convert: NaN in a tensor": (
        lambda b: b.convert(b.checkpoint(lambda s: s["text_proj.bias"].fill_(float("nan")))),
        ("not finite: text_proj.bias",),
    ),
    "convert: --config is not JSON": (
        lambda b: b.convert(OFFICIAL / "ccrk_official.th", config=b.file("c.json", b"{")),
        ("c.json", "not a JSON file"),
    ),
    "convert: --config with an unknown field": (
        lambda b: b.convert(OFFICIAL / "ccrk_official.th", config=b.file("c.json", json.dumps({"depth": 1}).encode())),
        ("depth",),
    ),
    "convert: no tokenizer to be had": (
        lambda b: run_command(
            "convert",
            str(OFFICIAL / "ccrk_official.th"),
            str(b.folder / "o"),
            "--config",
            str(OFFICIAL / "config.json"),
            "--tokenizer",
            str(b.folder / "nowhere"),
        ),
        ("nowhere", "--tokenizer"),
    ),
    "output: folder cannot be made": (unwritable, ("taken",)),
    "command: missing checkpoint": (
        lambda b: run_command("convert", str(b.folder / "no.th"), str(b.folder / "o")),
        ("no.th",),
    ),
    "command: train on a missing file": (
        lambda b: run_command(
            "train",
            "--image-tower",
            "t",
            "--text-tower",
            "t",
            "--data",
            str(b.folder / "no.jsonl"),
            "--out",
            str(b.folder / "o"),
        ),
        ("no.jsonl",),
    ),
}
KNOWN_ERRORS = (ValueError, TypeError, OSError)


def outcome(bench: Bench, name: str) -> tuple[str, BaseException | None]:
    """What a case came to, in words, and its error."""
    action, _ = CASES[name]
    try:
        result = action(bench)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace(str(bench.folder) + "/", "").replace(
            str(bench.folder), "FOLDER"
        ), error
    if isinstance(result, torch.Tensor):
        return f"accepted, {tuple(result.shape)}", None
    return "accepted" if not isinstance(result, list) else f"accepted, {len(result)} result(s)", None


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, tmp_path):
    _, words = CASES[name]
    text, error = outcome(Bench(tmp_path), name)
    if words is None:
        assert error is None, text
        return
    assert error is not None, f"{name} was {text}"
    known = isinstance(error, KNOWN_ERRORS) or type(error).__name__.startswith("StrictDataclass")
    assert known, text
    for word in words:
        assert word is str or word in str(error), text


def test_exif_is_applied_and_deep_grey_is_not_clipped(tmp_path):
    bench = Bench(tmp_path)
    upright = bench.processor.image_processor.open_image(exif_rotated(bench))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 4))[0] > 200 > 50 > upright.getpixel((10, 36))[0]
    grey = bench.photo("deep.png", Image.fromarray(np.full((20, 20), 32896, np.uint16)))
    assert bench.processor.image_processor.open_image(grey).getpixel((0, 0)) == (128, 128, 128)


def main() -> None:
    """Prints the table in Markdown."""
    print("| case | what happens |\n| --- | --- |")
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            text, _ = outcome(Bench(Path(folder)), name)
        words = " ".join(text.replace("|", "/").split())
        print(f"| {name} | {words if len(words) < 330 else words[:330] + ' ...'} |")


if __name__ == "__main__":
    sys.exit(main())
