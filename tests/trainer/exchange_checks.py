"""What `ProcessExchange` does, checked in three processes; `torchrun --nproc_per_node 3 exchange_checks.py OUT`.

Each process writes OUT/rank{r}.json: for each check what went wrong, or an empty string.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from ccrk.trainer.exchange import ProcessExchange

COUNTS = (2, 0, 3)  # rows of each process


def make_rows(dtype=torch.float64):
    """The rows of all processes, and where each process's begin and end."""
    rows = torch.arange(10).reshape(5, 2).to(dtype)
    starts = [sum(COUNTS[:rank]) for rank in range(len(COUNTS) + 1)]
    return rows, starts


def own_rows(exchange, dtype=torch.float64):
    """The rows of this process."""
    rows, starts = make_rows(dtype)
    return rows[starts[exchange.rank] : starts[exchange.rank + 1]].clone(), starts[exchange.rank]


def check_gather(exchange):
    """Rows in the order of processes, whatever their number and kind, without gradient."""
    for dtype in (torch.float64, torch.float32, torch.long, torch.uint8):
        own, _ = own_rows(exchange, dtype)
        assert torch.equal(exchange.gather(own), make_rows(dtype)[0])
    flags = exchange.gather(torch.tensor([exchange.rank == 1] * COUNTS[exchange.rank], dtype=torch.bool))
    assert flags.dtype == torch.bool and flags.tolist() == [False] * 5
    own, _ = own_rows(exchange)
    assert not exchange.gather(own.requires_grad_()).requires_grad
    assert exchange.counts(own) == list(COUNTS)
    assert exchange.gather(own[:0].detach()).shape == (0, 2)


def check_gather_rows(exchange):
    """The gradient of a process's rows is the sum over the losses of all processes."""
    own, start = own_rows(exchange)
    own.requires_grad_()
    found = exchange.gather_rows(own)
    assert torch.equal(found, make_rows()[0])
    weights = torch.arange(10.0, dtype=torch.float64).reshape(5, 2) + 1
    ((exchange.rank + 1) * weights * found**2).sum().backward()
    expected = 6 * 2 * weights * make_rows()[0]  # 1 + 2 + 3
    assert torch.equal(own.grad, expected[start : start + len(own)])


def check_fetch(exchange):
    """Foreign rows by their place, also such as several processes want, with their gradient; none is possible."""
    own, start = own_rows(exchange)
    wanted = torch.tensor({0: [4, 2], 1: [0, 4, 1], 2: []}[exchange.rank], dtype=torch.long)
    own.requires_grad_()
    found = exchange.fetch(own, start, wanted)
    assert torch.equal(found, make_rows()[0][wanted])
    ((exchange.rank + 1) * found).sum().backward()
    asked = torch.tensor([2.0, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)  # 0 wants 4 and 2, 1 wants 0, 4 and 1
    expected = asked[:, None].expand(5, 2)[start : start + len(own)]
    assert torch.equal(own.grad, expected), own.grad


def check_fetch_of_whole_numbers(exchange):
    """Masks and ids too."""
    own, start = own_rows(exchange, torch.long)
    wanted = torch.tensor([[3], [1, 4], [0]][exchange.rank])
    assert torch.equal(exchange.fetch(own, start, wanted), make_rows(torch.long)[0][wanted])


def check_fetch_of_nothing(exchange):
    """No process wants anything."""
    own, start = own_rows(exchange)
    found = exchange.fetch(own.requires_grad_(), start, torch.zeros(0, dtype=torch.long))
    assert found.shape == (0, 2)
    found.sum().backward()
    assert torch.equal(own.grad, torch.zeros_like(own))


def check_totals(exchange):
    """Sums and maxima; what is given stays as it was."""
    value = torch.tensor(float(exchange.rank + 1))
    assert exchange.total(value) == 6 and exchange.largest(value) == 3
    assert value == exchange.rank + 1


def check_sum_gradients(exchange):
    """Gradients are added up in pieces of one kind, a missing one counts as zero, a frozen one is left alone."""
    made = [
        torch.nn.Parameter(torch.zeros(3)),
        torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)),
        torch.nn.Parameter(torch.zeros(2**24 + 8)),
        torch.nn.Parameter(torch.zeros(4)),
        torch.nn.Parameter(torch.zeros(4), requires_grad=False),
    ]
    for number, parameter in enumerate(made[:3]):
        parameter.grad = torch.full_like(parameter, (exchange.rank + 1) * (number + 1))
    if exchange.rank == 1:
        made[0].grad = None
    if exchange.rank == 2:
        made[3].grad = torch.ones(4)
    exchange.sum_gradients(made)
    assert made[0].grad.tolist() == [4.0] * 3
    assert made[1].grad.tolist() == [[12.0, 12.0]] * 2
    assert (made[2].grad == 18).all()
    assert made[3].grad.tolist() == [1.0] * 4
    assert made[4].grad is None


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}


def main(out: Path) -> None:
    """Runs all checks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    exchange, wrong = ProcessExchange(), {}
    for name, check in CHECKS.items():
        try:
            check(exchange)
            wrong[name] = ""
        except Exception:
            wrong[name] = traceback.format_exc()
        dist.barrier()
    (out / f"rank{exchange.rank}.json").write_text(json.dumps(wrong))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
