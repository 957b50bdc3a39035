"""Photos that come in and go out: opened within limits, found by id, handed out small."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import PIL.Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened, by content and not by name. Pillow knows more, some of which run other programs (EPS)."""

MAX_SIDE = 2048
"""Of photos that are handed out, in pixels."""

JPEG_QUALITY = 85


class PhotoError(ValueError):
    """A photo that cannot be taken; the message says why."""


class PhotoReader:
    """Opens photos for a model, within limits.

    Args:
        processor: of the model.
        max_pixels: width times height.
        max_bytes: of a file.
    """

    def __init__(self, processor: Any, max_pixels: int, max_bytes: int):
        PIL.Image.init()  # makes all formats known, so that those which are wanted can be named
        self._formats = [name for name in FORMATS if name in PIL.Image.OPEN]
        self._processor, self.max_pixels, self.max_bytes = processor.image_processor, max_pixels, max_bytes

    def open(self, file: BinaryIO | Path, name: str = "the photo") -> PIL.Image.Image:
        """Opens a photo as RGB, upright; of an animation the first frame.

        Raises:
            PhotoError: if it is none of `FORMATS`, damaged, or larger than the limits.
        """
        size = file.stat().st_size if isinstance(file, Path) else _length(file)
        if not size:
            raise PhotoError(f"{name} is empty (0 bytes)")
        if size > self.max_bytes:
            raise PhotoError(f"{name} has {size} bytes; at most {self.max_bytes} are taken")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of broken metadata, and of sizes, which are checked below
                image = PIL.Image.open(file, formats=self._formats)
        except PIL.UnidentifiedImageError:
            raise PhotoError(f"{name} is not a photo that can be read ({', '.join(FORMATS)})") from None
        except Exception as error:  # decoders raise whatever damaged data makes them
            raise PhotoError(f"{name} is damaged or too large: {error}") from error
        with image:
            width, height = image.size
            if width * height > self.max_pixels:
                raise PhotoError(f"{name} has {width} x {height} pixels; at most {self.max_pixels} are taken")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    opened = self._processor.open_image(image)
                    opened.info = {}  # what is broken in it would be looked at again by whoever takes the photo
                    return opened
            except Exception as error:
                raise PhotoError(f"{name}: {error}") from error

    def open_query(self, file: BinaryIO) -> PIL.Image.Image:
        """Opens a photo and brings it to the size that the model takes, so that one that waits holds little memory.

        The processor would resize it in the same way, and leaves one of this size as it is: answers are the same.
        """
        image = self.open(file)
        pixels = self._processor(images=image, do_rescale=False, do_normalize=False, return_tensors="pt")
        values = pixels["pixel_values"][0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
        return PIL.Image.fromarray(values)

    def thumbnail(self, file: BinaryIO | Path, side: int, name: str) -> bytes:
        """A photo as a new JPEG file of at most `side` pixels; nothing of the old file but its pixels is in it."""
        image = self.open(file, name)
        image.thumbnail((side, side), PIL.Image.Resampling.BICUBIC)
        out = BytesIO()
        image.save(out, "JPEG", quality=JPEG_QUALITY)
        return out.getvalue()


def _length(file: BinaryIO) -> int:
    end = file.seek(0, 2)
    file.seek(0)
    return end


def inside(path: str | Path, folders: Sequence[Path]) -> Path | None:
    """The real place of a file, links followed, if it is a regular file in one of the folders; or else None."""
    try:
        real = Path(path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # missing, NUL in its name, links in a circle
        return None
    return real if real.is_file() and any(real.is_relative_to(folder) for folder in folders) else None


__all__ = ["FORMATS", "MAX_SIDE", "PhotoError", "PhotoReader", "inside"]
