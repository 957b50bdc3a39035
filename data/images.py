"""Opening photos of any origin: as upright RGB pictures, or as an error that says which of the known causes it is.

A photo may be a path, bytes, the `{"bytes", "path"}` of a data set, a PIL image, a data URI or anything with `read()`.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import PIL.ExifTags
import PIL.Image

CAUSES: tuple[str, ...] = (
    "nothing given",  # None, or a dict of which both parts are None
    "unknown kind",  # neither of the kinds that `load_image` takes: a number, a list, a text file
    "not local",  # an address: nothing is fetched from the network
    "bad base64",  # a data URI that cannot be decoded
    "file missing",
    "is a folder",
    "no permission",
    "cannot be read",  # reading the bytes failed in another way: a broken disk, a lazy reference that raised
    "empty",  # zero bytes
    "web page",  # HTML under the name of a photo: what a download that failed leaves behind
    "unsupported format",  # a known format that is not read: SVG, PDF, HEIC, PSD, video, ...
    "not an image",  # bytes that are none of the known formats
    "truncated",  # the beginning of a photo
    "corrupt data",  # a photo whose inside is damaged
    "too many pixels",  # refused by what its header says, before anything is decoded
    "zero size",  # no pixel in one direction
)
"""What can be wrong with a photo; `BrokenImageError.cause` is one of these."""

MAX_PIXELS = 100_000_000
"""Pixels that a photo may have unless the caller says otherwise: 300 MB once decoded."""

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
"""Formats of PIL that are read. The rest stays shut: a few run programs, others accept nearly any bytes."""

# first bytes of formats that are read
_OURS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
# first bytes of formats that are not, with their names
_OTHERS = (
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "PSD"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
)
_BOXES = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


class BrokenImageError(ValueError):
    """A photo that cannot be used; the message names the photo, the cause and the detail.

    Args:
        message: the whole sentence.
        cause: one of `CAUSES`. An error that a worker process of a DataLoader hands on is built anew from its message
            alone, and then is the general "cannot be read".
        detail: what exactly was found, for people.
    """

    def __init__(self, message: str, cause: str = "cannot be read", detail: str = ""):
        super().__init__(message)
        self.cause = cause
        self.detail = detail

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.cause, self.detail)


def load_image(image: Any, *, min_side: int | None = None, max_pixels: int | None = MAX_PIXELS) -> PIL.Image.Image:
    """Opens a photo as RGB, upright.

    EXIF orientation is applied (a damaged EXIF block is ignored), transparency is laid on white, CMYK, palette and
    grey become RGB, deep grey is brought to 8 bits, and of an animation the first frame is taken. Damage is found
    where the decoder reports it; a photo that is spoiled inside may still decode, to a picture with a spoiled part.

    Args:
        image: a path (`str` or `PathLike`), bytes, a PIL image, a dict with `bytes` or `path` (either may be None),
            a `data:` URI, or an object whose `read()` returns bytes. A `path` beside `bytes` only names the photo.
        min_side: shorter side in pixels that is enough. A JPEG that is at least twice as large is then decoded at
            1/2, 1/4 or 1/8 of its size, never below `min_side`; that takes a fraction of the time and averages
            blocks of pixels where a later resize would weigh them. None, another format or a PIL image: full size.
        max_pixels: photos with more pixels are refused before they are decoded; None leaves PIL's own limit.

    Returns:
        A PIL image of mode RGB that is loaded, with no file behind it. A PIL image that is RGB and upright is
        returned as it is.

    Raises:
        BrokenImageError: if there is no photo to be had; its `cause` is one of `CAUSES`.
        ValueError: if `min_side` is not positive.
    """
    if min_side is not None and min_side < 1:
        raise ValueError(f"min_side is {min_side} (expected a positive number of pixels)")

    def choose(size: tuple[int, int]) -> int:
        return 1 if min_side is None else min(size) // min_side

    return load_reduced(image, choose, max_pixels=max_pixels)[0]


def load_reduced(
    image: Any, choose: Callable[[tuple[int, int]], int], *, max_pixels: int | None = MAX_PIXELS
) -> tuple[PIL.Image.Image, tuple[int, int]]:
    """Opens a photo as `load_image` does, at a scale that is chosen once its size is known.

    Args:
        image: see `load_image`.
        choose: is asked for JPEGs only: it is given the (width, height) of the upright photo at full size and returns
            by how much each side may be divided at most. The next smaller of 8, 4, 2 and 1 is taken.
        max_pixels: see `load_image`.

    Returns:
        The picture, and the (width, height) that it has at full size. A side of the picture is that of the photo
        divided by the scale, rounded up.

    Raises:
        BrokenImageError: see `load_image`.
    """
    name = _name(image)
    with warnings.catch_warnings():
        # PIL warns of large photos and of odd metadata; what matters of it is an error here
        warnings.simplefilter("ignore")
        if isinstance(image, PIL.Image.Image):
            return _finish(image, b"", name, max_pixels, choose, own=False)
        data = _read(image, name)
        return _finish(_open(data, name), data, name, max_pixels, choose, own=True)


def _finish(image: Any, data: bytes, name: str, max_pixels: int | None, choose: Any, own: bool) -> Any:
    """Checks the size, decodes, turns and converts."""
    width, height = image.size
    if not width or not height:
        raise _error(name, "zero size", f"{width} x {height} pixels")
    if max_pixels is not None and width * height > max_pixels:
        raise _error(name, "too many pixels", f"{width} x {height} pixels, at most {max_pixels} are allowed")
    jpeg = own and image.format in ("JPEG", "MPO")
    # before decoding only JPEG tells for sure; TIFF turns itself, others may have the block behind the pixels
    size = (height, width) if jpeg and _orientation(image) in _SIDEWAYS else (width, height)
    scale = choose(size) if jpeg else 1
    try:
        if scale >= 2:
            image.draft(None, (max(width // scale, 1), max(height // scale, 1)))
        image.load()
        turn = _orientation(image)
        image = _to_rgb(image.transpose(_TURNS[turn]) if turn else image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more for damaged data
        early = "truncated" in str(error).lower() or _ends_early(data)
        cause = "truncated" if early else "corrupt data" if own else "cannot be read"
        raise _error(name, cause, _told(error)) from error
    if own:
        image.info.clear()  # metadata of a photo may be larger than the photo
    return image, size if jpeg else image.size


# --- reading bytes ------------------------------------------------------------------------------------------------


def _read(image: Any, name: str) -> bytes:
    """The bytes behind whatever was given."""
    if isinstance(image, Mapping):
        data, path = image.get("bytes"), image.get("path")
        if data is None and path is None:
            raise _error(name, "nothing given", "neither 'bytes' nor 'path' holds anything")
        image = path if data is None else data
    if image is None:
        raise _error(name, "nothing given", "None")
    if isinstance(image, str) and image.lower().startswith("data:"):
        image = _decode_uri(image, name)
    elif isinstance(image, (str, os.PathLike)):
        image = _read_file(image, name)
    elif hasattr(image, "read"):
        try:
            image = image.read()
        except Exception as error:
            raise _error(name, _reading_cause(error), _told(error)) from error
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise _error(name, "unknown kind", f"{type(image).__name__} (expected a path, bytes, a PIL image or a dict)")
    if not len(image):
        raise _error(name, "empty", "0 bytes")
    return bytes(image)


def _read_file(path: str | os.PathLike, name: str) -> bytes:
    if isinstance(path, str) and path.lower().startswith(("http://", "https://", "ftp://", "s3://", "gs://", "hf://")):
        raise _error(name, "not local", "an address; download the photo first")
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero character
        raise _error(name, _reading_cause(error), _told(error)) from error


def _reading_cause(error: Exception) -> str:
    known = (
        (FileNotFoundError, "file missing"),
        (NotADirectoryError, "file missing"),
        (IsADirectoryError, "is a folder"),
        (PermissionError, "no permission"),
    )
    return next((cause for kind, cause in known if isinstance(error, kind)), "cannot be read")


def _decode_uri(uri: str, name: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _error(name, "bad base64", "a data URI has to read 'data:image/...;base64,...'")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _error(name, "bad base64", _told(error)) from error


# --- telling formats apart ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of PIL has."""
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


def _open(data: bytes, name: str) -> PIL.Image.Image:
    """Reads the header."""
    try:
        return PIL.Image.open(io.BytesIO(data), formats=_formats())
    except PIL.Image.DecompressionBombError as error:
        raise _error(name, "too many pixels", _told(error)) from error
    except PIL.UnidentifiedImageError as error:
        cause, detail = _unidentified(data)
        raise _error(name, cause, detail) from error
    except Exception as error:
        raise _error(name, "truncated" if _ends_early(data) else "corrupt data", _told(error)) from error


def _unidentified(data: bytes) -> tuple[str, str]:
    """Cause and detail of bytes that PIL makes nothing of."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if data.startswith(_OURS) or (data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis")):
        if _ends_early(data):
            return "truncated", f"{len(data)} bytes, the end of the header is missing"
        return "corrupt data", "the header is damaged"
    for magic, kind in _OTHERS:
        if data.startswith(magic):
            return "unsupported format", kind
    if data[4:8] == b"ftyp":
        return "unsupported format", _BOXES.get(data[8:12], "MP4 or a relative of it")
    words = start.lower()
    if b"<svg" in words:
        return "unsupported format", "SVG"
    if words.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in words:
        return "web page", start[:60].decode("utf-8", "replace")
    return "not an image", f"{len(data)} bytes that begin with {data[:12]!r}"


def _ends_early(data: bytes) -> bool:
    """Whether the end that the format asks for is missing; False where it cannot be told."""
    tail = data[-1024:]
    if data.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in tail
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in tail
    if data.startswith(b"GIF8"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"RIFF"):
        return len(data) < 12 or int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"BM"):
        return len(data) < 26 or int.from_bytes(data[2:6], "little") > len(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
        directory = int.from_bytes(data[4:8], order)
        entries = int.from_bytes(data[directory : directory + 2], order)
        return directory + 2 + 12 * entries > len(data)
    return False


# --- pixels -------------------------------------------------------------------------------------------------------

_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def _orientation(image: PIL.Image.Image) -> int:
    """EXIF orientation 2 to 8, or 0 where there is nothing to turn."""
    if image.format == "JPEG" and "exif" not in image.info and "xmp" not in image.info:
        return 0  # most photos for training: saves the parsing
    try:
        turn = image.getexif().get(PIL.ExifTags.Base.Orientation, 0)
    except Exception:  # a damaged block raises nearly anything, and the pixels are still good
        return 0
    return turn if turn in _TURNS else 0


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Brings any mode to RGB; the same picture that the image processor makes of it."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _DEEP_MODES:
        image = _flatten_depth(image)
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        background = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(background, image)
    return image.convert("RGB")


def _flatten_depth(image: PIL.Image.Image) -> PIL.Image.Image:
    """One deep channel in 8 bits: 16-bit values are divided by 257, floats up to 1 multiplied by 255."""
    values = np.asarray(image).astype(np.float64)
    top = values.max(initial=0.0)
    if image.mode == "F":
        values = values * 255 if top <= 1 else values
    elif top > 255 or image.mode.startswith("I;16"):
        values = values / 257
    return PIL.Image.fromarray(np.clip(np.nan_to_num(values).round(), 0, 255).astype(np.uint8))


# --- words --------------------------------------------------------------------------------------------------------


def _name(image: Any) -> str:
    """How a message calls the photo."""
    if isinstance(image, Mapping):
        path = image.get("path")
        image = image.get("bytes") if path is None else path
    if isinstance(image, PIL.Image.Image):
        return "the PIL image"
    if isinstance(image, (str, os.PathLike)):
        text = os.fspath(image)
        text = os.fsdecode(text) if isinstance(text, bytes) else text
        return f"image '{text if len(text) <= 200 else text[:200] + '...'}'"
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"an image of {len(image)} bytes"
    named = getattr(image, "name", None)
    return f"image '{named}'" if isinstance(named, str) else "an image"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _error(name: str, cause: str, detail: str) -> BrokenImageError:
    return BrokenImageError(f"{name} cannot be used: {cause} ({detail})", cause, detail)


__all__ = ["CAUSES", "FORMATS", "MAX_PIXELS", "BrokenImageError", "load_image", "load_reduced"]
