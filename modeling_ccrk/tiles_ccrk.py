"""Reductions over the matrix of all similarities, computed in tiles: the matrix itself is never held.

With A (M, D) and B (N, D), s = A B^T * scale. A batch of 4096 images with ten captions each makes 168 million
similarities, 640 MiB in each of the several copies that a plain loss and its gradient take; a tile takes some MiB.
"""

from __future__ import annotations

import torch

TILE = (512, 4096)  # rows and columns; 8 MiB in float32
# Exponentials of s - bound serve rows and columns alike while none of them can vanish in float32.
_LARGEST_SPREAD = 80.0


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
        rows_lse = a.new_full((len(a),), -torch.inf)
        columns_lse = b.new_full((len(b),), -torch.inf) if columns else b.new_empty(0)
        scaled = a * scale
        if bound is not None:
            row_sums, column_sums = a.new_zeros(len(a)), b.new_zeros(len(b))
            for i, j in _tiles(len(a), len(b), tile):
                values = torch.addmm(a.new_tensor(-bound), scaled[i], b[j].t()).exp_()
                row_sums[i] += values.sum(1)
                if columns:
                    column_sums[j] += values.sum(0)
            rows_lse = row_sums.log_().add_(bound)
            columns_lse = column_sums.log_().add_(bound) if columns else columns_lse
        else:
            for i, j in _tiles(len(a), len(b), tile):
                values = scaled[i] @ b[j].t()
                rows_lse[i] = torch.logaddexp(rows_lse[i], values.logsumexp(1))
                if columns:
                    columns_lse[j] = torch.logaddexp(columns_lse[j], values.logsumexp(0))
        ctx.save_for_backward(a, b, scale, rows_lse, columns_lse)
        ctx.columns, ctx.tile, ctx.bound = columns, tile, bound
        return rows_lse, columns_lse

    @staticmethod
    def backward(ctx, row_grad, column_grad):
        a, b, scale, rows_lse, columns_lse = ctx.saved_tensors
        scaled = a * scale
        a_grad, b_grad = torch.zeros_like(a), torch.zeros_like(b)
        if ctx.bound is not None:
            row_factor = row_grad * torch.exp(ctx.bound - rows_lse)
            column_factor = column_grad * torch.exp(ctx.bound - columns_lse) if ctx.columns else None
        for i, j in _tiles(len(a), len(b), ctx.tile):
            if ctx.bound is not None:
                values = torch.addmm(a.new_tensor(-ctx.bound), scaled[i], b[j].t()).exp_()
                factor = row_factor[i, None] if column_factor is None else row_factor[i, None] + column_factor[None, j]
                values.mul_(factor)
            else:
                logits = scaled[i] @ b[j].t()
                values = (logits - rows_lse[i, None]).exp_().mul_(row_grad[i, None])
                if ctx.columns:
                    values.addcmul_((logits - columns_lse[None, j]).exp_(), column_grad[None, j].expand_as(logits))
            a_grad[i].addmm_(values, b[j])
            b_grad[j].addmm_(values.t(), scaled[i])
        scale_grad = (a * a_grad).sum()
        return a_grad * scale, b_grad, scale_grad, None, None


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
    """Sum over all i, j of weight_j * softplus(s_ij + bias)."""

    @staticmethod
    def forward(ctx, a, b, scale, bias, weights, tile):
        total = a.new_zeros(())
        scaled = a * scale
        for i, j in _tiles(len(a), len(b), tile):
            values = torch.nn.functional.softplus(torch.addmm(bias, scaled[i], b[j].t()))
            total += values.sum(0) @ weights[j]
        ctx.save_for_backward(a, b, scale, bias, weights)
        ctx.tile = tile
        return total

    @staticmethod
    def backward(ctx, grad):
        a, b, scale, bias, weights = ctx.saved_tensors
        scaled = a * scale
        a_grad, b_grad, bias_grad = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(bias)
        for i, j in _tiles(len(a), len(b), ctx.tile):
            values = torch.addmm(bias, scaled[i], b[j].t()).sigmoid_().mul_(weights[None, j])
            bias_grad += values.sum()
            a_grad[i].addmm_(values, b[j])
            b_grad[j].addmm_(values.t(), scaled[i])
        scale_grad = (a * a_grad).sum()
        return a_grad * scale * grad, b_grad * grad, scale_grad * grad, bias_grad * grad, None, None


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


__all__ = ["TILE", "tiled_log_sum_exp", "tiled_softplus_sum"]
