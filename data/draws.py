"""Random orders that depend on a few whole numbers and on nothing else: not on a process, a worker or a version."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `num_rows` row numbers, another one in each epoch.

    Rows are sorted by the raw output of a bit generator: that output is promised to stay the same from one numpy to
    the next, which `Generator.permutation` is not.

    Args:
        num_rows: rows of the data set.
        seed: what the order depends on, 0 or more.
        epoch: what it depends on beside the seed, 0 or more.

    Returns:
        int64 (num_rows,).
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
    return np.argsort(keys, kind="stable")


def epoch_random(seed: int, epoch: int, purpose: str) -> random.Random:
    """A generator for one purpose in one epoch; of it only `random()` is promised to stay as it is in every Python."""
    return random.Random(f"{purpose} {seed} {epoch}")


def shuffled(items: Iterable[T], generator: random.Random) -> list[T]:
    """The items in random order."""
    return [item for _, item in sorted(((generator.random(), i) for i in items), key=lambda pair: pair[0])]


def shuffled_through(items: Iterable[T], buffer_size: int, generator: random.Random) -> Iterator[T]:
    """The items in an order that is random within about `buffer_size` places; so many are held at a time."""
    buffer: list[T] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        place = int(generator.random() * buffer_size)
        buffer[place], item = item, buffer[place]
        yield item
    yield from shuffled(buffer, generator)
