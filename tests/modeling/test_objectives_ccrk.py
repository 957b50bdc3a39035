"""A batch in several parts: what each part knows of the whole. The parts are threads that exchange at a barrier."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ccrk.losses_ccrk import contrastive_share
from ccrk.objectives_ccrk import SingleProcess, gather_batch

PARTS = [3, 1, 2]  # images of each part
TEXTS = [[0, 0, 2], [0, 0, 0, 0], [1, 0, 1]]  # the image of each text, in its part; image 1 of the first has none


class Board:
    """Where parts put down what they have for the others to read."""

    def __init__(self, size: int):
        self.barrier, self.found = threading.Barrier(size), [None] * size

    def exchange(self, rank: int, rows: torch.Tensor) -> list[torch.Tensor]:
        self.found[rank] = rows
        self.barrier.wait(timeout=20)
        found = list(self.found)
        self.barrier.wait(timeout=20)
        return found


class Part(SingleProcess):
    """One of several parts."""

    def __init__(self, board: Board, rank: int):
        self.board, self.rank, self.world_size = board, rank, len(board.found)

    def gather(self, rows: torch.Tensor, counts: list[int] | None = None) -> torch.Tensor:
        parts = self.board.exchange(self.rank, rows)
        assert counts is None or [len(part) for part in parts] == counts
        return torch.cat(parts)


def labels(rank: int) -> dict[str, torch.Tensor]:
    first = sum(PARTS[:rank])
    count = len(TEXTS[rank])
    return {
        "image_ids": torch.arange(first, first + PARTS[rank]) % 4,
        "draw_keys": torch.arange(100 + first, 100 + first + PARTS[rank]),
        "text_weights": torch.arange(count) + 1.0 + rank,
        "is_guide": torch.arange(count) % 2 == 0,
    }


@pytest.fixture(scope="module")
def steps():
    board = Board(len(PARTS))

    def take(rank: int):
        return gather_batch(torch.tensor(TEXTS[rank]), PARTS[rank], exchange=Part(board, rank), **labels(rank))

    with ThreadPoolExecutor(len(PARTS)) as pool:
        return list(pool.map(take, range(len(PARTS))))


@pytest.fixture(scope="module")
def whole():
    index = torch.cat([torch.tensor(texts) + sum(PARTS[:rank]) for rank, texts in enumerate(TEXTS)])
    every = [labels(rank) for rank in range(len(PARTS))]
    return gather_batch(index, sum(PARTS), **{name: torch.cat([one[name] for one in every]) for name in every[0]})


def test_every_part_sees_the_same_whole(steps, whole):
    assert whole.layout.image_index.tolist() == [0, 0, 2, 3, 3, 3, 3, 5, 4, 5]
    for step in steps:
        assert step.layout.num_images == whole.layout.num_images == 6
        for name in ("image_index", "image_ids", "text_weights", "guides"):
            assert torch.equal(getattr(step.layout, name), getattr(whole.layout, name)), name
        assert torch.equal(step.image_keys, whole.image_keys) and torch.equal(step.text_keys, whole.text_keys)
    assert [step.layout.images for step in steps] == [(0, 3), (3, 4), (4, 6)]
    assert [step.layout.texts for step in steps] == [(0, 3), (3, 7), (7, 10)]
    assert whole.layout.is_whole and not any(step.layout.is_whole for step in steps)


def test_each_text_has_draws_of_its_own_that_go_with_its_image(whole):
    assert len(set(whole.text_keys.tolist())) == len(whole.text_keys)
    # the second text of image 3, wherever it stands in a batch
    alone = gather_batch(torch.tensor([0, 0]), 1, draw_keys=whole.image_keys[3:4])
    assert alone.text_keys.tolist() == whole.text_keys[3:5].tolist()


def test_shares_of_the_parts_add_up(steps, whole):
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(count, 8, generator=generator, dtype=torch.float64), dim=1)
        for count in (6, 10)
    )
    temperature = torch.tensor(0.07, dtype=torch.float64)
    shares = [contrastive_share(images, texts, temperature, step.layout) for step in steps]
    torch.testing.assert_close(sum(shares), contrastive_share(images, texts, temperature, whole.layout))
