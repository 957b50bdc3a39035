"""Reductions over the matrix of all similarities, computed in tiles: the matrix itself is never held.

With A (M, D) and B (N, D), s = A B^T * scale. A batch of 4096 images with ten captions each makes 168 million
similarities, 640 MiB in each of the several copies that a plain loss and its gradient take; a tile takes some MiB.
"""

from __future__ import annotations

import torch

TILE = (512, 4096)  # rows and columns; 8 MiB in float32
PAIRS = 4096  # pairs of rows multiplied at once
# Exponentials of s - bound serve rows and columns alike while none of them can vanish in float32.
_LARGEST_SPREAD = 80.0
# They serve a tile in which every row's and column's largest lies within this of the shift: what vanishes beside the
# largest of a row is then smaller by a factor of e^-27 at least.
_TILE_SPREAD = 60.0


def _tiles(rows: int, columns: int, tile: tuple[int, int]):
    for start in range(0, rows, tile[0]):
        for left in range(0, columns, tile[1]):
            yield slice(start, min(start + tile[0], rows)), slice(left, min(left + tile[1], columns))


def _bound(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> float | None:
    """An upper bound of |s|, if exponentials of s - bound are safe; None if not."""
    if not len(a) or not len(b):
        return 0.0
    largest = float(scale.abs() * a.norm(dim=1).max() * b.norm(dim=1).max())
    return largest if 2 * largest <= _LARGEST_SPREAD else None


class _LogSumExp(torch.autograd.Function):
    """Rows' and, if asked for, columns' log-sum-exp of s; the backward pass computes the tiles again."""

    @staticmethod
    def forward(ctx, a, b, scale, columns: bool, tile):
        bound = _bound(a, b, scale)
        scaled = a * scale
        if bound is not None:
            rows_lse, columns_lse = _bounded_sums(scaled, b, columns, tile, bound)
        else:
            rows_lse, columns_lse = _unbounded_sums(scaled, b, columns, tile)
        ctx.save_for_backward(a, b, scale, rows_lse, columns_lse)
        ctx.columns, ctx.tile = columns, tile
        return rows_lse, columns_lse

    @staticmethod
    def backward(ctx, row_grad, column_grad):
        a, b, scale, rows_lse, columns_lse = ctx.saved_tensors
        scaled = a * scale
        a_grad, b_grad = torch.zeros_like(a), torch.zeros_like(b)
        of_rows = _extremes(rows_lse, ctx.tile[0])
        of_columns = _extremes(columns_lse, ctx.tile[1]) if ctx.columns else None
        for i, j in _tiles(len(a), len(b), ctx.tile):
            if of_columns is None:
                values = torch.addmm(-rows_lse[i, None], scaled[i], b[j].t()).exp_().mul_(row_grad[i, None])
            else:
                extremes = of_rows[i.start // ctx.tile[0]], of_columns[j.start // ctx.tile[1]]
                parts = (rows_lse[i], row_grad[i]), (columns_lse[j], column_grad[j])
                values = _weighted_shares(scaled[i], b[j], *parts, *extremes)
            a_grad[i].addmm_(values, b[j])
            b_grad[j].addmm_(values.t(), scaled[i])
        scale_grad = (a * a_grad).sum()
        return a_grad.mul_(scale), b_grad, scale_grad, None, None


def _bounded_sums(scaled, b, columns: bool, tile, bound: float):
    """Log-sum-exps where |s| is at most `bound`: one exponential serves the row and the column."""
    row_sums, column_sums = scaled.new_zeros(len(scaled)), b.new_zeros(len(b) if columns else 0)
    shift = scaled.new_tensor(-bound)
    for i, j in _tiles(len(scaled), len(b), tile):
        values = torch.addmm(shift, scaled[i], b[j].t()).exp_()
        row_sums[i] += values.sum(1)
        if columns:
            column_sums[j] += values.sum(0)
    return row_sums.log_().add_(bound), column_sums.log_().add_(bound)


def _unbounded_sums(scaled, b, columns: bool, tile):
    """Log-sum-exps of anything: a tile whose rows and columns differ too much in size takes two exponentials."""
    rows_lse = scaled.new_full((len(scaled),), -torch.inf)
    columns_lse = b.new_full((len(b) if columns else 0,), -torch.inf)
    for i, j in _tiles(len(scaled), len(b), tile):
        values = scaled[i] @ b[j].t()
        if not columns:
            rows_lse[i] = torch.logaddexp(rows_lse[i], values.logsumexp(1))
            continue
        row_tops, column_tops = values.amax(1), values.amax(0)
        top, low, lowest = torch.stack([row_tops.max(), row_tops.min(), column_tops.min()]).tolist()
        if top - min(low, lowest) <= _TILE_SPREAD:
            values.sub_(top).exp_()
            of_rows, of_columns = values.sum(1).log_().add_(top), values.sum(0).log_().add_(top)
        else:
            of_rows = (values - row_tops[:, None]).exp_().sum(1).log_().add_(row_tops)
            of_columns = values.sub_(column_tops).exp_().sum(0).log_().add_(column_tops)
        rows_lse[i] = torch.logaddexp(rows_lse[i], of_rows)
        columns_lse[j] = torch.logaddexp(columns_lse[j], of_columns)
    return rows_lse, columns_lse


def _extremes(values: torch.Tensor, size: int) -> list[tuple[float, float]]:
    """Smallest and largest value of each block of `size`."""
    if not len(values):
        return []
    return [
        tuple(pair) for pair in torch.stack([torch.stack(block.aminmax()) for block in values.split(size)]).tolist()
    ]


def _weighted_shares(a, b, rows, columns, of_rows, of_columns) -> torch.Tensor:
    """The gradient of a tile: each row's softmax times its gradient, and each column's.

    Args:
        a: (m, D), scaled.
        b: (n, D).
        rows: log-sum-exps (m,) and their gradients (m,).
        columns: the same (n,).
        of_rows: smallest and largest of the rows' log-sum-exps.
        of_columns: of the columns'.
    """
    (rows_lse, row_grad), (columns_lse, column_grad) = rows, columns
    shift = min(of_rows[1], of_columns[1])  # no s in the tile is larger
    if shift - min(of_rows[0], of_columns[0]) <= _TILE_SPREAD:
        factors = row_grad * torch.exp(shift - rows_lse), column_grad * torch.exp(shift - columns_lse)
        values = torch.addmm(a.new_tensor(-shift), a, b.t()).exp_()
        return values.mul_(factors[0][:, None] + factors[1])
    logits = a @ b.t()
    values = (logits - rows_lse[:, None]).exp_().mul_(row_grad[:, None])
    return values.addcmul_(logits.sub_(columns_lse).exp_(), column_grad.expand_as(logits))


def tiled_log_sum_exp(
    a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, *, columns: bool = True, tile: tuple[int, int] = TILE
) -> tuple[torch.Tensor, torch.Tensor]:
    """log(sum over j of exp(s_ij)) for each row and log(sum over i of exp(s_ij)) for each column.

    Args:
        a: (M, D) float32 or float64.
        b: (N, D).
        scale: a scalar tensor; s = a b^T * scale.
        columns: also the columns'; without them the second result is empty.
        tile: rows and columns computed at once.

    Returns:
        (M,) and (N,), differentiable in all three.
    """
    return _LogSumExp.apply(a, b, scale, columns, tile)


class _SoftplusSum(torch.autograd.Function):
    """Sum over all i, j of weight_j * softplus(s_ij + bias).

    Of a single number the gradient is known but for a factor, so the forward pass computes it from the tiles it has.
    """

    @staticmethod
    def forward(ctx, a, b, scale, bias, weights, tile):
        total, scaled = a.new_zeros(()), a * scale
        learns = any(ctx.needs_input_grad)
        a_grad, b_grad = (torch.zeros_like(t) if learns else t.new_zeros(()) for t in (a, b))
        bias_grad = torch.zeros_like(bias)
        for i, j in _tiles(len(a), len(b), tile):
            values = torch.addmm(bias, scaled[i], b[j].t())
            total += torch.nn.functional.softplus(values).sum(0) @ weights[j]
            if learns:
                values.sigmoid_().mul_(weights[j])
                bias_grad += values.sum()
                a_grad[i].addmm_(values, b[j])
                b_grad[j].addmm_(values.t(), scaled[i])
        scale_grad = (a * a_grad).sum()
        ctx.save_for_backward(a_grad.mul_(scale), b_grad, scale_grad, bias_grad)
        return total

    @staticmethod
    def backward(ctx, grad):
        return *(found * grad for found in ctx.saved_tensors), None, None


def tiled_softplus_sum(
    a: torch.Tensor,
    b: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    weights: torch.Tensor,
    *,
    tile: tuple[int, int] = TILE,
) -> torch.Tensor:
    """Sum over i, j of weights_j * softplus(s_ij + bias), differentiable in all but the weights.

    Args:
        a: (M, D).
        b: (N, D).
        scale: a scalar tensor.
        bias: a scalar tensor.
        weights: (N,).
        tile: rows and columns computed at once.
    """
    return _SoftplusSum.apply(a, b, scale, bias, weights, tile)


class _PairDots(torch.autograd.Function):
    """Products of pairs of rows, a few thousand at a time."""

    @staticmethod
    def forward(ctx, a, b, rows, columns):
        ctx.save_for_backward(a, b, rows, columns)
        parts = zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)
        return torch.cat([(a[i] * b[j]).sum(1) for i, j in parts])

    @staticmethod
    def backward(ctx, grad):
        a, b, rows, columns = ctx.saved_tensors
        a_grad, b_grad = torch.zeros_like(a), torch.zeros_like(b)
        for g, i, j in zip(grad.split(PAIRS), rows.split(PAIRS), columns.split(PAIRS), strict=True):
            a_grad.index_add_(0, i, b[j].mul_(g[:, None]))
            b_grad.index_add_(0, j, a[i].mul_(g[:, None]))
        return a_grad, b_grad, None, None


def pair_dots(a: torch.Tensor, b: torch.Tensor, rows: torch.LongTensor, columns: torch.LongTensor) -> torch.Tensor:
    """Dot products of rows of a and b, pair by pair, with no copy of all the rows for the backward pass.

    Args:
        a: (M, D).
        b: (N, D).
        rows: (P,) rows of a.
        columns: (P,) rows of b.

    Returns:
        (P,), differentiable in both.
    """
    return _PairDots.apply(a, b, rows, columns)


__all__ = ["TILE", "pair_dots", "tiled_log_sum_exp", "tiled_softplus_sum"]
