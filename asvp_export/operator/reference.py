"""The operator in plain PyTorch: the specification in code, and the twin of every kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from asvp_export.errors import InputError
from asvp_export.operator.schema import Perturbation

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_BLOCK = 8192  # positions summed at a time: bounds the float64 copies, whatever L is


Function = TypeVar("Function", bound=Callable[..., torch.Tensor])


def _without_autocast(function: Function) -> Function:
    """Products keep their precision inside torch.autocast: the operator computes in float32 at least."""

    @functools.wraps(function)
    def called(x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if not torch.amp.is_autocast_available(x.device.type):
            return function(x, *arguments, **named)
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *arguments, **named)

    return cast(Function, called)


@_without_autocast
def reference(
    x: torch.Tensor,
    rank: int = Perturbation.rank,
    gain: float = Perturbation.gain,
    energy: float = Perturbation.energy,
    axis: int = Perturbation.axis,
) -> torch.Tensor:
    """Amplify the leading singular values of each sample's C x L matrix.

    For each sample, with M the matrix of C channels by the L remaining positions and M = U S V^T:
    M' = M + (gain - 1) U_r U_r^T M, where r is the smallest count with at least `energy` of the squared singular
    values, at most min(rank, C, L). After Hu, Zheng, Lyu (arXiv 2510.08925); docs/concepts/operator.md defines it.

    Args:
        x: feature map, [N, C, ...] or with its channels on `axis`; float32, float16, bfloat16 or float64.
        rank: how many singular values may be amplified, at least 1.
        gain: the factor, above 0.
        energy: share of the squared singular values after which the count stops, in (0, 1]; 1: always `rank`.
        axis: the channel axis; axis 0 is the batch.

    Returns:
        A tensor of x's shape, type and memory layout. A sample that holds NaN or Inf comes back as NaN; the other
        samples are not touched by it. Computed in float64 up to the projector, in at least float32 after it.

    Raises:
        InputError: an attribute out of range, a type that is not floating, or fewer than two dimensions.
    """
    node = Perturbation(rank, gain, energy, axis)
    check_map(x, axis)
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    matrix = as_matrices(x, axis)  # [N, C, L]
    basis, amplified = leading_subspace(matrix, node)
    basis = (basis * amplified.unsqueeze(1))[..., : min(rank, *matrix.shape[1:])].to(_wide(matrix))  # [N, C, k]
    blocks = [
        torch.add(wide, basis @ (basis.mT @ wide), alpha=gain - 1).to(x.dtype)
        for wide in (block.to(basis.dtype) for block in matrix.split(_BLOCK, 2))
    ]
    return _finish(out, torch.cat(blocks, 2), matrix, axis)


@_without_autocast
def reference_backward(
    grad: torch.Tensor, x: torch.Tensor, rank: int, gain: float, energy: float, axis: int
) -> torch.Tensor:
    """Gradient of `reference` with respect to x.

    The derivative is that of the projector P = U_r U_r^T of A = M M^T: dP has only the terms
    (u_j^T dA u_i) / (lambda_i - lambda_j) with i <= r < j (first-order perturbation of an invariant subspace,
    Kato, Perturbation Theory for Linear Operators, II.2), so equal values inside or outside the leading set need
    no care. A pair with lambda_r = lambda_{r+1} has no derivative; its term is left out, which keeps it finite.

    Args:
        grad: gradient of the output, x's shape and type.
        x, rank, gain, energy, axis: as for `reference`.

    Returns:
        The gradient, x's shape, type and memory layout.
    """
    node = Perturbation(rank, gain, energy, axis)
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    matrix = as_matrices(x, axis)
    upstream = as_matrices(grad, axis)
    wide = _wide(matrix)
    basis, amplified = leading_subspace(matrix, node)
    scale = _scale(matrix)
    values = _squared_values(basis, matrix, scale)  # [N, C]
    cross = _streamed_product(upstream, matrix, scale)  # G M^T, [N, C, C]
    mixed = basis.mT @ (cross + cross.mT) @ basis
    gaps = values.unsqueeze(2) - values.unsqueeze(1)
    pairs = amplified.unsqueeze(2) * (1 - amplified).unsqueeze(1)
    tiny = torch.finfo(torch.float64).eps * matrix.shape[1] * values.amax(1)[:, None, None]
    weights = torch.where((pairs > 0) & (gaps > tiny), mixed / gaps, torch.zeros_like(mixed))
    through = basis @ (weights + weights.mT) @ basis.mT
    projector = (basis * amplified.unsqueeze(1)) @ basis.mT
    unit = torch.where(scale > 0, matrix.to(wide) / scale.to(wide), 0)
    direct = torch.add(upstream.to(wide), projector.to(wide) @ upstream.to(wide), alpha=gain - 1)
    return _finish(out, torch.add(direct, through.to(wide) @ unit, alpha=gain - 1), matrix, axis)


def check_map(x: torch.Tensor, axis: int) -> None:
    """Refuse what is no feature map of the operator.

    Raises:
        InputError: a type that is not floating, fewer than two dimensions, or an axis that is not among them.
    """
    if x.dtype not in _FLOATS:
        raise InputError(f"The feature map is {x.dtype}; the operator takes float32, float16, bfloat16 or float64.")
    if x.ndim < 2 or not -x.ndim < axis < x.ndim:
        raise InputError(f"The feature map has shape {tuple(x.shape)}; axis {axis} is not a channel axis of it.")


def as_matrices(x: torch.Tensor, axis: int) -> torch.Tensor:
    """View x as one C x L matrix a sample, [N, C, L], without a copy where the layout allows."""
    return x.movedim(axis, 1).flatten(2) if x.ndim > 2 else x.unsqueeze(2)


def leading_subspace(matrix: torch.Tensor, node: Perturbation) -> tuple[torch.Tensor, torch.Tensor]:
    """Left singular vectors and which of them the operator amplifies.

    Args:
        matrix: [N, C, L]; samples that hold NaN or Inf are taken as zero.
        node: rank and energy decide the count.

    Returns:
        U [N, C, C] float64 in descending order of the singular values, and a mask [N, C] float64, 1 on the leading set.
    """
    basis, squares = _left_factor(matrix)
    most = min(node.rank, *matrix.shape[1:])
    covered = squares.cumsum(1) / squares.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    enough = (covered < node.energy).sum(1, keepdim=True) + 1  # [N, 1]
    count = enough.clamp_max(most) if node.energy < 1 else torch.full_like(enough, most)
    return basis, (torch.arange(squares.shape[1], device=matrix.device) < count).double()


def _left_factor(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U [N, C, C] and s^2 [N, C], descending, from one pass over the scaled matrix.

    Up to float32 the Gram matrix in float64 is exact enough: what it blurs lies 1e-8 below the first singular value.
    A float64 input needs more than half the digits that squaring leaves, so there the triangular factor of M^T is
    carried from block to block instead (a sequential TSQR: Demmel et al., SIAM J. Sci. Comput. 34, 2012).
    """
    scale = _scale(matrix)
    if matrix.dtype != torch.float64:
        squares, basis = torch.linalg.eigh(_streamed_product(matrix, matrix, scale))
        return basis.flip(2), squares.flip(1).clamp_min(0)
    n, c, _ = matrix.shape
    triangle = matrix.new_zeros(n, c, c)
    for block in matrix.split(_BLOCK, 2):
        triangle = torch.linalg.qr(torch.cat([triangle, _unit(block, scale).mT], 1), mode="r").R
    basis, values, _ = torch.linalg.svd(triangle.mT)
    return basis, values.square()


def _streamed_product(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The product left @ right^T in float64, block by block: [N, C, C].

    `scale` is that of `right`, which is divided by it; so is `left` where it is the same map (its Gram matrix).
    """
    n, c, _ = right.shape
    total = right.new_zeros(n, c, c, dtype=torch.float64)
    for a, b in zip(left.split(_BLOCK, 2), right.split(_BLOCK, 2), strict=True):
        unit = _unit(b, scale)
        total.baddbmm_(unit if left is right else a.double(), unit.mT)
    return total


def _squared_values(basis: torch.Tensor, matrix: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """s^2 [N, C] of the scaled matrix, as the squared lengths of the rows of U^T M."""
    rows = matrix.new_zeros(basis.shape[:2], dtype=torch.float64)
    for block in matrix.split(_BLOCK, 2):
        rows += (basis.mT @ _unit(block, scale)).square().sum(2)
    return rows


def _wide(matrix: torch.Tensor) -> torch.dtype:
    """The type of the second pass: float32 for float32, else float64, so that half types are rounded once."""
    return torch.float32 if matrix.dtype == torch.float32 else torch.float64


def _scale(matrix: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each sample [N, 1, 1] in float64; 0 marks a sample that is zero or not finite."""
    largest = matrix.abs().amax((1, 2), keepdim=True).double()  # NaN and Inf propagate through amax
    return torch.where(largest.isfinite(), largest, 0)


def _unit(block: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The block in float64 with magnitudes up to 1: squares of 1e-20 and of 1e300 neither vanish nor overflow."""
    return torch.where(scale > 0, block.double() / scale, 0)


def _finish(out: torch.Tensor, result: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Write [N, C, L] into `out` with its own layout, and NaN into the samples whose matrix holds NaN or Inf."""
    moved = out.movedim(axis, 1)
    moved.copy_(result.reshape(moved.shape))
    finite = matrix.abs().amax((1, 2)).isfinite()
    if not finite.all():
        out[~finite] = float("nan")
    return out
