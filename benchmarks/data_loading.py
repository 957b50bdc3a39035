"""Reading and augmenting photos for training: this package against what one would write with PIL and torchvision.

    python benchmarks/data_loading.py [--photos DIR] [--repeats 5] [--rules finetune]

Every way opens the same JPEGs, makes the authors' augmentation of them and hands out normalised float batches
(B, 3, S, S) of a DataLoader. Three sets: the photos of DIR as they are (generated pictures of 224 x 224 px without
--photos), and the same pictures enlarged to 640 x 480 and 2000 x 1500 px with noise added, so that there is detail to
decode. The ways take turns, in one process and with one thread; a worker is one process more, whose start and end are
part of the figures.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import PIL.Image
import torch
import torchvision
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as change

from ccrk.data.augmentation import CLIP_MEAN, CLIP_STD, AugmentationRules, draw_key, load_augmented, normalize
from ccrk.data.scenes import draw_scene, sample_scenes

# name -> width and height, and which part of the photos is enough at that size
SIZES = {"640 x 480": ((640, 480), 2), "2000 x 1500": ((2000, 1500), 8)}
BILINEAR = InterpolationMode.BILINEAR
OURS = "ccrk"
PLAIN = "torchvision v2 on PIL images"
TENSORS = "torchvision v2 on tensors"


# --- pictures -----------------------------------------------------------------------------------------------------


def generated_photos(folder: Path, count: int) -> list[Path]:
    """Scenes of 224 x 224 px with noise, as JPEGs."""
    rng = np.random.default_rng(0)
    paths = []
    for number, scene in enumerate(sample_scenes(count, seed=0, unique=False)):
        paths.append(save_noisy(draw_scene(scene, size=224, seed=number), folder / f"{number}.jpg", rng))
    return paths


def save_noisy(image: PIL.Image.Image, path: Path, rng: np.random.Generator) -> Path:
    """Adds noise of 6 levels, about what a camera adds, and saves as JPEG of quality 90."""
    noisy = np.asarray(image, np.float32) + rng.normal(0, 6, (image.height, image.width, 1)).astype(np.float32)
    PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def enlarged(paths: list[Path], size: tuple[int, int], folder: Path) -> list[Path]:
    """The pictures at another size, with detail of that size."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    saved = []
    for path in paths:
        image = PIL.Image.open(path).convert("RGB").resize(size, PIL.Image.Resampling.BICUBIC)
        saved.append(save_noisy(image, folder / path.name, rng))
    return saved


# --- the ways -----------------------------------------------------------------------------------------------------


class Rows(IterableDataset):
    """Streams rows and makes a tensor of the photo of each."""

    def __init__(self, rows: list[dict], convert: Callable[[dict], torch.Tensor]):
        self.rows, self.convert = rows, convert

    def __iter__(self):
        return map(self.convert, self.rows)


def ours(rules: AugmentationRules, row: dict) -> torch.Tensor:
    """One photo in 8 bits."""
    return load_augmented(row["image"], rules, draw_key(0, 0, row["image_id"]))


class RandomOperations(torch.nn.Module):
    """The recipe's operations out of torchvision's functions; takes PIL images and tensors."""

    def __init__(self, rules: AugmentationRules):
        super().__init__()
        self.rules = rules

    def forward(self, image):
        """Carries out each of the slots, or not."""
        for _ in range(self.rules.num_operations):
            name = self.rules.operations[int(torch.randint(len(self.rules.operations), ()))]
            if torch.rand(()) >= self.rules.operation_probability:
                continue
            image = self.operate(image, name)
        return image

    def operate(self, image, name: str):
        """Carries out one operation."""
        strength = self.rules.strength(name)
        simple = {
            "identity": lambda: image,
            "autocontrast": lambda: change.autocontrast(image),
            "equalize": lambda: change.equalize(image),
            "brightness": lambda: change.adjust_brightness(image, strength),
            "sharpness": lambda: change.adjust_sharpness(image, strength),
        }
        if name in simple:
            return simple[name]()
        strength = -strength if torch.rand(()) < 0.5 else strength
        if name == "rotate":
            return change.rotate(image, strength, BILINEAR, fill=self.rules.fill)
        degrees = float(np.degrees(np.arctan(strength)))
        shear = {"shear_x": [degrees, 0.0], "shear_y": [0.0, degrees]}.get(name, [0.0, 0.0])
        shift = {"translate_x": [strength, 0], "translate_y": [0, strength]}.get(name, [0, 0])
        return change.affine(image, 0.0, shift, 1.0, shear, BILINEAR, fill=self.rules.fill, center=[0, 0])


def plain(transform: Callable, row: dict) -> torch.Tensor:
    """One photo, normalised floats."""
    with PIL.Image.open(row["image"]) as image:
        return transform(image.convert("RGB"))


def plain_transform(rules: AugmentationRules, tensors: bool) -> Callable:
    """The recipe as one would write it with torchvision: a chain that ends in normalised floats."""
    crop = v2.RandomResizedCrop(
        rules.image_size, scale=rules.scale, ratio=rules.ratio, interpolation=InterpolationMode.BICUBIC
    )
    steps = [crop, v2.RandomHorizontalFlip(rules.flip_probability), RandomOperations(rules)]
    steps.insert(0 if tensors else len(steps), v2.ToImage())
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(CLIP_MEAN, CLIP_STD)])


def batches(way: str, rows: list[dict], rules: AugmentationRules, workers: int) -> Iterable[torch.Tensor]:
    """Normalised batches of 64."""
    convert = partial(ours, rules) if way == OURS else partial(plain, plain_transform(rules, way == TENSORS))
    loader = DataLoader(Rows(rows, convert), batch_size=64, num_workers=workers)
    return map(normalize, loader) if way == OURS else loader


# --- measuring ----------------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """User and system time of this process and of its workers that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(way: str, rows: list[dict], rules: AugmentationRules, workers: int) -> tuple[float, float]:
    """Wall seconds and CPU seconds of one pass."""
    started, used = time.perf_counter(), cpu_seconds()
    seen = 0
    for batch in batches(way, rows, rules, workers):
        assert batch.dtype == torch.float32
        seen += len(batch)
    assert seen == len(rows)
    return time.perf_counter() - started, cpu_seconds() - used


def compare(name: str, paths: list[Path], rules: AugmentationRules, workers: int, repeats: int) -> None:
    """Prints a row of the table for each way."""
    rows = [{"image": str(path), "image_id": path.name} for path in paths]
    found: dict[str, list[tuple[float, float]]] = {OURS: [], PLAIN: [], TENSORS: []}
    for way in found:
        measure(way, rows[:64], rules, 0)
    for _ in range(repeats):
        for way, times in found.items():
            times.append(measure(way, rows, rules, workers))
    wall = {way: statistics.median(t[0] for t in times) for way, times in found.items()}
    cpu = {way: statistics.median(t[1] for t in times) for way, times in found.items()}
    for way, times in found.items():
        each = [1000 * t[1] / len(rows) for t in times]
        cells = (
            name,
            f"{workers}",
            way,
            f"{len(rows) / wall[way]:.0f}",
            f"{len(rows) / cpu[way]:.0f}",
            f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})",
            # round by round, so that a busy machine slows both sides of a quotient
            f"{statistics.median(a[1] / b[1] for a, b in zip(times, found[OURS], strict=True)):.2f}",
            f"{statistics.median(a[0] / b[0] for a, b in zip(times, found[OURS], strict=True)):.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs; generated pictures without it")
    parser.add_argument("--repeats", type=int, default=5, help="passes of every way; medians are printed (default 5)")
    parser.add_argument(
        "--count", type=int, default=384, help="photos a pass (default 384); a half and an eighth of them enlarged"
    )
    parser.add_argument("--rules", choices=("pretrain", "finetune"), default="finetune")
    parser.add_argument("--image-size", type=int, default=224, help="side of the result in pixels (default 224)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rules = AugmentationRules.preset(args.rules, args.image_size)
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Pillow {PIL.__version__}, {os.cpu_count()} cores, one thread; rules '{args.rules}' at {args.image_size} px; "
        f"medians of {args.repeats} passes, taken in turns\n"
    )
    head = "photos", "workers", "way", "images/s", "images per CPU second", "CPU ms an image (least to most)"
    head += "CPU against ccrk", "wall against ccrk"
    print(f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.photos:
            files = sorted(p for p in args.photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))[: args.count]
            if not files:
                raise SystemExit(f"there are no JPEGs in '{args.photos}'")
        else:
            files = generated_photos(folder, args.count)
        sets = {"as they are" if args.photos else "generated, 224 x 224": files}
        for title, (size, part) in SIZES.items():
            sets[title] = enlarged(files[: max(args.count // part, 1)], size, folder / title)
        for title, paths in sets.items():
            for workers in (0, 1):
                compare(title, paths, rules, workers, args.repeats)


if __name__ == "__main__":
    main()
