"""Which rows each process reads in each step, for data sets that can be indexed and for streams.

A global batch is what all processes together read in one step: the next `world_size * per_rank_batch` rows of an order
that depends on nothing but the seed and the epoch. Process r gets the r-th of its `world_size` contiguous parts. Two
processes with 8 rows each therefore take the same steps as one process with 16, and a run goes on where it was from
nothing but the number of steps that it made.

At the end of an epoch fewer rows may be left than a global batch has. They are split as evenly as possible, so that
every process takes the same number of steps and every row is read once. Fewer rows than processes cannot be split:
they are left out, another few in each epoch, and counted.

Every row carries the `epoch` it is read in, beside its columns: what is drawn for it later can be keyed by seed, epoch
and image, and does not depend on who reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ccrk.data.draws import epoch_order
from ccrk.data.report import TAIL, SkipReport


def rank_part(num_rows: int, rank: int, world_size: int) -> slice:
    """The rows of a global batch of `num_rows` that one process gets; sizes differ by one at most."""
    return slice(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)


def _check_shares(per_rank_batch: int, rank: int, world_size: int, start_batch: int) -> None:
    if per_rank_batch < 1:
        raise ValueError(f"per_rank_batch is {per_rank_batch}, but a step reads at least one row")
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes: ranks go from 0 to the number of processes less one")
    if start_batch < 0:
        raise ValueError(f"start_batch is {start_batch}, but batches are counted from 0")


class GlobalBatchSampler(Sampler):
    """The rows that one process reads in each step of an epoch, for a data set that can be indexed.

    Yields lists of `(epoch, row)`, which [`EpochRows`] understands:
    `DataLoader(EpochRows(dataset), batch_sampler=GlobalBatchSampler(len(dataset), 16, rank, world_size))`.
    Any number of workers gives the same batches.

    Args:
        num_rows: rows of the data set.
        per_rank_batch: rows that each process reads in a step.
        rank, world_size: this process, and how many there are.
        seed: seed of the order, 0 or more.
        shuffle: another order in each epoch; without it rows come as they stand.
        drop_last: leave an incomplete global batch out.
        start_batch: steps of the first epoch to leave out, to go on with a run. It counts for the epoch that is read
            first and no other.

    Raises:
        ValueError: if a number is out of range, or not one global batch can be made.
    """

    def __init__(
        self,
        num_rows: int,
        per_rank_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        start_batch: int = 0,
    ):
        _check_shares(per_rank_batch, rank, world_size, start_batch)
        self.num_rows, self.seed, self.shuffle = num_rows, seed, shuffle
        self.batch_size, self.drop_last = per_rank_batch, drop_last
        self.rank, self.world_size, self.start_batch = rank, world_size, start_batch
        self.epoch = 0
        self._first_epoch: int | None = None
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"{num_rows} rows are not enough for one step of {world_size} processes with {per_rank_batch} rows "
                + (
                    "each; take a smaller batch, or an incomplete one (drop_last=False; --no-drop-last)"
                    if drop_last and num_rows >= world_size
                    else "each"
                )
            )
        if start_batch > self.batches_per_epoch:
            raise ValueError(
                f"start_batch is {start_batch}, but an epoch has {self.batches_per_epoch} batches; set_epoch chooses "
                "the epoch to go on in"
            )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that is read next."""
        self.epoch = epoch

    @property
    def global_batch_size(self) -> int:
        """Rows that all processes read in a step."""
        return self.batch_size * self.world_size

    @property
    def batches_per_epoch(self) -> int:
        """Steps of a whole epoch, the same for every process."""
        whole, left = divmod(self.num_rows, self.global_batch_size)
        return whole + (left >= self.world_size and not self.drop_last)

    @property
    def dropped(self) -> int:
        """Rows that are left out in each epoch, because the last batch is incomplete."""
        return max(0, self.num_rows - self.batches_per_epoch * self.global_batch_size)

    def order(self, epoch: int) -> Sequence[int]:
        """All rows in the order in which an epoch reads them."""
        return epoch_order(self.num_rows, self.seed, epoch).tolist() if self.shuffle else range(self.num_rows)

    def __len__(self) -> int:
        return self.batches_per_epoch - self._skip()

    def _skip(self) -> int:
        return self.start_batch if self._first_epoch in (None, self.epoch) else 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = self.epoch, self._skip()
        if self._first_epoch is None:
            self._first_epoch = epoch
        order = self.order(epoch)
        for number in range(start, self.batches_per_epoch):
            rows = order[number * self.global_batch_size : (number + 1) * self.global_batch_size]
            yield [(epoch, row) for row in rows[rank_part(len(rows), self.rank, self.world_size)]]


class EpochRows(Dataset):
    """A data set indexed by `(epoch, row)`, as [`GlobalBatchSampler`] does; its rows carry their `epoch`.

    Args:
        dataset: anything with `__getitem__` and `__len__` whose rows are dicts, a `datasets.Dataset` among them.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, row = key
        return {**self.dataset[row], "epoch": epoch}

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """The rows of a whole batch, fetched at once where the data set can do that."""
        fetch = getattr(self.dataset, "__getitems__", None)
        rows = fetch([row for _, row in keys]) if fetch else [self.dataset[row] for _, row in keys]
        return [{**row, "epoch": epoch} for row, (epoch, _) in zip(rows, keys, strict=True)]


class RecordStream(Protocol):
    """What [`BatchStream`] reads: [`CaptionStream`], or anything else with `records`."""

    def records(self, epoch: int) -> Iterator[dict[str, Any] | SkipReport]:
        """The rows of an epoch in its order, with what was left out in between; the same in every process."""


class RowBatch(list):
    """The rows that one process reads in one step, with what goes with them.

    Attributes:
        epoch: the epoch that it belongs to.
        number: its number, from 0 and over all epochs that the stream has read.
        last: whether it is the last one of its epoch.
        skipped: what was left out on the way from the batch before to this one (to the end of the epoch, with its
            last one). Process 0 has the counts, the others have none, so they add up over batches and processes.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], epoch: int, number: int, last: bool, skipped: SkipReport):
        super().__init__(rows)
        self.epoch, self.number, self.last, self.skipped = epoch, number, last, skipped

    def __reduce__(self) -> tuple:
        return RowBatch, (list(self), self.epoch, self.number, self.last, self.skipped)


class _GlobalBatch(NamedTuple):
    rows: list[dict[str, Any]]
    skipped: SkipReport
    last: bool


class BatchStream(IterableDataset):
    """The batches that one process reads from a stream, over all epochs.

    Yields [`RowBatch`]es, for `DataLoader(stream, batch_size=None, collate_fn=collator, num_workers=...)`. Every
    worker of every process reads the records of the whole stream, which must be cheap (no pixels), and keeps its
    share: worker w of n has the batches w, w + n, ..., which is the order in which a DataLoader asks its workers. The
    batches are the same ones for every number of workers, and together with the other processes' for every number of
    processes. The end holds too: when a worker has run out, all batches there are were asked for before, in order.

    Args:
        stream: the records; see [`RecordStream`].
        per_rank_batch: rows that each process reads in a step.
        rank, world_size: this process, and how many there are.
        start_batch: batches to leave out, counted from the beginning of `start_epoch`. Their records are read, and
            nothing else happens to them.
        drop_last: leave an incomplete global batch at the end of an epoch out.
        epochs: number of the epoch to stop before, counted from 0; without it the stream has no end.
        start_epoch: epoch to begin with. To go on with a run, the `epoch` of the last batch that was used and how many
            of that epoch's batches were used are enough, and no earlier epoch is read.

    Raises:
        ValueError: if a number is out of range; while reading, if an epoch holds not one batch.
    """

    def __init__(
        self,
        stream: RecordStream,
        per_rank_batch: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        drop_last: bool = False,
        epochs: int | None = None,
        start_epoch: int = 0,
    ):
        _check_shares(per_rank_batch, rank, world_size, start_batch)
        self.stream = stream
        self.per_rank_batch, self.rank, self.world_size = per_rank_batch, rank, world_size
        self.start_batch, self.drop_last = start_batch, drop_last
        self.epochs, self.start_epoch = epochs, start_epoch

    def __iter__(self) -> Iterator[RowBatch]:
        worker = get_worker_info()
        place, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        number = 0
        for epoch in count(self.start_epoch) if self.epochs is None else range(self.start_epoch, self.epochs):
            for batch in self._global_batches(epoch):
                own = number - self.start_batch
                if own >= 0 and own % workers == place:
                    yield self._share(batch, epoch, number)
                number += 1

    def _share(self, batch: _GlobalBatch, epoch: int, number: int) -> RowBatch:
        rows = batch.rows[rank_part(len(batch.rows), self.rank, self.world_size)]
        skipped = batch.skipped if self.rank == 0 else SkipReport()
        return RowBatch([{**row, "epoch": epoch} for row in rows], epoch, number, batch.last, skipped)

    def _global_batches(self, epoch: int) -> Iterator[_GlobalBatch]:
        """The global batches of an epoch, each held back until the next one is whole.

        The rest of an epoch may hold no batch but skipped records; held back, the last batch can take their counts
        along, and knows that it is the last.
        """
        size = self.per_rank_batch * self.world_size
        held: list[dict[str, Any]] | None = None
        held_skipped, skipped = SkipReport(), SkipReport()
        rows: list[dict[str, Any]] = []
        for record in self.stream.records(epoch):
            if isinstance(record, SkipReport):
                skipped.merge(record)
                continue
            rows.append(record)
            if len(rows) == size:
                if held is not None:
                    yield _GlobalBatch(held, held_skipped, False)
                held, held_skipped, rows, skipped = rows, skipped, [], SkipReport()
        if rows and len(rows) >= self.world_size and not self.drop_last:
            if held is not None:
                yield _GlobalBatch(held, held_skipped, False)
            held, held_skipped, skipped = rows, skipped, SkipReport()
        else:
            for row in rows:
                skipped.add(TAIL, row.get("image_id"))
        if held is None:
            raise ValueError(
                f"epoch {epoch} of the stream holds {len(rows)} rows, too few for one step of {self.world_size} "
                f"processes with {self.per_rank_batch} rows each; left out: {skipped.describe() or 'nothing'}"
            )
        yield _GlobalBatch(held, held_skipped.merge(skipped), True)
