"""Photos of every kind become the picture that the image processor makes of them, or an error with its cause."""

from __future__ import annotations

import base64
import io
import os
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ccrk.data.images import CAUSES, FORMATS, BrokenImageError, load_image, load_reduced
from ccrk.image_processing_ccrk import open_image


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A picture with the smooth areas and edges of a photo."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    picture = small.resize((width, height), Image.Resampling.BICUBIC)
    box = (width // 4, height // 4, width // 2, height // 2)
    picture.paste((250, 240, 20), box)
    return picture.filter(ImageFilter.GaussianBlur(1))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def cause_of(image, **options) -> str:
    with pytest.raises(BrokenImageError) as caught:
        load_image(image, **options)
    assert caught.value.cause in CAUSES
    assert caught.value.detail
    assert caught.value.cause in str(caught.value)
    return caught.value.cause


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- what is taken ------------------------------------------------------------------------------------------------


class Reference:
    """A lazy reference, as into an archive."""

    def __init__(self, data):
        self.data = data

    def read(self):
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


def test_every_kind_gives_the_same_picture(tmp_path):
    data = encoded(photo(), "PNG")
    path = tmp_path / "a photo.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    given = [
        path,
        str(path),
        os.fsencode(path).decode(),
        data,
        bytearray(data),
        memoryview(data),
        uri,
        Reference(data),
    ]
    given += [io.BytesIO(data), Image.open(io.BytesIO(data)), photo()]
    given += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, {"path": path}, {"bytes": data}]
    given += [{"bytes": data, "path": "inside/an/archive.png"}]
    for image in given:
        loaded = load_image(image)
        assert loaded.mode == "RGB"
        assert (levels(loaded) == levels(photo())).all(), image


def test_a_loaded_picture_has_no_file_behind_it(tmp_path):
    path = tmp_path / "a.jpg"
    photo().save(path)
    loaded = load_image(path)
    path.unlink()
    assert getattr(loaded, "fp", None) is None
    assert loaded.resize((8, 8)).size == (8, 8)


def test_a_given_picture_is_left_alone():
    grey = photo().convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(encoded(photo(), "JPEG", exif=exif)))
    assert load_image(grey).mode == "RGB" and grey.mode == "L"
    assert load_image(turned, min_side=8).size == (64, 96)
    assert turned.size == (96, 64) and turned.getexif()[0x0112] == 6


MODES = {
    "grey": lambda: photo().convert("L"),
    "one bit": lambda: photo().convert("1"),
    "palette": lambda: photo().convert("P"),
    "palette with a transparent colour": lambda: transparent_palette(),
    "grey with alpha": lambda: photo().convert("LA"),
    "colour with alpha": lambda: with_alpha(),
    "CMYK": lambda: photo().convert("CMYK"),
    "YCbCr": lambda: photo().convert("YCbCr"),
    "16 bit": lambda: Image.fromarray((levels(photo().convert("L")) * 257).astype(np.uint16)),
    "32 bit": lambda: Image.fromarray(levels(photo().convert("L")).astype(np.int32) * 100),
    "float": lambda: Image.fromarray((levels(photo().convert("L")) / 255).astype(np.float32)),
}


def with_alpha() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(photo(seed=1).convert("L"))
    return image


def transparent_palette() -> Image.Image:
    image = photo().convert("P")
    image.info["transparency"] = bytes(range(256))
    return image


@pytest.mark.parametrize("name", MODES)
def test_modes_become_what_the_image_processor_makes_of_them(name):
    image = MODES[name]()
    loaded = load_image(image)
    assert loaded.mode == "RGB" and loaded.size == image.size
    assert (levels(loaded) == levels(open_image(image))).all()
    assert levels(loaded).std() > 10, "something is still to be seen"


FILES = {
    "grey.jpg": ("grey", "JPEG", {}),
    "cmyk.jpg": ("CMYK", "JPEG", {}),
    "bits.png": ("one bit", "PNG", {}),
    "palette.png": ("palette", "PNG", {}),
    "transparent.png": ("palette with a transparent colour", "PNG", {"transparency": bytes(range(256))}),
    "alpha.png": ("colour with alpha", "PNG", {}),
    "alpha.webp": ("colour with alpha", "WEBP", {"lossless": True}),
    "palette.gif": ("palette", "GIF", {}),
    "deep.png": ("16 bit", "PNG", {}),
    "deep.tiff": ("16 bit", "TIFF", {}),
    "float.tiff": ("float", "TIFF", {}),
    "cmyk.tiff": ("CMYK", "TIFF", {}),
    "bits.bmp": ("one bit", "BMP", {}),
    "grey.pgm": ("grey", "PPM", {}),
    "grey.jp2": ("grey", "JPEG2000", {}),
    "alpha.ico": ("colour with alpha", "ICO", {}),
}


@pytest.mark.parametrize("name", FILES)
def test_files_become_what_the_image_processor_makes_of_them(name, tmp_path):
    mode, kind, options = FILES[name]
    assert kind in FORMATS
    path = tmp_path / name
    path.write_bytes(encoded(MODES[mode](), kind, **options))
    assert (levels(load_image(path)) == levels(open_image(path))).all()


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (30, 20), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        loaded = levels(load_image(data))
        assert loaded.shape == (20, 30, 3)
        assert abs(loaded - (250, 0, 0)).max() <= 5, kind


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(turn, kind):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(photo(), kind, exif=exif)
    assert (levels(load_image(data)) == levels(open_image(io_image(data)))).all()
    if kind == "JPEG":
        reduced = load_image(data, min_side=32)
        assert reduced.size == ((32, 48) if turn >= 5 else (48, 32))
        full = load_image(data).resize(reduced.size, Image.Resampling.BOX)
        assert abs(levels(full) - levels(reduced)).mean() < 3


def io_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_a_damaged_exif_block_costs_the_orientation_only():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(photo(), "JPEG", exif=exif))
    start = data.index(b"Exif\0\0") + 6
    data[start : start + 8] = b"\xff" * 8
    assert (levels(load_image(bytes(data))) == levels(io_image(encoded(photo(), "JPEG")))).all()


# --- reduced decoding ---------------------------------------------------------------------------------------------


def test_min_side_is_kept_and_the_scale_is_the_largest_that_keeps_it():
    for width, height in ((640, 480), (641, 479), (479, 641), (1000, 113), (97, 801)):
        data = encoded(photo(width, height), "JPEG")
        for side in (1, 10, 56, 57, 112, 113, 120, 239, 240, 241, 480, 900):
            loaded, full = load_reduced(data, lambda size, side=side: min(size) // side)
            assert full == (width, height)
            scale = max(s for s in (1, 2, 4, 8) if s == 1 or s <= min(width, height) // side)
            assert loaded.size == (-(-width // scale), -(-height // scale))
            assert loaded.size == load_image(data, min_side=side).size
            assert min(loaded.size) >= min(side, width, height)


def test_other_formats_and_given_pictures_stay_whole():
    for kind in ("PNG", "WEBP", "GIF"):
        assert load_image(encoded(photo(640, 480), kind), min_side=32).size == (640, 480)
    assert load_image(io_image(encoded(photo(640, 480), "JPEG")), min_side=32).size == (640, 480)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_reduced_pictures_are_close_to_the_full_ones(mode, scale):
    """Against the mean of every block of the full picture, which is what a reduced decode stands for."""
    data = encoded(photo(640, 480).convert(mode), "JPEG", quality=90)
    reduced = load_image(data, min_side=480 // scale)
    full = load_image(data)
    blocks = full.reduce(scale)
    assert reduced.size == blocks.size
    difference = abs(levels(reduced) - levels(blocks))
    # a level for rounding in each of two colour conversions; at edges the decoder's cut of frequencies is no mean
    assert difference.mean() < 1.0
    assert np.percentile(difference, 99) <= 6


# a smooth picture; one with noise in every pixel, the worst case, of which a tenth is seen
@pytest.mark.parametrize(("noise", "bound"), [(0, 0.5), (25, 3.0)])
def test_what_a_reduced_decode_changes_after_the_final_resize(noise, bound):
    rng = np.random.default_rng(3)
    detailed = levels(photo(1000, 900)) + rng.normal(0, noise, (900, 1000, 3))
    data = encoded(Image.fromarray(detailed.clip(0, 255).astype(np.uint8)), "JPEG", quality=90)
    full, reduced = load_image(data), load_image(data, min_side=224)
    assert reduced.size == (250, 225)
    bicubic = Image.Resampling.BICUBIC
    wanted = levels(full.resize((224, 224), bicubic))
    difference = abs(wanted - levels(reduced.resize((224, 224), bicubic))).mean()
    assert difference < bound
    # with one halving left to the final resize, about half of it remains
    half = load_image(data, min_side=448).resize((224, 224), bicubic)
    assert abs(wanted - levels(half)).mean() < max(0.6 * difference, 0.5)


def test_a_bad_min_side_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="min_side is 0") as caught:
        load_image(photo(), min_side=0)
    assert not isinstance(caught.value, BrokenImageError)


# --- what is wrong ------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, with hardly any data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_causes_of_reading(tmp_path):
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert cause_of(tmp_path / "no.jpg") == "file missing"
    assert cause_of(tmp_path / "zero.jpg" / "no.jpg") == "file missing"
    assert cause_of({"bytes": None, "path": "no/such.jpg"}) == "file missing"
    assert cause_of(tmp_path) == "is a folder"
    assert cause_of(tmp_path / "loop.jpg") == "cannot be read"
    assert cause_of(str(tmp_path / "zero\0.jpg")) == "cannot be read"
    assert cause_of("x" * 5000) == "cannot be read"
    assert cause_of(Reference(RuntimeError("the archive is gone"))) == "cannot be read"
    assert cause_of(Reference(FileNotFoundError("no member"))) == "file missing"
    for empty in (tmp_path / "zero.jpg", b"", {"bytes": b"", "path": "a.jpg"}, Reference(b""), "data:;base64,"):
        assert cause_of(empty) == "empty"
    for nothing in (None, {}, {"bytes": None, "path": None}):
        assert cause_of(nothing) == "nothing given"
    for odd in (7, 1.5, ["a.jpg"], {"bytes": 7}, {"bytes": "text", "path": None, "x": 1}, Reference("text")):
        assert cause_of(odd) in ("unknown kind", "file missing")
    assert cause_of(7) == cause_of(Reference("text")) == "unknown kind"
    for address in ("https://example.com/a.jpg", "HTTP://example.com/a.jpg", "s3://bucket/a.jpg"):
        assert cause_of(address) == "not local"
    for uri in ("data:image/png;base64,abc", "data:image/png;base64,a?==", "data:image/png,abc", "data:"):
        assert cause_of(uri) == "bad base64"


def test_no_permission(tmp_path):
    path = tmp_path / "secret.png"
    photo().save(path)
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    if os.geteuid():
        assert cause_of(path) == "no permission"
        return
    os.seteuid(65534)  # the system's administrator may read everything
    try:
        assert cause_of(path) == "no permission"
    finally:
        os.seteuid(0)


def test_causes_of_foreign_bytes():
    assert cause_of(b"hello") == "not an image"
    assert cause_of(bytes(1000)) == "not an image"
    assert cause_of(np.random.default_rng(0).bytes(5000)) == "not an image"
    assert cause_of(b"\n <!DOCTYPE html><title>404</title>") == "web page"
    assert cause_of(b"<?xml version='1.0'?><html xmlns='x'></html>") == "web page"
    foreign = {
        b"<?xml version='1.0'?>\n<svg width='1'/>": "SVG",
        b"%PDF-1.7\n": "PDF",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "PostScript",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "HEIC",
        b"\0\0\0\x18ftypisom\0\0\0\0": "MP4",
        b"PK\x03\x04" + bytes(20): "ZIP",
    }
    for data, kind in foreign.items():
        with pytest.raises(BrokenImageError, match=kind) as caught:
            load_image(data)
        assert caught.value.cause == "unsupported format"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("reduce", [False, True])
def test_truncated(kind, reduce):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    for part in (0.9, 0.5, 0.1, 0.02):
        assert cause_of(data[: int(len(data) * part)], min_side=40 if reduce else None) == "truncated", part
    for count in (12, 20, 30):
        assert cause_of(data[:count]) == "truncated", count


def test_truncated_tiff():
    data = encoded(photo(), "TIFF")
    assert cause_of(data[: len(data) // 2]) == "truncated"
    assert cause_of(data[:100]) == "truncated"


def test_corrupt():
    data = bytearray(encoded(photo(), "WEBP", lossless=True))
    data[40:120] = b"\xff" * 80
    assert cause_of(bytes(data)) == "corrupt data"
    data = bytearray(encoded(photo(), "PNG"))
    place = data.index(b"IDAT") + 4  # the head of the compressed stream
    data[place : place + 8] = b"\xff" * 8
    assert cause_of(bytes(data)) == "corrupt data"
    data = bytearray(encoded(photo(), "PNG"))
    data[12:16] = b"IHDX"
    assert cause_of(bytes(data)) == "corrupt data"
    jpeg = encoded(photo(), "JPEG")
    assert cause_of(jpeg[:3] + b"\0" * 40 + jpeg[-2:]) == "corrupt data"


def test_sizes():
    assert cause_of(Image.new("RGB", (0, 5))) == "zero size"
    assert cause_of(png(20_000, 20_000)) == "too many pixels"  # beyond PIL's limit
    assert cause_of(png(10_500, 10_500)) == "too many pixels"  # where PIL only warns
    assert cause_of(encoded(photo(), "PNG"), max_pixels=96 * 64 - 1) == "too many pixels"
    assert cause_of(photo(), max_pixels=96 * 64 - 1) == "too many pixels"
    assert load_image(encoded(photo(), "PNG"), max_pixels=96 * 64).size == (96, 64)
    # not refused for its size, so it is decoded, and turns out to hold too little
    assert cause_of(png(1_000, 1_000), max_pixels=None) in ("truncated", "corrupt data")
    assert load_image(Image.new("RGB", (1, 1))).size == (1, 1)


def test_a_large_photo_is_refused_without_decoding():
    import tracemalloc

    data = png(10_500, 10_500)
    tracemalloc.start()
    cause_of(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_random_damage_ends_in_a_picture_or_in_a_known_cause():
    rng = np.random.default_rng(5)
    broken = 0
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "ICO"):
        data = encoded(photo(40, 30), kind)
        for _ in range(40):
            spoiled = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                spoiled[place] = rng.integers(256)
            try:
                assert load_image(bytes(spoiled), max_pixels=100_000).mode == "RGB"
            except BrokenImageError as error:
                assert error.cause in CAUSES
                broken += 1
    assert broken > 50


def test_messages_name_the_photo(tmp_path):
    for given, name in (
        (tmp_path / "cat.jpg", "cat.jpg"),
        ({"bytes": b"abc", "path": "dog.png"}, "dog.png"),
        (b"abc", "3 bytes"),
        (Image.new("RGB", (0, 1)), "PIL image"),
    ):
        with pytest.raises(BrokenImageError, match=name):
            load_image(given)


def test_errors_travel_between_processes():
    error = BrokenImageError("image 'a.jpg' cannot be used: truncated (9 bytes)", "truncated", "9 bytes")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(copy), copy.cause, copy.detail) == (str(error), "truncated", "9 bytes")
    assert BrokenImageError("only a message").cause in CAUSES


def test_causes_are_distinct_and_many():
    assert len(set(CAUSES)) == len(CAUSES) >= 10
