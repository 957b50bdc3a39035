"""Tiled ranks and best matches against the whole matrix, and what they hold in memory."""

from __future__ import annotations

import resource
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ccrk.evaluation.tiles import best_matches
from ccrk.metrics.ccr_recall.recall import Targets, embedding_ranks, target_ranks

TILES = [(1, 1), (3, 4), (5, 7), (64, 64)]


def whole_numbers(rng, *shape):
    """Vectors whose products are exact in float32 and often equal."""
    return torch.from_numpy(rng.integers(-2, 3, shape).astype(np.float32))


@pytest.mark.parametrize("tile", TILES)
def test_ranks_are_those_of_the_whole_matrix(tile):
    rng = np.random.default_rng(0)
    tied = 0
    for _ in range(20):
        queries, gallery = whole_numbers(rng, rng.integers(1, 12), 3), whole_numbers(rng, rng.integers(4, 18), 3)
        scores = (queries @ gallery.t()).numpy()
        targets = [rng.choice(len(gallery), rng.integers(1, 4), replace=False) for _ in queries]
        expected = target_ranks(scores, targets)
        tied += (expected != target_ranks(scores, targets, ties="optimistic")).sum()
        assert np.array_equal(embedding_ranks(queries, gallery, targets, tile=tile), expected)
    assert tied > 20


@pytest.mark.parametrize("tile", TILES)
def test_both_directions_with_groups(tile):
    """Several captions of an image and several images of a caption."""
    rng = np.random.default_rng(1)
    images, texts = whole_numbers(rng, 11, 3), whole_numbers(rng, 17, 3)
    image_groups = np.array([5, 0, 1, 1, 2, 5, 3, 4, 6, 6, 6])
    text_groups = rng.permutation(np.array([5, 0, 1, 2, 3, 4, 6, 6, 5, 0, 1, 1, 1, 2, 3, 4, 6]))
    scores = (texts @ images.t()).numpy()
    for ours, theirs, q, g, matrix in (
        (text_groups, image_groups, texts, images, scores),
        (image_groups, text_groups, images, texts, scores.T),
    ):
        lists = [np.flatnonzero(theirs == group) for group in ours]
        expected = target_ranks(matrix, lists)
        assert np.array_equal(embedding_ranks(q, g, Targets.of_groups(ours, theirs), tile=tile), expected)
        assert np.array_equal(embedding_ranks(q, g, lists, tile=tile), expected)


def test_equal_images_are_ties_wherever_they_lie():
    """Copies of the right image count against it though float products need not be exact."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(40, 256, generator=generator), dim=1)
    gallery = torch.nn.functional.normalize(torch.randn(997, 256, generator=generator), dim=1)
    for tile in ((16, 64), (7, 100), (40, 333)):
        for copy in (0, 63, 64, 500, 996):
            gallery[copy] = gallery[1]
        ranks = embedding_ranks(queries, gallery, [[1]] * 40, tile=tile)
        alone = np.array([((gallery @ q) > (gallery[1] @ q) + 1e-6).sum().item() for q in queries])
        assert (ranks == alone + 5).all()


@pytest.mark.parametrize("tile", TILES)
def test_best_matches_are_those_of_a_stable_sort(tile):
    rng = np.random.default_rng(2)
    for _ in range(20):
        queries, gallery = whole_numbers(rng, rng.integers(1, 12), 3), whole_numbers(rng, rng.integers(4, 18), 3)
        count = int(rng.integers(1, 20))
        scores = queries @ gallery.t()
        order = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :count]
        found, items = best_matches(queries, gallery, count, tile=tile)
        assert np.array_equal(items.numpy(), order)
        assert torch.equal(found, scores.gather(1, torch.from_numpy(order)))


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.nelement() * tensor.element_size())
        return result


def test_no_tensor_grows_with_texts_times_images():
    largest = []
    for size in (500, 2000):
        generator = torch.Generator().manual_seed(0)
        queries, gallery = (torch.randn(size, 4, generator=generator) for _ in range(2))
        targets = Targets.of_groups(np.arange(size), np.arange(size))
        with Largest() as mode:
            embedding_ranks(queries, gallery, targets, tile=(128, 128))
            best_matches(queries, gallery, 4, tile=(128, 128))
        largest.append(mode.nbytes)
    # keys of a tile are 8 bytes each; the whole matrix would be a million bytes at the smaller size
    assert largest[0] == largest[1] == 128 * 128 * 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured in other units")
def test_peak_memory_at_forty_thousand_texts_and_images():
    size = 40_000
    embeds = torch.nn.functional.normalize(torch.randn(size, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    groups = np.arange(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ranks = embedding_ranks(embeds, embeds, Targets.of_groups(groups, groups))
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{size} x {size}: {extra:.0f} MiB more; the whole matrix is {4 * size**2 / 2**20:.0f} MiB")
    assert (ranks == 0).all()
    assert extra < 200


def test_what_cannot_be_ranked_is_an_error():
    ok = torch.ones(2, 3)
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        embedding_ranks(ok, ok, [[0], []])
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="not finite"):
            embedding_ranks(ok * bad, ok, [[0], [1]])
        with pytest.raises(ValueError, match="not finite"):
            best_matches(ok, ok * bad, 1)
