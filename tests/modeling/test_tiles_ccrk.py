"""Reductions in tiles equal those of the whole matrix, in every way a tile can be computed."""

from __future__ import annotations

import pytest
import torch

from ccrk import tiles_ccrk
from ccrk.tiles_ccrk import pair_dots, tiled_log_sum_exp, tiled_softplus_sum

TILE = (3, 4)


def matrices(rows: int = 7, columns: int = 10, spread: bool = False):
    """Two matrices of small numbers; with `spread`, one row is much larger than the others."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 5, generator=generator, dtype=torch.float64) / 2 for n in (rows, columns))
    if spread:
        a[1] *= 200
    return a.requires_grad_(), b.requires_grad_()


def scalar(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64, requires_grad=True)


@pytest.fixture(params=["as it is", "two exponentials"])
def way(request, monkeypatch):
    """Tiles as they come, or all of them taken for such whose rows and columns differ too much."""
    if request.param == "two exponentials":
        monkeypatch.setattr(tiles_ccrk, "_TILE_SPREAD", -1.0)
    return request.param


# scale 1 is within the bound for exponentials, 60 is not
@pytest.mark.parametrize(("scale", "spread"), [(1.0, False), (60.0, False), (1.0, True)])
@pytest.mark.parametrize("columns", [True, False])
def test_log_sum_exps_of_tiles_are_those_of_the_matrix(way, scale, spread, columns):
    (a, b), scale = matrices(spread=spread), scalar(scale)
    logits = a @ b.t() * scale
    expected = [logits.logsumexp(1)] + ([logits.logsumexp(0)] if columns else [])
    found = tiled_log_sum_exp(a, b, scale, columns=columns, tile=TILE)
    assert columns or not len(found[1])
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(e.shape, generator=generator, dtype=torch.float64) for e in expected]
    totals = []
    for results in (found, expected):
        totals.append(sum((w * r).sum() for w, r in zip(weights, results, strict=False)))
    for ours, theirs in zip(found, expected, strict=False):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(total, (a, b, scale)) for total in totals)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_both_ways_occur_in_a_matrix_of_uneven_rows(monkeypatch):
    """The matrix of `spread` has tiles of either kind, so neither way is tested in vain."""
    seen = []
    original = tiles_ccrk._extremes
    monkeypatch.setattr(tiles_ccrk, "_extremes", lambda *args: seen.append(original(*args)) or seen[-1])
    a, b = matrices(spread=True)
    sum(part.sum() for part in tiled_log_sum_exp(a, b, scalar(1.0), tile=TILE)).backward()
    of_rows, of_columns = seen
    spreads = [min(r[1], c[1]) - min(r[0], c[0]) for r in of_rows for c in of_columns]
    assert min(spreads) <= tiles_ccrk._TILE_SPREAD < max(spreads)


@pytest.mark.parametrize("scale", [0.7, 60.0])
@pytest.mark.parametrize("columns", [True, False])
def test_gradients_of_log_sum_exps(way, scale, columns):
    a, b = matrices(4, 5)
    assert torch.autograd.gradcheck(
        lambda *args: tiled_log_sum_exp(*args, columns=columns, tile=TILE)[: 1 + columns], (a, b, scalar(scale))
    )


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_no_rows_or_no_columns(shape):
    a, b = matrices(*shape)
    rows, columns = tiled_log_sum_exp(a, b, scalar(1.0), tile=TILE)
    assert rows.shape == (shape[0],) and columns.shape == (shape[1],)
    assert (rows == -torch.inf).all() and (columns == -torch.inf).all()
    (rows[:0].sum() + columns[:0].sum()).backward()
    assert not a.grad.any() and not b.grad.any()
    weights = torch.ones(shape[1], dtype=torch.float64)
    assert tiled_softplus_sum(a, b, scalar(1.0), scalar(0.0), weights, tile=TILE) == 0
    none = torch.zeros(0, dtype=torch.long)
    assert pair_dots(a, b, none, none).shape == (0,)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_softplus_of_tiles_is_that_of_the_matrix(scale):
    (a, b), scale, bias = matrices(), scalar(scale), scalar(-3.0)
    weights = torch.rand(10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = (torch.nn.functional.softplus(a @ b.t() * scale + bias).sum(0) * weights).sum()
    found = tiled_softplus_sum(a, b, scale, bias, weights, tile=TILE)
    torch.testing.assert_close(found, expected)
    leaves = (a, b, scale, bias)
    ours, theirs = (torch.autograd.grad(3 * total, leaves) for total in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(lambda *args: tiled_softplus_sum(*args, weights, tile=TILE), leaves)
    with torch.no_grad():
        torch.testing.assert_close(tiled_softplus_sum(*leaves, weights, tile=TILE), expected.detach())


def test_products_of_pairs(monkeypatch):
    monkeypatch.setattr(tiles_ccrk, "PAIRS", 3)
    a, b = matrices()
    rows, columns = torch.tensor([0, 6, 0, 2, 2, 0, 5]), torch.tensor([9, 1, 1, 4, 4, 0, 9])
    torch.testing.assert_close(pair_dots(a, b, rows, columns), (a @ b.t())[rows, columns])
    assert torch.autograd.gradcheck(lambda *args: pair_dots(*args, rows, columns), (a, b))


@pytest.mark.parametrize("temperature", [0.07, 0.01, 0.001])
def test_single_precision_is_as_good_as_that_of_the_matrix(temperature):
    """Unit vectors, at temperatures within and beyond the bound: no further from the truth than `logsumexp` is."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.nn.functional.normalize(torch.randn(n, 16, generator=generator)) for n in (600, 900))
    scale = torch.tensor(1 / temperature)
    truth = a.double() @ b.double().t() * scale.double()
    single = a * scale @ b.t()
    for ours, plain, true in zip(
        tiled_log_sum_exp(a, b, scale, tile=(128, 256)),
        (single.logsumexp(1), single.logsumexp(0)),
        (truth.logsumexp(1), truth.logsumexp(0)),
        strict=True,
    ):
        assert (ours - true).abs().max() <= 3 * (plain - true).abs().max() + 1e-6
