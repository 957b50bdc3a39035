"""Each row once an epoch, the same global batches for every number of processes and workers, and from any step on."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ccrk.data.draws import epoch_order
from ccrk.data.report import TAIL, SkipReport
from ccrk.data.sharding import BatchStream, EpochRows, GlobalBatchSampler, rank_part
from ccrk.data.streams import CaptionStream

WORLDS = (1, 2, 3, 4)
SIZES = (4, 13, 24, 37)  # rows; with 2 rows a process none, one or many of them do not fill a global batch

# three workers are more than some machines have cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def same(batch):
    return batch


# --- data sets that can be indexed --------------------------------------------------------------------------------


def sampled(rows: int, world: int, per_rank: int = 2, epoch: int = 0, **options) -> list[list[list[tuple[int, int]]]]:
    """Batches of each process."""
    found = []
    for rank in range(world):
        sampler = GlobalBatchSampler(rows, per_rank, rank, world, **options)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


def joined(per_process: list[list[list]]) -> list[list]:
    """Global batches from those of each process; every process must have as many."""
    return [sum(parts, []) for parts in zip(*per_process, strict=True)]


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("world", WORLDS)
def test_processes_together_read_what_one_would(rows, world):
    order = epoch_order(rows, 5, 3).tolist()
    size = 2 * world
    expected = [[(3, row) for row in order[i : i + size]] for i in range(0, rows, size)]
    if len(expected[-1]) < world:
        expected.pop()
    assert joined(sampled(rows, world, epoch=3, seed=5)) == expected
    assert joined(sampled(rows, 1, per_rank=size, epoch=3, seed=5))[: len(expected)] == expected


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("world", WORLDS)
def test_each_row_once_an_epoch_and_none_unaccounted(rows, world):
    for drop_last in (False, True):
        if drop_last and rows < 2 * world:
            continue
        read = [row for batch in joined(sampled(rows, world, drop_last=drop_last)) for _, row in batch]
        assert len(set(read)) == len(read) and set(read) <= set(range(rows))
        left = rows % (2 * world)
        dropped = left if drop_last or left < world else 0
        assert GlobalBatchSampler(rows, 2, 0, world, drop_last=drop_last).dropped == dropped == rows - len(read)


def test_the_last_batch_is_shared_as_evenly_as_possible():
    last = [batches[-1] for batches in sampled(8 * 4 + 10, 4, per_rank=8, shuffle=False)]
    assert [[row for _, row in part] for part in last] == [[32, 33], [34, 35, 36], [37, 38], [39, 40, 41]]
    for rows, world in itertools.product(range(1, 40), WORLDS):
        parts = [list(range(rows))[rank_part(rows, rank, world)] for rank in range(world)]
        assert sum(parts, []) == list(range(rows)) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_another_order_in_each_epoch_and_with_each_seed():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in range(3)}
    assert len(orders) == 6 and all(sorted(order) == list(range(50)) for order in orders)
    assert np.array_equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))
    # written down: a run that goes on after an update must find the order that it began with
    assert epoch_order(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]


def test_where_the_first_places_go():
    """Over many epochs, each row comes first about equally often: chi-squared with 9 degrees of freedom."""
    first = np.bincount([epoch_order(10, 0, epoch)[0] for epoch in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9  # p = 0.001


@pytest.mark.parametrize("world", WORLDS)
def test_going_on_at_any_step(world):
    whole = sampled(37, world, epoch=2, seed=1)
    for start in range(len(whole[0]) + 1):
        assert sampled(37, world, epoch=2, seed=1, start_batch=start) == [batches[start:] for batches in whole]


def test_only_the_first_epoch_starts_later():
    sampler = GlobalBatchSampler(10, 2, start_batch=3)
    sampler.set_epoch(4)
    assert len(sampler) == 2 and len(list(sampler)) == 2
    assert len(list(sampler)) == 2, "the same epoch again"
    sampler.set_epoch(5)
    assert len(sampler) == 5 and len(list(sampler)) == 5


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_of_rows(workers):
    dataset = EpochRows([{"image_id": str(number), "epoch": "a column of that name"} for number in range(11)])
    sampler = GlobalBatchSampler(11, 2, 1, 2, seed=3)
    sampler.set_epoch(7)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=same)
    rows = [[(row["epoch"], int(row["image_id"])) for row in batch] for batch in loader]
    assert rows == list(sampler) and len(loader) == len(rows) == 3 and len(dataset) == 11
    assert dataset[7, 3] == {"image_id": "3", "epoch": 7}


def test_rows_of_a_hub_data_set_come_a_batch_at_a_time():
    datasets = pytest.importorskip("datasets")
    rows = EpochRows(datasets.Dataset.from_dict({"image_id": ["a", "b", "c"]}))
    assert rows.__getitems__([(1, 2), (1, 0)]) == [{"image_id": "c", "epoch": 1}, {"image_id": "a", "epoch": 1}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_rank_batch": 0}, "per_rank_batch is 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes"),
        ({"start_batch": -1}, "start_batch is -1"),
        ({"start_batch": 6}, "an epoch has 5 batches"),
        ({"num_rows": 2, "world_size": 3}, "2 rows are not enough for one step of 3 processes"),
        ({"num_rows": 5, "world_size": 3, "drop_last": True}, "take a smaller batch, or an incomplete one"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(**{"num_rows": 10, "per_rank_batch": 2, **arguments})


# --- streams ------------------------------------------------------------------------------------------------------

FILES = 3


def files() -> list[int]:
    return list(range(FILES))


def read_numbers(part: int, report: SkipReport, rows: int):
    """Every third of `rows` numbers; before and after some of them, something is left out."""
    if part == 1:
        report.add("at the beginning", f"file {part}")
    for number in range(part, rows, FILES):
        if number % 5 == 0:
            report.add("broken", f"before {number}")
        yield {"image_id": str(number)}
    report.add("at the end", f"file {part}")


def stream(rows: int, **options) -> CaptionStream:
    options = {"seed": 4, "buffer_size": 6, **options}
    return CaptionStream(files, functools.partial(read_numbers, rows=rows), **options)


def left_out(rows: int) -> dict[str, int]:
    return {"at the beginning": 1, "broken": len(range(0, rows, 5)), "at the end": FILES}


def loaded(rows: int, world: int, workers: int = 0, per_rank: int = 2, epochs: int = 2, **options) -> list[list]:
    """Batches of each process, through a DataLoader."""
    found = []
    for rank in range(world):
        batches = BatchStream(stream(rows), per_rank, rank, world, epochs=epochs, **options)
        found.append(list(DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=same)))
    return found


def keys(batches: list[list]) -> list[list[tuple[int, str]]]:
    return [[(row["epoch"], row["image_id"]) for row in batch] for batch in batches]


def expected_batches(rows: int, size: int, world: int, epochs: int) -> list[list[tuple[int, str]]]:
    """Global batches made plainly, from the stream alone."""
    found = []
    for epoch in range(epochs):
        order = [(epoch, r["image_id"]) for r in stream(rows).records(epoch) if not isinstance(r, SkipReport)]
        batches = [order[i : i + size] for i in range(0, rows, size)]
        found += batches if len(batches[-1]) >= world else batches[:-1]
    return found


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_stream_shared_by_processes(rows, world):
    per_process = loaded(rows, world)
    expected = expected_batches(rows, 2 * world, world, epochs=2)
    assert joined([keys(batches) for batches in per_process]) == expected
    for batches in per_process:
        assert [batch.number for batch in batches] == list(range(len(expected)))
        assert [batch.epoch for batch in batches] == [batch[0][0] for batch in expected]
        assert [batch.epoch for batch in batches if batch.last] == [0, 1]
    read = [key for batch in expected for key in batch]
    dropped = rows % (2 * world) if rows % (2 * world) < world else 0
    assert len(set(read)) == len(read) == 2 * (rows - dropped)
    assert dropped or sorted(read) == sorted((epoch, str(n)) for epoch in (0, 1) for n in range(rows))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("rows", [13, 37])
@pytest.mark.parametrize("world", WORLDS)
def test_workers_change_nothing(rows, world, workers):
    plain, parallel = loaded(rows, world), loaded(rows, world, workers)
    for one, other in zip(plain, parallel, strict=True):
        assert keys(one) == keys(other)
        assert [(b.epoch, b.number, b.last, b.skipped) for b in one] == [
            (b.epoch, b.number, b.last, b.skipped) for b in other
        ]


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("world", [1, 3])
def test_a_stream_goes_on_at_any_step(world, workers):
    whole = loaded(13, world)
    starts = range(len(whole[0]) + 1) if workers == 0 else (1, 2, len(whole[0]) - 1, len(whole[0]))
    for start in starts:
        again = loaded(13, world, workers, start_batch=start)
        assert [keys(batches) for batches in again] == [keys(batches)[start:] for batches in whole]
        assert [[b.number for b in batches] for batches in again] == [[b.number for b in p[start:]] for p in whole]


def test_a_stream_goes_on_in_a_later_epoch_without_reading_earlier_ones():
    whole = loaded(13, 2)
    begun = [batch.epoch for batch in whole[0]].index(1)
    again = loaded(13, 2, start_epoch=1, start_batch=1)
    assert [keys(batches) for batches in again] == [keys(batches)[begun + 1 :] for batches in whole]
    seen = []
    batches = BatchStream(stream(13), 2, start_epoch=5, epochs=6)
    records = batches.stream.records
    batches.stream.records = lambda epoch: (seen.append(epoch), records(epoch))[1]
    assert {row["epoch"] for batch in batches for row in batch} == {5} and seen == [5]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("world", WORLDS)
def test_what_is_left_out_is_counted_once_an_epoch(rows, world, workers):
    if workers and world not in (1, 3):
        pytest.skip("one and three processes show it")
    total = {epoch: SkipReport(max_examples=100) for epoch in (0, 1)}
    for batches in loaded(rows, world, workers):
        for batch in batches:
            total[batch.epoch].merge(batch.skipped)
    tail = rows % (2 * world) if rows % (2 * world) < world else 0
    for report in total.values():
        assert report == {**left_out(rows), **({TAIL: tail} if tail else {})}
        assert sorted(report.examples("at the end")) == ["file 0", "file 1", "file 2"]


def test_the_counts_of_a_resumed_run_add_up():
    """What was left out before the step to go on at was counted by the run before."""
    for start in range(len(loaded(37, 2)[0])):
        before = functools.reduce(SkipReport.merge, (b.skipped for b in loaded(37, 2)[0][:start]), SkipReport())
        after = functools.reduce(SkipReport.merge, (b.skipped for b in loaded(37, 2, start_batch=start)[0]), before)
        assert after == {cause: 2 * number for cause, number in {**left_out(37), TAIL: 1}.items()}


def test_drop_last_leaves_the_incomplete_batch_out_and_counts_it():
    per_process = loaded(24 + 3, 2, drop_last=True)
    assert {len(batch) for batches in per_process for batch in batches} == {2}
    report = functools.reduce(SkipReport.merge, (b.skipped for b in per_process[0]), SkipReport())
    assert report == {**{cause: 2 * number for cause, number in left_out(27).items()}, TAIL: 6}


def test_without_a_number_of_epochs_it_does_not_end():
    batches = BatchStream(stream(4), 4)
    epochs = [batch.epoch for batch in itertools.islice(batches, 50)]
    assert epochs == list(range(50))


def test_each_epoch_has_its_order():
    orders = [tuple(row["image_id"] for row in stream(37))]
    for epoch in (0, 1, 2):
        one = stream(37)
        one.set_epoch(epoch)
        orders.append(tuple(row["image_id"] for row in one))
    assert orders[0] == orders[1] and len(set(orders)) == 3
    plain = [row["image_id"] for row in stream(37, shuffle=False)]
    assert plain == [str(n) for part in range(FILES) for n in range(part, 37, FILES)]
    assert all(sorted(order) == sorted(plain) for order in orders)
    assert plain not in [list(order) for order in orders]


def test_a_stream_by_itself_splits_among_workers_and_counts():
    one = stream(13)
    assert len(list(one)) == 13 and one.skipped == left_out(13)
    assert len(list(one)) == 13 and one.skipped == left_out(13), "counted anew in each pass"
    for workers in (1, 2, 3):
        rows = list(DataLoader(stream(13), batch_size=None, num_workers=workers, collate_fn=same))
        assert sorted(int(row["image_id"]) for row in rows) == list(range(13))


def test_an_epoch_without_a_batch_is_an_error_not_an_endless_loop():
    with pytest.raises(ValueError, match=r"epoch 0 of the stream holds 0 rows.*3 x at the end"):
        next(iter(BatchStream(stream(0), 2)))
    with pytest.raises(ValueError, match="holds 4 rows, too few for one step of 5 processes"):
        next(iter(BatchStream(stream(4), 1, 0, 5)))
    with pytest.raises(ValueError, match="holds 4 rows, too few .* with 8 rows each"):
        next(iter(BatchStream(stream(4), 8, drop_last=True)))


def test_a_stream_without_files_is_an_error():
    with pytest.raises(ValueError, match="the stream has no files"):
        next(CaptionStream(list, read_numbers).records(0))
    with pytest.raises(ValueError, match="buffer_size is 0"):
        stream(3, buffer_size=0)


def test_files_are_listed_again_in_each_epoch():
    present = [0]
    one = CaptionStream(lambda: present, functools.partial(read_numbers, rows=9), shuffle=False)
    assert [row["image_id"] for row in one] == ["0", "3", "6"]
    present.append(2)
    assert [row["image_id"] for row in one] == ["0", "3", "6", "2", "5", "8"]


def test_a_rank_out_of_range():
    with pytest.raises(ValueError, match="rank 4 of 4"):
        BatchStream(stream(3), 2, 4, 4)
