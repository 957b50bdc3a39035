"""Generated scenes: what they are, how they are drawn, which of them training may see."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from ccrk.data.scenes import (
    COLORS,
    COUNTS,
    HELD_OUT_PAIRS,
    SHAPES,
    Group,
    Scene,
    count_near_duplicates,
    draw_scene,
    hard_gallery,
    sample_scenes,
    twins,
)

RED_STAR = Group("star", "red", 1)
BLUE_HEARTS = Group("heart", "blue", 2)


def attributes(scene: Scene) -> dict[str, object]:
    """The attributes of a scene side by side, told apart by hand: the reference for "differs in exactly one"."""
    found: dict[str, object] = {"relation": scene.relation}
    for place, group in enumerate(scene.groups):
        found |= {f"shape{place}": group.shape, f"color{place}": group.color, f"count{place}": group.count}
    return found


def changed(one: Scene, other: Scene) -> set[str]:
    first, second = attributes(one), attributes(other)
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


# ------------------------------------------------------------------------------------------------- scenes


def test_equal_pictures_are_equal_scenes() -> None:
    assert Scene((RED_STAR, BLUE_HEARTS), "left") == Scene((BLUE_HEARTS, RED_STAR), "right")
    assert Scene((RED_STAR, BLUE_HEARTS), "above") == Scene((BLUE_HEARTS, RED_STAR), "below")
    assert len({Scene((RED_STAR, BLUE_HEARTS), relation) for relation in ("left", "right", "above", "below")}) == 4
    assert Scene((RED_STAR, BLUE_HEARTS), "below").relation == "above"
    assert Scene((RED_STAR, BLUE_HEARTS), "right").groups == (BLUE_HEARTS, RED_STAR)


def test_keys_are_readable_and_unique() -> None:
    assert Scene((RED_STAR,)).key == "1-red-star"
    assert Scene((RED_STAR, BLUE_HEARTS), "right").key == "2-blue-heart_left_1-red-star"
    scenes = sample_scenes(3000, seed=0)
    assert len({scene.key for scene in scenes}) == 3000


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Group("blob", "red"), "unknown shape 'blob'"),
        (lambda: Group("star", "beige"), "unknown color 'beige'"),
        (lambda: Group("star", "red", 4), "unknown count 4"),
        (lambda: Scene(()), "got 0"),
        (lambda: Scene((RED_STAR,), "left"), "relation 'left' given for a scene of one group"),
        (lambda: Scene((RED_STAR, BLUE_HEARTS), "beside"), "unknown relation 'beside'"),
        (lambda: Scene((RED_STAR, BLUE_HEARTS)), "unknown relation None"),
        (lambda: Scene((RED_STAR, Group("heart", "red")), "left"), "must differ in shape and in colour"),
        (lambda: Scene((RED_STAR, Group("star", "blue")), "left"), "must differ in shape and in colour"),
    ],
)
def test_impossible_scenes_are_refused(build, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


# ----------------------------------------------------------------------------------------------- sampling


def test_held_out_pairs_are_a_balanced_quarter() -> None:
    assert len(HELD_OUT_PAIRS) == len(COLORS) * len(SHAPES) // 4
    assert Counter(color for color, _ in HELD_OUT_PAIRS) == dict.fromkeys(COLORS, 2)
    assert Counter(shape for _, shape in HELD_OUT_PAIRS) == dict.fromkeys(SHAPES, 2)


def test_training_never_sees_a_held_out_pair() -> None:
    for unique in (True, False):
        assert not any(scene.pairs & HELD_OUT_PAIRS for scene in sample_scenes(5000, seed=3, unique=unique))
    held_out = sample_scenes(1000, seed=3, held_out=True)
    assert all(scene.pairs <= HELD_OUT_PAIRS for scene in held_out)
    assert set().union(*(scene.pairs for scene in held_out)) == HELD_OUT_PAIRS


def test_samples_depend_on_the_seed_only() -> None:
    assert sample_scenes(50, seed=1) == sample_scenes(50, seed=1)
    assert sample_scenes(50, seed=1) != sample_scenes(50, seed=2)
    # Written down once: the same in every process and on every machine.
    assert [scene.key for scene in sample_scenes(3, seed=0)] == [
        "3-pink-flower_above_1-purple-triangle",
        "3-purple-star",
        "3-green-flower_left_3-pink-triangle",
    ]


def test_a_third_of_the_scenes_has_one_group() -> None:
    scenes = sample_scenes(200, seed=5)
    assert len(set(scenes)) == 200
    assert sum(len(scene.groups) == 1 for scene in scenes) == 70
    many = sample_scenes(10_000, seed=5)
    assert len(set(many)) == 10_000
    assert sum(len(scene.groups) == 1 for scene in many) == 48 * len(COUNTS)  # all that exist
    repeated = sample_scenes(10_000, seed=5, unique=False)
    assert sum(len(scene.groups) == 1 for scene in repeated) == 3500
    assert {scene.relation for scene in repeated} == {None, "left", "above"}


def test_every_scene_can_be_drawn_and_not_one_more() -> None:
    pairs = sorted(HELD_OUT_PAIRS)
    two_groups = sum(a[0] != b[0] and a[1] != b[1] for a, b in product(pairs, pairs)) // 2 * len(COUNTS) ** 2 * 4
    total = len(pairs) * len(COUNTS) + two_groups
    assert len(set(sample_scenes(total, seed=0, held_out=True))) == total
    with pytest.raises(ValueError, match=f"n={total + 1} unique scenes asked for, but only {total} exist"):
        sample_scenes(total + 1, seed=0, held_out=True)
    assert len(sample_scenes(total + 1, seed=0, held_out=True, unique=False)) == total + 1
    with pytest.raises(ValueError, match="n=-1"):
        sample_scenes(-1, seed=0)


# -------------------------------------------------------------------------------------------------- twins


def test_twins_differ_in_exactly_one_attribute() -> None:
    for scene in sample_scenes(300, seed=8) + sample_scenes(300, seed=8, held_out=True):
        found = twins(scene, seed=4)
        assert len({scene, *found.values()}) == len(found) + 1
        for kind in ("color", "count", "shape"):
            assert changed(scene, found[kind]) in ({f"{kind}0"}, {f"{kind}1"})
        if len(scene.groups) == 1:
            assert set(found) == {"color", "count", "shape"}
            continue
        assert set(found) == {"swap", "relation", "color", "count", "shape"}
        one, two = scene.groups
        assert changed(scene, found["swap"]) == {"color0", "color1"}
        assert [group.color for group in found["swap"].groups] == [two.color, one.color]
        assert found["relation"] == Scene((two, one), scene.relation)


def test_twins_depend_on_the_seed_only() -> None:
    scene = Scene((RED_STAR, BLUE_HEARTS), "left")
    assert twins(scene, seed=1) == twins(scene, seed=1)
    assert len({tuple(twins(scene, seed=seed).values()) for seed in range(20)}) > 10


def test_hard_gallery_starts_with_the_scenes_and_repeats_none() -> None:
    scenes = sample_scenes(200, seed=2, held_out=True)
    gallery = hard_gallery(scenes, seed=6)
    assert gallery[:200] == scenes
    assert len(set(gallery)) == len(gallery)
    assert set(gallery) == set(scenes) | {twin for scene in scenes for twin in twins(scene, seed=6).values()}
    assert gallery == hard_gallery(scenes, seed=6)
    assert hard_gallery(scenes[:1] * 3, seed=6) == hard_gallery(scenes[:1], seed=6)


def near(one: Scene, other: Scene) -> bool:
    """The definition of `count_near_duplicates`, written down a second time and by comparison."""
    if one == other or len(one.groups) != len(other.groups):
        return False
    if set(one.groups) == set(other.groups):
        return True  # the same groups in another arrangement
    difference = changed(one, other)
    if len(difference) == 1:
        return "relation" not in difference
    swapped = [group.color for group in one.groups] == [group.color for group in other.groups][::-1]
    return difference == {"color0", "color1"} and swapped


def test_near_duplicates_equal_a_count_over_all_pairs() -> None:
    scenes = hard_gallery(sample_scenes(60, seed=1), seed=1) + sample_scenes(100, seed=9)
    expected = sum(near(a, b) for place, a in enumerate(scenes) for b in scenes[:place])
    assert expected > 200
    assert count_near_duplicates(scenes) == expected


def test_near_duplicates_by_hand() -> None:
    scene = Scene((RED_STAR, BLUE_HEARTS), "left")
    assert count_near_duplicates([scene]) == count_near_duplicates([scene, scene]) == 0
    mirrored, stacked = Scene(scene.groups, "right"), Scene(scene.groups, "above")
    assert count_near_duplicates([scene, mirrored, stacked]) == 3
    swapped = Scene((Group("star", "blue", 1), Group("heart", "red", 2)), "left")
    assert count_near_duplicates([scene, swapped]) == 1
    assert count_near_duplicates([mirrored, swapped]) == 0
    assert count_near_duplicates([Scene((RED_STAR,)), Scene((Group("star", "red", 3),)), scene]) == 1


# ------------------------------------------------------------------------------------------------ drawing


def saturated(picture) -> np.ndarray:
    """Which pixels belong to objects (H, W): strong colours or dark ones; backgrounds are pale."""
    pixels = np.asarray(picture).astype(int)
    return (pixels.max(axis=2) - pixels.min(axis=2) > 70) | (pixels.max(axis=2) < 130)


def blobs(mask: np.ndarray) -> list[np.ndarray]:
    """Connected patches (four neighbours) of a mask as (pixels, 2) row and column arrays."""
    left, found = {tuple(place) for place in np.argwhere(mask).tolist()}, []
    while left:
        patch, todo = [], [left.pop()]
        while todo:
            row, column = todo.pop()
            patch.append((row, column))
            for place in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if place in left:
                    left.remove(place)
                    todo.append(place)
        found.append(np.array(patch))
    return found


def test_pictures_depend_on_the_seed_only() -> None:
    scene = Scene((RED_STAR, BLUE_HEARTS), "left")
    picture = draw_scene(scene, size=64, seed=3)
    assert (picture.mode, picture.size) == ("RGB", (64, 64))
    assert draw_scene(scene, seed=3).size == (96, 96)
    assert picture.tobytes() == draw_scene(scene, size=64, seed=3).tobytes()
    assert picture.tobytes() != draw_scene(scene, size=64, seed=4).tobytes()
    with pytest.raises(ValueError, match="size=20 pixels is too small"):
        draw_scene(scene, size=20, seed=3)


def test_nothing_is_cut_off_overlaps_or_is_missing() -> None:
    for seed, scene in enumerate(sample_scenes(150, seed=11)):
        mask = saturated(draw_scene(scene, size=96, seed=seed))
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()), scene.key
        patches = [patch for patch in blobs(mask) if len(patch) > 12]
        assert len(patches) == sum(group.count for group in scene.groups), (scene.key, seed)


@pytest.mark.parametrize(("relation", "axis"), [("left", 1), ("above", 0)])
def test_groups_stand_where_the_relation_says(relation: str, axis: int) -> None:
    for seed, (first, second) in enumerate(product(COUNTS, COUNTS)):
        scene = Scene((Group("circle", "red", first), Group("square", "blue", second)), relation)
        pixels = np.asarray(draw_scene(scene, size=96, seed=seed)).astype(int)
        red = np.argwhere(pixels[..., 0] - pixels[..., 2] > 90)
        blue = np.argwhere(pixels[..., 2] - pixels[..., 0] > 90)
        assert red[:, axis].max() < blue[:, axis].min()
        apart = blue.mean(axis=0) - red.mean(axis=0)
        assert apart[axis] > 2 * abs(apart[1 - axis])


def test_twins_look_different_even_from_the_same_seed() -> None:
    for seed, scene in enumerate(sample_scenes(40, seed=12)):
        picture = np.asarray(draw_scene(scene, size=64, seed=seed)).astype(int)
        for kind, twin in twins(scene, seed=seed).items():
            other = np.asarray(draw_scene(twin, size=64, seed=seed)).astype(int)
            clearly = (np.abs(picture - other).max(axis=2) > 60).sum()
            assert clearly > 25, (scene.key, kind)


def test_colors_are_told_apart_by_the_nearest_mean() -> None:
    """The middle of a disc is nearest to its own colour's mean over other seeds, for every colour and seed."""

    def middle(color: str, seed: int) -> np.ndarray:
        pixels = np.asarray(draw_scene(Scene((Group("circle", color),)), size=64, seed=seed)).astype(float)
        row, column = np.argwhere(saturated(pixels.astype(np.uint8))).mean(axis=0).round().astype(int)
        return pixels[row - 2 : row + 3, column - 2 : column + 3].mean(axis=(0, 1))

    means = np.stack([np.mean([middle(color, seed) for seed in range(10)], axis=0) for color in COLORS])
    for place, color in enumerate(COLORS):
        for seed in range(10, 40):
            distances = np.linalg.norm(means - middle(color, seed), axis=1)
            assert distances.argmin() == place
            assert np.sort(distances)[1] > 2 * distances[place]
