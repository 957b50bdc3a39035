"""Records read one after the other from many files, in another order in each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from ccrk.data.draws import epoch_random, shuffled, shuffled_through
from ccrk.data.report import SkipReport


class CaptionStream(IterableDataset):
    """Rows of a corpus that is too large to be held: files are listed again in each epoch and read one by one.

    Every row is light: its image is a reference, and nothing here opens it. The order depends on the seed and the
    epoch alone: files in random order, then a buffer from which rows are drawn. [`BatchStream`] shares a stream among
    processes and workers. Iterating over it directly gives the rows of the epoch that `set_epoch` chose, to the
    workers of one DataLoader in turn.

    Args:
        parts: lists the parts (files) to read, in an order that is the same everywhere; called once an epoch.
        read: `read(part, report)` yields the rows of a part and adds what it leaves out to the report as it comes by.
            Both functions travel to worker processes, so where these are spawned they must be module-level ones or
            `functools.partial` of such.
        seed: seed of the order, 0 or more.
        shuffle: whether to shuffle at all.
        buffer_size: rows to draw from; as many are held in memory by each worker.
        name: what error messages call it.

    Attributes:
        skipped: what the last direct iteration in this process has left out so far.
    """

    def __init__(
        self,
        parts: Callable[[], Sequence[Any]],
        read: Callable[[Any, SkipReport], Iterator[dict[str, Any]]],
        *,
        seed: int = 0,
        shuffle: bool = True,
        buffer_size: int = 10_000,
        name: str = "the stream",
    ):
        if buffer_size < 1:
            raise ValueError(f"buffer_size is {buffer_size}, but at least one row has to be held")
        self.parts, self.read, self.name = parts, read, name
        self.seed, self.shuffle, self.buffer_size = seed, shuffle, buffer_size
        self.epoch = 0
        self.skipped = SkipReport()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that a direct iteration reads."""
        self.epoch = epoch

    def records(self, epoch: int) -> Iterator[dict[str, Any] | SkipReport]:
        """The rows of an epoch in its order, and between them reports of what was left out since the last one.

        Raises:
            ValueError: if there is nothing to read, or a file is not of its format.
            OSError: if a file cannot be read.
        """
        parts = list(self.parts())
        if not parts:
            raise ValueError(f"{self.name} has no files to read in epoch {epoch}")
        # what is left out waits here for the next row to leave, or for the end
        passing = SkipReport()
        if self.shuffle:
            generator = epoch_random(self.seed, epoch, "stream")
            rows = self._rows(shuffled(parts, generator), passing)
            rows = shuffled_through(rows, self.buffer_size, generator)
        else:
            rows = self._rows(parts, passing)
        for row in rows:
            if passing:
                yield passing.drain()
            yield row
        if passing:
            yield passing.drain()

    def _rows(self, parts: Sequence[Any], report: SkipReport) -> Iterator[dict[str, Any]]:
        for part in parts:
            yield from self.read(part, report)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        place, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        self.skipped = SkipReport()
        position = 0
        for record in self.records(self.epoch):
            if isinstance(record, SkipReport):
                self.skipped.merge(record)
                continue
            if position % workers == place:
                yield {**record, "epoch": self.epoch}
            position += 1
