"""The random changes that photos undergo in training: the authors' recipe, repeatable picture by picture.

Every random choice is a function of one number, the key of a photo in an epoch, and of nothing else: neither the order
of photos, nor the worker that reads one, nor anybody's random state changes a picture. Pictures stay 8-bit to the end;
`normalize` brings a whole batch to what a model takes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from .images import MAX_PIXELS, load_image, load_reduced

OPERATIONS: tuple[str, ...] = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)
"""What a slot of the recipe may do to a picture."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_CROP_ATTEMPTS = 10
# a magnitude of 10 stands for: a shear by this, a shift by so many pixels, a turn by so many degrees
_TOP_SHEAR, _TOP_SHIFT, _TOP_DEGREES = 0.3, 10, 30
_SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}


@dataclass(frozen=True)
class AugmentationRules:
    """What may happen to a photo on its way into a batch.

    A crop of random area, ratio and place is resized to a square by antialiased bicubic resampling, mirrored or not,
    and then changed by `num_operations` operations in turn, each drawn anew from `operations` and carried out with
    `operation_probability`.

    Args:
        image_size: side S of the result in pixels.
        scale: share of the photo's area that a crop has, from least to most; None takes the whole photo, whatever
            its ratio, and squashes it, as evaluation does.
        ratio: width divided by height of a crop, from least to most; drawn evenly on a logarithmic scale.
        flip_probability: how often a picture is mirrored left to right.
        operations: names out of `OPERATIONS`; a name that stands twice is drawn twice as often.
        num_operations: slots for operations.
        operation_probability: how often a slot does what it drew.
        magnitude: strength m of the operations, 0 to 10: brightness and sharpness by 0.18 m + 0.1, shear by 0.03 m,
            shifts by m pixels, turns by 3 m degrees, the latter three in either direction.
        fill: level of what a shear, shift or turn leaves uncovered, 0 to 255.

    Raises:
        ValueError: if a value is out of its range or an operation is unknown.
    """

    image_size: int
    scale: tuple[float, float] | None = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    operations: tuple[str, ...] = OPERATIONS
    num_operations: int = 2
    operation_probability: float = 0.5
    magnitude: int = 7
    fill: int = 128

    def __post_init__(self) -> None:
        def demand(fine: bool, name: str, expected: str) -> None:
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)!r} (expected {expected})")

        demand(self.image_size >= 1, "image_size", "a positive number of pixels")
        fine = self.scale is None or (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1)
        demand(fine, "scale", "two shares of the area, 0 < least <= most <= 1, or None")
        demand(len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1], "ratio", "two ratios, 0 < least <= most")
        for name in ("flip_probability", "operation_probability"):
            demand(0 <= getattr(self, name) <= 1, name, "0 to 1")
        known = set(self.operations) <= set(OPERATIONS) and len(self.operations) > 0
        demand(known, "operations", f"names out of {', '.join(OPERATIONS)}")
        demand(self.num_operations >= 0, "num_operations", "0 or more")
        demand(self.magnitude in range(11), "magnitude", "a whole number, 0 to 10")
        demand(self.fill in range(256), "fill", "a whole number, 0 to 255")

    @classmethod
    def preset(cls, name: str, image_size: int) -> AugmentationRules:
        """The rules of a stage of training.

        Args:
            name: "pretrain" (crops of a fifth or more of the area) or "finetune" (of a half or more), both as the
                authors train; "none" only squashes, as evaluation does.
            image_size: side of the result in pixels.

        Raises:
            ValueError: if there is no such preset.
        """
        presets: dict[str, dict[str, Any]] = {
            "pretrain": {"scale": (0.2, 1.0)},
            "finetune": {"scale": (0.5, 1.0)},
            "none": {"scale": None, "flip_probability": 0.0, "num_operations": 0},
        }
        if name not in presets:
            raise ValueError(f"there are no augmentation rules '{name}' (expected one of {', '.join(presets)})")
        return cls(image_size, **presets[name])

    @property
    def min_side(self) -> int:
        """Shorter side in pixels with which no crop has to be enlarged; the `min_side` for `load_image`."""
        if self.scale is None:
            return self.image_size
        return math.ceil(self.image_size / math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1], 1)))

    def strength(self, operation: str) -> float:
        """What an operation is carried out with: a factor, a shear, pixels or degrees; 0 where it has no strength."""
        share = self.magnitude / 10
        strengths = {"shear": share * _TOP_SHEAR, "translate": share * _TOP_SHIFT, "rotate": share * _TOP_DEGREES}
        if operation in ("brightness", "sharpness"):
            return share * 1.8 + 0.1
        return strengths.get(operation.split("_")[0], 0.0)


@dataclass(frozen=True)
class Draw:
    """What happens to one photo.

    Args:
        box: the crop in pixels of the photo: left, top, right, bottom.
        flip: whether the picture is mirrored.
        operations: name and strength, in the order in which they are carried out.
    """

    box: tuple[int, int, int, int]
    flip: bool
    operations: tuple[tuple[str, float], ...]


def draw_key(seed: int, epoch: int, image_id: str) -> int:
    """The key of a photo in an epoch: 64 bits that look random and are the same everywhere."""
    text = f"{seed}\n{epoch}\n{image_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def draw(size: tuple[int, int], rules: AugmentationRules, key: int) -> Draw:
    """Draws what happens to a photo.

    Args:
        size: (width, height) of the photo in pixels.
        rules: what may happen.
        key: 64-bit number, for example from `draw_key`; the same one draws the same.

    Raises:
        ValueError: if the key is negative or longer than 64 bits.
    """
    if not 0 <= key < 2**64:
        raise ValueError(f"the key is {key} (expected 0 to 2**64 - 1, as draw_key gives)")
    # Every choice has its own place in the stream. The raw stream, because NumPy keeps it over its versions.
    first = 2 * _CROP_ATTEMPTS + 3
    raw = np.random.Philox(key=key).random_raw(first + 3 * rules.num_operations)
    values = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
    operations = []
    for slot in range(rules.num_operations):
        which, whether, sign = values[first + 3 * slot : first + 3 * slot + 3]
        name = rules.operations[int(which * len(rules.operations))]
        if whether < rules.operation_probability:
            strength = rules.strength(name)
            operations.append((name, -strength if name in _SIGNED and sign < 0.5 else strength))
    return Draw(_draw_box(size, rules, values), values[first - 1] < rules.flip_probability, tuple(operations))


def _draw_box(size: tuple[int, int], rules: AugmentationRules, values: list[float]) -> tuple[int, int, int, int]:
    """A crop by area and ratio; where ten attempts do not fit, the largest one in the middle with a ratio allowed."""
    width, height = size
    if rules.scale is None:
        return 0, 0, width, height
    (least, most), (narrow, wide) = rules.scale, rules.ratio
    down, right = values[2 * _CROP_ATTEMPTS : 2 * _CROP_ATTEMPTS + 2]
    for share, form in zip(values[: 2 * _CROP_ATTEMPTS : 2], values[1 : 2 * _CROP_ATTEMPTS : 2], strict=True):
        area = width * height * (least + share * (most - least))
        ratio = narrow * (wide / narrow) ** form
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(right * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(round(height * wide), 1))
    h = min(height, max(round(width / narrow), 1))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def augment(image: PIL.Image.Image, rules: AugmentationRules, key: int) -> torch.Tensor:
    """Changes a photo by the rules.

    Args:
        image: an upright photo, as `load_image` returns it; other modes than RGB are converted.
        rules: what may happen.
        key: decides what does happen; see `draw_key`.

    Returns:
        uint8 tensor (3, S, S), contiguous.

    Raises:
        ValueError: if the key is not a 64-bit number.
        BrokenImageError: if the image has no pixels or cannot be converted.
    """
    if image.mode != "RGB" or not all(image.size):
        image = load_image(image, max_pixels=None)
    return _carry_out(image, draw(image.size, rules, key), rules)


def load_augmented(
    image: Any, rules: AugmentationRules, key: int, *, max_pixels: int | None = MAX_PIXELS
) -> torch.Tensor:
    """Opens a photo and changes it by the rules, decoding a JPEG only as finely as the crop needs.

    The choices are those of `augment(load_image(image), rules, key)`. The crop is drawn before the photo is decoded; a
    JPEG is then decoded at the smallest of 1/8, 1/4, 1/2 and 1 of its size at which the crop need not be enlarged, and
    the crop's edges are rounded to the pixels of that scale, so that it may come out a pixel smaller.

    Args:
        image: see `load_image`.
        rules: what may happen.
        key: see `augment`.
        max_pixels: see `load_image`.

    Returns:
        uint8 tensor (3, S, S), contiguous.

    Raises:
        BrokenImageError: if there is no photo to be had.
        ValueError: if the key is not a 64-bit number.
    """
    drawn = None

    def choose(size: tuple[int, int]) -> int:
        nonlocal drawn
        if min(size) < 2 * rules.image_size:
            return 1
        drawn = draw(size, rules, key)
        left, top, right, bottom = drawn.box
        return min(right - left, bottom - top) // rules.image_size

    picture, full = load_reduced(image, choose, max_pixels=max_pixels)
    drawn = drawn or draw(full, rules, key)
    if picture.size != full:
        drawn = replace(drawn, box=_reduce_box(drawn.box, full, picture.size))
    return _carry_out(picture, drawn, rules)


def _reduce_box(box: Sequence[float], full: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of the photo in pixels of the reduced picture."""
    spans = []
    for side in (0, 1):
        scale = size[side] / full[side]
        start = min(round(box[side] * scale), size[side] - 1)
        spans.append((start, max(min(round(box[side + 2] * scale), size[side]), start + 1)))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _carry_out(image: PIL.Image.Image, drawn: Draw, rules: AugmentationRules) -> torch.Tensor:
    pixels = crop_and_resize(image, drawn.box, rules.image_size)
    if drawn.flip:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    for name, strength in drawn.operations:
        pixels = apply_operation(pixels, name, strength, rules.fill)
    return torch.from_numpy(pixels)


def crop_and_resize(image: PIL.Image.Image, box: tuple[int, int, int, int], side: int) -> np.ndarray:
    """The part of an RGB image within a box (left, top, right, bottom), squashed to a square; uint8 (3, side, side).

    Antialiased bicubic resampling of torch in 8-bit arithmetic, to the bit what torchvision makes of an 8-bit tensor.
    From PIL's it is a level or two apart, more where an overshoot at a black or white edge is cut off between the two
    passes; it takes a fraction of PIL's time. Only the crop is looked at, as by a crop before a resize.
    """
    if box != (0, 0, *image.size):
        image = image.crop(box)
    width, height = image.size
    # PIL keeps four bytes a pixel, so this is a plain copy; torch, too, is fastest with four interleaved channels
    data = torch.frombuffer(bytearray(image.tobytes("raw", "RGBX")), dtype=torch.uint8)
    data = data.view(1, height, width, 4).permute(0, 3, 1, 2)
    if (width, height) != (side, side):
        data = functional.interpolate(data, (side, side), mode="bicubic", antialias=True)
    # NumPy rearranges the bytes in half the time that torch takes
    return np.ascontiguousarray(data[0, :3].numpy())


# --- operations: uint8 (3, H, W) in, a new one out ----------------------------------------------------------------


def apply_operation(pixels: np.ndarray, name: str, strength: float, fill: int = 128) -> np.ndarray:
    """Carries out one operation.

    Args:
        pixels: uint8 (3, H, W), contiguous; it is not changed.
        name: one of `OPERATIONS`.
        strength: a factor, a shear, pixels or degrees; see `AugmentationRules.strength`.
        fill: level of uncovered pixels.

    Returns:
        uint8 (3, H, W), contiguous; `pixels` itself where nothing changes.
    """
    return _FUNCTIONS[name](pixels, strength, fill)


def _look_up(pixels: np.ndarray, tables: Sequence[bytes]) -> np.ndarray:
    """Replaces the levels of every channel by those of its table of 256; `bytes.translate` beats indexing."""
    out = np.empty_like(pixels)
    for plane, table, target in zip(pixels, tables, out, strict=True):
        target.reshape(-1)[:] = np.frombuffer(plane.tobytes().translate(table), np.uint8)
    return out


def _autocontrast(pixels: np.ndarray, strength: float, fill: int) -> np.ndarray:
    """Stretches every channel to the levels 0 to 255."""
    tables = []
    for plane in pixels:
        low, high = int(plane.min()), int(plane.max())
        if high > low:
            scale = 255.0 / (high - low)
            levels = np.arange(256) * scale - low * scale
            tables.append(levels.clip(0, 255).astype(np.uint8).tobytes())
        else:
            tables.append(bytes(range(256)))
    return _look_up(pixels, tables)


def _equalize(pixels: np.ndarray, strength: float, fill: int) -> np.ndarray:
    """Spreads the levels of every channel so that each range of levels holds equally many pixels."""
    tables = []
    for plane in pixels:
        counts = np.array(PIL.Image.fromarray(plane).histogram())  # a fourth of the time of np.bincount
        last = counts[np.flatnonzero(counts)[-1]]
        step = int(counts.sum() - last) // 255
        if step:
            below = np.cumsum(counts) - counts + step // 2
            tables.append((below // step).clip(0, 255).astype(np.uint8).tobytes())
        else:
            tables.append(bytes(range(256)))
    return _look_up(pixels, tables)


@lru_cache(maxsize=16)
def _brightness_table(factor: float) -> bytes:
    # in float32 and cut, not rounded, as PIL blends with black
    return (np.arange(256, dtype=np.float32) * np.float32(factor)).clip(0, 255).astype(np.uint8).tobytes()


def _brightness(pixels: np.ndarray, strength: float, fill: int) -> np.ndarray:
    """Multiplies every level."""
    return _look_up(pixels, [_brightness_table(strength)] * 3)


def _sharpness(pixels: np.ndarray, strength: float, fill: int) -> np.ndarray:
    """Moves every pixel away from a smoothed copy (centre 5, neighbours 1, of 13); the outermost pixels stay.

    In whole numbers as PIL does it: the copy is rounded, the result is cut to a level.
    """
    if min(pixels.shape[1:]) < 3:
        return pixels
    wide = pixels.astype(np.int16)
    rows = wide[:, :-2] + wide[:, 1:-1]
    rows += wide[:, 2:]
    smooth = rows[:, :, :-2] + rows[:, :, 1:-1]
    smooth += rows[:, :, 2:]
    centre = wide[:, 1:-1, 1:-1]
    smooth += centre * 4
    smooth += 6
    smooth //= 13
    blended = (centre - smooth) * np.float32(strength)
    blended += smooth
    out = pixels.copy()
    out[:, 1:-1, 1:-1] = np.clip(blended, 0, 255, out=blended)
    return out


def _shift(axis: int) -> Callable[[np.ndarray, float, int], np.ndarray]:
    def translate(pixels: np.ndarray, strength: float, fill: int) -> np.ndarray:
        """Shows at x what was at x + strength, or at y."""
        side = pixels.shape[axis]
        by = max(-side, min(side, round(strength)))
        out = np.full_like(pixels, fill)
        source, target = [slice(None)] * 3, [slice(None)] * 3
        source[axis], target[axis] = slice(max(by, 0), side + min(by, 0)), slice(max(-by, 0), side - max(by, 0))
        out[tuple(target)] = pixels[tuple(source)]
        return out

    return translate


@lru_cache(maxsize=12)
def _grid(matrix: tuple[float, ...], height: int, width: int) -> torch.Tensor:
    """Where each pixel of the result comes from, as grid_sample takes it: float32 (1, H, W, 2)."""
    a, b, c, d, e, f = matrix
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    columns, lines = a * x + b * y + c, d * x + e * y + f
    return torch.stack([(2 * columns + 1) / width - 1, (2 * lines + 1) / height - 1], dim=-1)[None].float()


def _warp(pixels: np.ndarray, matrix: tuple[float, ...], fill: int) -> np.ndarray:
    """Shows at (x, y) what was at (a x + b y + c, d x + e y + f), bilinearly, in indices of pixels."""
    grid = _grid(matrix, *pixels.shape[1:])
    # around zero, so that what is outside counts as the fill
    image = torch.from_numpy(pixels).float().sub_(fill)[None]
    warped = functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # 0.5 for rounding; blends lie within the levels but for float32's last digits
    return warped[0].add_(fill + 0.5).clamp_(0, 255).to(torch.uint8).numpy()


def _shear_x(pixels: np.ndarray, strength: float, fill: int) -> np.ndarray:
    """Shifts every row to the right by `strength` times its distance from the top one."""
    return _warp(pixels, (1.0, -strength, 0.0, 0.0, 1.0, 0.0), fill)


def _shear_y(pixels: np.ndarray, strength: float, fill: int) -> np.ndarray:
    """Shifts every column down by `strength` times its distance from the left one."""
    return _warp(pixels, (1.0, 0.0, 0.0, -strength, 1.0, 0.0), fill)


def _rotate(pixels: np.ndarray, strength: float, fill: int) -> np.ndarray:
    """Turns by degrees, anticlockwise, around the pixel (W / 2, H / 2)."""
    cos, sin = math.cos(math.radians(strength)), math.sin(math.radians(strength))
    y, x = pixels.shape[1] / 2, pixels.shape[2] / 2
    return _warp(pixels, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)


_FUNCTIONS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "identity": lambda pixels, strength, fill: pixels,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _shift(2),
    "translate_y": _shift(1),
    "rotate": _rotate,
}


# --- batches ------------------------------------------------------------------------------------------------------


def normalize(
    pixels: torch.Tensor,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Brings 8-bit pictures to what a model takes: (level / 255 - mean) / std.

    Args:
        pixels: uint8 (B, 3, H, W), on any device.
        mean: of every channel, in shares of 255.
        std: of every channel, in shares of 255.
        out: float tensor of the same shape to write to, for example the one of the batch before.

    Returns:
        float32 (B, 3, H, W), or `out`.

    Raises:
        ValueError: if `pixels` or `out` has another shape or type.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"the pixels are {pixels.dtype} {tuple(pixels.shape)} (expected torch.uint8 (B, 3, H, W))")
    if out is None:
        out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    elif out.shape != pixels.shape or not out.is_floating_point():
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)} (expected floats of {tuple(pixels.shape)})")
    centre = torch.tensor(mean, dtype=torch.float64)
    spread = torch.tensor(std, dtype=torch.float64)
    factor = (1 / (255 * spread)).to(out)[:, None, None]
    offset = (-centre / spread).to(out)[:, None, None]
    if out.device.type != "cpu":
        return out.copy_(pixels).mul_(factor).add_(offset)
    for picture, target in zip(pixels, out, strict=True):  # one at a time stays in the processor's cache
        target.copy_(picture).mul_(factor).add_(offset)
    return out


__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "OPERATIONS",
    "AugmentationRules",
    "Draw",
    "apply_operation",
    "augment",
    "crop_and_resize",
    "draw",
    "draw_key",
    "load_augmented",
    "normalize",
]
