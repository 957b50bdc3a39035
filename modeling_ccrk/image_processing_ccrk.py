"""Image processor of CCRk: squashes photos to a square by bicubic resampling, and opens files with clear errors."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack

# modes of one channel with more than 8 bits
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


class ImageReadError(ValueError):
    """A file that was given as an image cannot be read as one; the message names the file and the cause."""


def flatten_depth(image: PIL.Image.Image) -> PIL.Image.Image:
    """Brings an image of one deep channel (16-bit, 32-bit or float) to 8 bits; others are returned as they are.

    16-bit values are divided by 257, floats up to 1 multiplied by 255; PIL's own conversion would clip both.
    """
    if image.mode not in DEEP_MODES:
        return image
    values = np.asarray(image).astype(np.float64)
    top = values.max(initial=0.0)
    if image.mode == "F":
        values = values * 255 if top <= 1 else values
    elif top > 255 or image.mode.startswith("I;16"):
        values = values / 257
    return PIL.Image.fromarray(np.clip(np.nan_to_num(values).round(), 0, 255).astype(np.uint8))


def open_image(source: str | os.PathLike | PIL.Image.Image) -> PIL.Image.Image:
    """Opens a photo as RGB, upright.

    EXIF orientation is applied, transparency is laid on white, CMYK and deep grey images are converted, and of an
    animation the first frame is taken.

    Args:
        source: path of a file, or an image that is open already.

    Raises:
        FileNotFoundError: if there is no such file.
        ImageReadError: if it is empty, truncated, too large or no image.
    """
    if isinstance(source, PIL.Image.Image):
        return _to_rgb(source, "the image given")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no image file '{path}'")
    if path.is_dir():
        raise ImageReadError(f"'{path}' is a folder, not an image file")
    if path.stat().st_size == 0:
        raise ImageReadError(f"image '{path}' is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            image = PIL.Image.open(path)
    except PIL.UnidentifiedImageError as error:
        raise ImageReadError(f"'{path}' is not an image that can be read") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageReadError(f"image '{path}' is too large: {error}") from error
    except PermissionError:
        raise
    except Exception as error:
        raise ImageReadError(f"image '{path}' is damaged: {error}") from error
    with image:
        return _to_rgb(image, f"image '{path}'")


def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    try:
        image = flatten_depth(PIL.ImageOps.exif_transpose(image))
        if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            background = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = PIL.Image.alpha_composite(background, image)
        return image.convert("RGB")
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more for damaged data
        raise ImageReadError(f"{name} is damaged or truncated: {error}") from error


class CCRkImageProcessor(TorchvisionBackend):
    """Resizes to a square (no crop, the aspect ratio gives way), rescales and normalises.

    The defaults are the authors': bicubic, 224 px, the constants of CLIP. Paths and PIL images are opened by
    `open_image`. Tensors and arrays are taken as channels of 8-bit or float values.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    model_input_names = ["pixel_values"]

    def __init__(self, **kwargs: Unpack[ImagesKwargs]):
        super().__init__(**kwargs)

    @classmethod
    def from_tower(cls, image: str | os.PathLike, image_size: int | None = None) -> CCRkImageProcessor:
        """The processor that a pretrained timm model expects: its constants, its size unless another is given.

        Args:
            image: a timm model: its name, a Hub id or a local folder.
            image_size: side of the input in pixels.
        """
        from .towers_ccrk import load_timm_model, tower_preprocessing

        trained = tower_preprocessing(load_timm_model(image))
        side = image_size or trained["image_size"]
        return cls(size={"height": side, "width": side}, image_mean=trained["mean"], image_std=trained["std"])

    @staticmethod
    def open_image(source: str | os.PathLike | PIL.Image.Image) -> PIL.Image.Image:
        """Opens a photo as RGB; see the function of the same name."""
        return open_image(source)

    def fetch_images(self, image_url_or_urls):
        """Opens local files by `open_image`; URLs are fetched as transformers does."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(item) for item in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            text = str(image_url_or_urls)
            if not text.startswith(("http://", "https://", "data:")):
                return open_image(text)
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image, do_convert_rgb: bool | None = None, **kwargs):
        """Brings one image to a (3, H, W) tensor; PIL images of any mode become RGB first."""
        if isinstance(image, PIL.Image.Image) and do_convert_rgb:
            image = open_image(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)


__all__ = ["CCRkImageProcessor", "ImageReadError"]
