"""Generated picture scenes: coloured shapes, counted, side by side or one above the other.

A scene is one or two groups of equal objects. Everything about it is known, so retrieval on it can be measured
without any photograph: pairs of colour and shape can be kept out of training (`HELD_OUT_PAIRS`), and a gallery can
be filled with twins that differ from the wanted scene in exactly one attribute (`twins`, `hard_gallery`).

`draw_scene` turns a scene into a picture; `ccrk.data.scene_captions` says it in ten languages.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "flower")
COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
COUNTS: tuple[int, ...] = (1, 2, 3)
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")
INVERSE: dict[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}
TWIN_KINDS: tuple[str, ...] = ("swap", "relation", "color", "count", "shape")

ONE_GROUP_SHARE = 0.35
"""Share of one-group scenes that `sample_scenes` aims at."""

# Two diagonals of the colour-by-shape square: every colour and every shape loses exactly two of its eight pairs. These
# two are such that nearly every inflected form of a colour still occurs in training, with another shape; the exception
# is the Russian neuter of yellow and orange, for the heart is the only neuter shape.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    (color, SHAPES[(row + shift) % len(SHAPES)]) for row, color in enumerate(COLORS) for shift in (2, 3)
)
"""(color, shape) pairs that never occur in a training scene: 16 of 64."""


@dataclass(frozen=True)
class Group:
    """Equal objects that stand together.

    Args:
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        count: How many, 1 to 3.

    Raises:
        ValueError: If one of the three is not a known one.
    """

    shape: str
    color: str
    count: int = 1

    def __post_init__(self) -> None:
        for name, value, known in (
            ("shape", self.shape, SHAPES),
            ("color", self.color, COLORS),
            ("count", self.count, COUNTS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r} (expected one of {', '.join(map(str, known))})")

    @property
    def pair(self) -> tuple[str, str]:
        """The (color, shape) pair, as listed in `HELD_OUT_PAIRS`."""
        return self.color, self.shape

    @property
    def key(self) -> str:
        """Short readable id, for example `2-red-star`."""
        return f"{self.count}-{self.color}-{self.shape}"


@dataclass(frozen=True)
class Scene:
    """One group, or two groups and how the first stands to the second.

    Equal pictures are equal objects: `right` and `below` are turned round on construction, so that `relation` is
    only ever `left`, `above` or `None` ("A right of B" is stored as "B left of A").

    Args:
        groups: One or two groups; two differ in shape and in colour.
        relation: One of `RELATIONS` for two groups (first group to second), None for one.

    Raises:
        ValueError: If groups and relation do not make a scene.
    """

    groups: tuple[Group, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        groups = tuple(self.groups)
        if len(groups) not in (1, 2):
            raise ValueError(f"a scene has one or two groups, got {len(groups)}")
        if len(groups) == 1 and self.relation is not None:
            raise ValueError(f"relation {self.relation!r} given for a scene of one group (expected None)")
        if len(groups) == 2:
            if self.relation not in RELATIONS:
                raise ValueError(
                    f"unknown relation {self.relation!r} between two groups (expected one of {', '.join(RELATIONS)})"
                )
            first, second = groups
            if first.shape == second.shape or first.color == second.color:
                raise ValueError(f"the groups {first.key} and {second.key} must differ in shape and in colour")
        if self.relation in ("right", "below"):
            groups = groups[::-1]
            object.__setattr__(self, "relation", INVERSE[self.relation])
        object.__setattr__(self, "groups", groups)

    @property
    def key(self) -> str:
        """Short readable id, unique among scenes, for example `1-red-star_left_2-blue-heart`."""
        if self.relation is None:
            return self.groups[0].key
        return f"{self.groups[0].key}_{self.relation}_{self.groups[1].key}"

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The (color, shape) pairs in the scene."""
        return frozenset(group.pair for group in self.groups)


# ---------------------------------------------------------------------------------------------------- sampling


@lru_cache(maxsize=2)
def _all_scenes(held_out: bool) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Every one-group and every two-group scene of trained (or of held-out) pairs, in a fixed order."""
    pairs = [pair for pair in product(COLORS, SHAPES) if (pair in HELD_OUT_PAIRS) == held_out]
    groups = {pair: tuple(Group(shape=pair[1], color=pair[0], count=count) for count in COUNTS) for pair in pairs}
    ones = tuple(Scene((group,)) for pair in pairs for group in groups[pair])
    twos = tuple(
        Scene((first, second), relation)
        for one, other in combinations(pairs, 2)
        if one[0] != other[0] and one[1] != other[1]
        for first, second in product(groups[one], groups[other])
        for relation in RELATIONS
    )
    return ones, twos


def sample_scenes(n: int, *, seed: int, held_out: bool = False, unique: bool = True) -> list[Scene]:
    """Draws scenes at random, the same ones for the same arguments.

    About 35 % are of one group and 65 % of two. There are only 144 different one-group scenes of trained pairs (48 of
    held-out pairs), so that a large unique sample holds all of those and fills up with two-group scenes.

    Args:
        n: How many.
        seed: Seed of the draw.
        held_out: False takes only pairs outside `HELD_OUT_PAIRS`; True only pairs inside it.
        unique: True returns every scene at most once; False draws with repetition and keeps the 35 % exactly.

    Returns:
        `n` scenes in random order.

    Raises:
        ValueError: If `n` is negative, or `n` unique scenes do not exist.
    """
    if n < 0:
        raise ValueError(f"n={n} scenes asked for (expected 0 or more)")
    ones, twos = _all_scenes(held_out)
    if unique and n > len(ones) + len(twos):
        kind = "held-out" if held_out else "trained"
        raise ValueError(
            f"n={n} unique scenes asked for, but only {len(ones) + len(twos)} exist with {kind} "
            "colour-shape pairs (ask for fewer, or allow repetition with unique=False)"
        )
    rng = random.Random(seed)
    n_ones = round(ONE_GROUP_SHARE * n)
    if unique:
        n_ones = max(min(n_ones, len(ones)), n - len(twos))
        scenes = rng.sample(ones, n_ones) + rng.sample(twos, n - n_ones)
    else:
        scenes = rng.choices(ones, k=n_ones) + rng.choices(twos, k=n - n_ones)
    rng.shuffle(scenes)
    return scenes


# ------------------------------------------------------------------------------------------------------- twins


def _neighbours(scene: Scene) -> dict[str, list[Scene]]:
    """All scenes that differ from `scene` in exactly one attribute, by kind (see `count_near_duplicates`)."""
    groups, relation = scene.groups, scene.relation
    found: dict[str, list[Scene]] = {}
    if relation is not None:
        one, two = groups
        found["swap"] = [
            Scene((Group(one.shape, two.color, one.count), Group(two.shape, one.color, two.count)), relation)
        ]
        # The mirror image comes first: it is the one that `twins` takes.
        mirrored = INVERSE[relation]
        found["relation"] = [Scene(groups, mirrored)]
        found["relation"] += [Scene(groups, other) for other in RELATIONS if other not in (relation, mirrored)]
    for kind, values in (("color", COLORS), ("count", COUNTS), ("shape", SHAPES)):
        found[kind] = []
        for position, group in enumerate(groups):
            taken = {getattr(group, kind)}
            if kind != "count":
                taken |= {getattr(other, kind) for other in groups}
            for value in values:
                if value not in taken:
                    fields: dict[str, Any] = {
                        "shape": group.shape,
                        "color": group.color,
                        "count": group.count,
                        kind: value,
                    }
                    changed = groups[:position] + (Group(**fields),) + groups[position + 1 :]
                    found[kind].append(Scene(changed, relation))
    return found


def twins(scene: Scene, *, seed: int) -> dict[str, Scene]:
    """Scenes that differ from `scene` in exactly one attribute, one of each kind.

    Args:
        scene: The scene.
        seed: Seed of the choice (which group changes, and to what).

    Returns:
        Kind to twin, all distinct. For two groups: `swap` (the groups exchange colours), `relation` (the mirror
        image: "A left of B" becomes "A right of B"), and for any scene `color`, `count` and `shape` (one group gets
        another). A twin may hold trained pairs even if `scene` holds held-out pairs only, and the reverse.
    """
    rng = random.Random(f"{seed}/{scene.key}")
    chosen: dict[str, Scene] = {}
    for kind, candidates in _neighbours(scene).items():
        chosen[kind] = candidates[0] if kind in ("swap", "relation") else rng.choice(candidates)
    return chosen


def hard_gallery(scenes: list[Scene], *, seed: int) -> list[Scene]:
    """A gallery in which every scene stands beside its twins.

    Args:
        scenes: The scenes to be found.
        seed: Seed for `twins`.

    Returns:
        The scenes in their order, followed by all their twins; equal scenes only once.
    """
    gallery = dict.fromkeys(scenes)
    for scene in scenes:
        gallery.update(dict.fromkeys(twins(scene, seed=seed).values()))
    return list(gallery)


def count_near_duplicates(scenes: list[Scene]) -> int:
    """Counts the unordered pairs of scenes that differ in exactly one attribute.

    Two scenes of equally many groups differ in exactly one attribute if one becomes the other by one of: another
    colour for one group, another count for one group, another shape for one group, an exchange of the two groups'
    colours, or another arrangement (left, right, above, below) of the same two groups. Equal scenes are not counted;
    a scene listed twice counts in each of its places.

    Args:
        scenes: Any scenes, for example a gallery.

    Returns:
        The number of such pairs.
    """
    times = Counter(scenes)
    ordered = sum(
        times[scene] * times[other]
        for scene in times
        for others in _neighbours(scene).values()
        for other in others
        if other in times
    )
    return ordered // 2


# ----------------------------------------------------------------------------------------------------- drawing

_SUPERSAMPLING = 3

# Hue in degrees, saturation and value in 0..1. Neighbours in hue (red, orange, yellow; purple, pink) are kept
# farther apart than twice the variation below.
_HSV: dict[str, tuple[float, float, float]] = {
    "red": (357, 0.86, 0.85),
    "orange": (27, 0.90, 0.98),
    "yellow": (51, 0.92, 0.98),
    "green": (140, 0.74, 0.62),
    "blue": (215, 0.82, 0.88),
    "purple": (275, 0.66, 0.66),
    "pink": (330, 0.44, 0.99),
    "black": (230, 0.20, 0.13),
}


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _flower_outline() -> np.ndarray:
    """Outline of five round petals: the farthest crossing of each ray with the petals' circles."""
    angle = np.linspace(0, 2 * math.pi, 90, endpoint=False) - math.pi / 2
    petal, distance = 0.42, 0.58
    middles = np.arange(5) * 2 * math.pi / 5 - math.pi / 2
    offset = angle[:, None] - middles[None, :]
    inside = petal**2 - (distance * np.sin(offset)) ** 2
    reach = np.where(inside > 0, distance * np.cos(offset) + np.sqrt(np.maximum(inside, 0)), 0.0)
    return _polar(reach.max(axis=1), angle)


def _moon_outline() -> np.ndarray:
    """Outline of a crescent: a disc less a smaller disc pushed to its right edge."""
    shift, bite = 0.42, 0.78
    cross_x = (1 + shift**2 - bite**2) / (2 * shift)
    tip = math.acos(cross_x)
    inner_tip = math.atan2(math.sin(tip), cross_x - shift)
    outer = np.linspace(tip, 2 * math.pi - tip, 40)
    inner = np.linspace(2 * math.pi - inner_tip, inner_tip, 32)
    points = np.concatenate([_polar(np.ones(40), outer), _polar(np.full(32, bite), inner) + [shift, 0]])
    return points - [(points[:, 0].max() + points[:, 0].min()) / 2, 0]


@lru_cache(maxsize=1)
def _outlines() -> dict[str, np.ndarray]:
    """Outline of each shape, (points, 2) with y downwards, inside the unit disc."""
    round_angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    star_angle = np.arange(10) * math.pi / 5 - math.pi / 2
    t = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    heart = np.stack(
        [16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], axis=1
    )
    heart -= (heart.max(axis=0) + heart.min(axis=0)) / 2
    arm, end = 0.31, 0.93
    corner = np.array([[-arm, -end], [arm, -end], [arm, -arm], [end, -arm], [end, arm], [arm, arm]])
    outlines = {
        "circle": _polar(np.full(48, 0.88), round_angle),
        "square": 0.76 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),
        "triangle": _polar(np.ones(3), np.arange(3) * 2 * math.pi / 3 - math.pi / 2),
        "star": _polar(np.where(np.arange(10) % 2 == 0, 1.0, 0.44), star_angle),
        "heart": heart / np.hypot(heart[:, 0], heart[:, 1]).max(),
        "cross": np.concatenate([corner, -corner]),
        "moon": _moon_outline(),
        "flower": _flower_outline(),
    }
    return {shape: points / max(1.0, np.hypot(points[:, 0], points[:, 1]).max()) for shape, points in outlines.items()}


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """RGB in 0..255 of a hue in degrees and saturation and value, both cut to 0..1."""
    channels = colorsys.hsv_to_rgb(hue % 360 / 360, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    red, green, blue = (round(255 * channel) for channel in channels)
    return red, green, blue


def _background(pixels: int, rng: random.Random) -> Image.Image:
    """A pale plain tint or a soft gradient between two; too pale to be mistaken for any of `COLORS`."""
    hue = rng.uniform(0, 360)
    corners = np.empty((2, 2, 3), dtype=np.uint8)
    corners[:] = _rgb(hue, rng.uniform(0.0, 0.09), rng.uniform(0.94, 1.0))
    if rng.random() < 0.7:
        end = _rgb(hue + rng.uniform(-60, 60), rng.uniform(0.02, 0.12), rng.uniform(0.90, 0.98))
        parts: list[Any] = [(1, 1), (1, slice(None)), (slice(None), 1), (0, 1)]
        corners[rng.choice(parts)] = end
    # The box runs from pixel centre to pixel centre: the gradient spans the whole picture.
    return Image.fromarray(corners).resize((pixels, pixels), Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))


def _cluster(count: int, direction: str | None, rng: random.Random) -> np.ndarray:
    """Centres of a group's objects, (count, 2), in units of an object's radius, around the origin.

    `direction` is the axis along which there is room ("x", "y", or None for both).
    """
    gap = rng.uniform(2.08, 2.28)
    if count == 1:
        return np.zeros((1, 2))
    turn = rng.uniform(-0.3, 0.3)
    along_y = direction == "y" or (direction is None and rng.random() < 0.5)
    if count == 2 or rng.random() < 0.35:
        line = (np.arange(count) - (count - 1) / 2) * gap
        angle = turn + (math.pi / 2 if along_y else 0.0)
        return np.stack([line * math.cos(angle), line * math.sin(angle)], axis=1)
    angles = np.arange(3) * 2 * math.pi / 3 + turn + rng.choice([-math.pi / 2, math.pi / 2])
    points = _polar(np.full(3, gap / math.sqrt(3)), angles)
    return points - (points.max(axis=0) + points.min(axis=0)) / 2


def _place(
    count: int, box: tuple[float, float, float, float], direction: str | None, rng: random.Random
) -> tuple[np.ndarray, float]:
    """Centres (count, 2) and radius of a group's objects inside `box` (left, top, right, bottom; in 0..1)."""
    offsets = _cluster(count, direction, rng)
    extent = offsets.max(axis=0) - offsets.min(axis=0) + 2.0
    room = np.array([box[2] - box[0], box[3] - box[1]])
    largest = 0.25 if direction is None else 0.19
    radius = min(float((room / extent).min()), largest) * rng.uniform(0.84, 1.0)
    free = (room - radius * extent) / 2
    # Across the axis a group may wander over only part of the free room, or "left" could be read as "above".
    drift = {"x": (0.55, 0.9), "y": (0.9, 0.55), None: (0.9, 0.9)}[direction]
    middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    middle = middle + free * [rng.uniform(-1, 1) * drift[0], rng.uniform(-1, 1) * drift[1]]
    return middle + radius * offsets, radius


def _boxes(scene: Scene) -> list[tuple[tuple[float, float, float, float], str | None]]:
    """For each group the box that it must stay in and the axis along which that box is longer."""
    edge, gap, side = 0.03, 0.03, 0.09
    if scene.relation is None:
        return [((edge, edge, 1 - edge, 1 - edge), None)]
    if scene.relation == "left":
        return [((edge, side, 0.5 - gap, 1 - side), "y"), ((0.5 + gap, side, 1 - edge, 1 - side), "y")]
    return [((side, edge, 1 - side, 0.5 - gap), "x"), ((side, 0.5 + gap, 1 - side, 1 - edge), "x")]


def _draw_group(
    draw: ImageDraw.ImageDraw, group: Group, centres: np.ndarray, radius: float, rng: random.Random
) -> None:
    """Draws the objects of a group; `centres` (count, 2) and `radius` in pixels of the large canvas."""
    hue, saturation, value = _HSV[group.color]
    hue += rng.uniform(-4, 4)
    saturation += rng.uniform(-0.04, 0.04)
    value += rng.uniform(-0.04, 0.03)
    black = group.color == "black"
    fill = _rgb(hue, saturation, value)
    edge = _rgb(hue, saturation, value * 0.55 if black else value * 0.84)
    line = max(2, round(radius * 0.09))
    outline = _outlines()[group.shape]
    turn = rng.uniform(-0.14, 0.14)
    for x, y in centres:
        angle = turn + rng.uniform(-0.07, 0.07)
        cos, sin = math.cos(angle), math.sin(angle)
        # The line is drawn centred on the outline: half of it lies outside.
        points = (radius - line / 2) * outline @ np.array([[cos, sin], [-sin, cos]]) + [x, y]
        corners = [tuple(point) for point in points.tolist()]
        draw.polygon(corners, fill=fill)
        draw.line([*corners, corners[0], corners[1]], fill=edge, width=line, joint="curve")
        if group.shape == "flower":
            core = radius * 0.27
            light = _rgb(hue, saturation * 0.45, 0.42 if black else min(1.0, value + 0.2))
            draw.ellipse((x - core, y - core, x + core, y + core), fill=light)


def draw_scene(scene: Scene, *, size: int = 96, seed: int) -> Image.Image:
    """Draws a scene with anti-aliased edges.

    Position, size, rotation (up to 12 degrees), shade and background vary with `seed`; what the scene says does not.
    Scenes of the same groups' counts and the same relation drawn with the same seed share all of that, so that twins
    can be drawn to differ in nothing else.

    Args:
        scene: The scene.
        size: Width and height in pixels, at least 32.
        seed: Seed of everything that the scene leaves open.

    Returns:
        An RGB picture of `size` by `size` pixels; nothing overlaps and nothing is cut off.

    Raises:
        ValueError: If `size` is below 32, where shapes can no longer be told apart.
    """
    if size < 32:
        raise ValueError(
            f"size={size} pixels is too small to tell shapes apart (expected 32 or more; 64 to 96 is good)"
        )
    rng = random.Random(seed)
    pixels = size * _SUPERSAMPLING
    canvas = _background(pixels, rng)
    draw = ImageDraw.Draw(canvas)
    for group, (box, direction) in zip(scene.groups, _boxes(scene), strict=True):
        centres, radius = _place(group.count, box, direction, rng)
        _draw_group(draw, group, centres * pixels, radius * pixels, rng)
    return canvas.reduce(_SUPERSAMPLING)
