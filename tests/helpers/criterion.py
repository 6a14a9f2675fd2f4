"""The test of any implementation of the operator, in float64 (docs/operator.md, "Correct")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    energy: float  # e: relative error of the captured energy
    distance: float  # d: relative Frobenius distance, where the gap is over 1e-2


REFERENCE32 = Tolerance(1e-6, 1e-5)
REFERENCE64 = Tolerance(1e-12, 1e-10)
FUNCTION = Tolerance(1e-6, 1e-4)


def as_matrices(x: np.ndarray, axis: int) -> np.ndarray:
    """[N, C, L] in float64."""
    return np.moveaxis(x, axis, 1).reshape(x.shape[0], x.shape[axis], -1).astype(np.float64)


def counts(values: np.ndarray, rank: int, energy: float, slack: float) -> set[int]:
    """The right counts r: several where the threshold falls within `slack` of a partial sum."""
    most = min(rank, len(values))
    if energy >= 1:
        return {most}
    total = (values**2).sum()
    if total == 0:
        return {1}
    covered = np.cumsum(values**2) / total
    return {min(most, int((covered < energy + shift).sum()) + 1) for shift in (-slack, 0, slack)}


def check(x: np.ndarray, y: np.ndarray, rank: int, gain: float, energy: float, axis: int, tolerance: Tolerance) -> None:
    """Assert that y is a correct answer for x, sample by sample, under criteria (a) and (b)."""
    assert y.shape == x.shape
    assert abs(gain - 1) >= 0.5, "the projector cannot be recovered well from a smaller change"
    for sample, (before, after) in enumerate(zip(as_matrices(x, axis), as_matrices(y, axis), strict=True)):
        assert np.isfinite(after).all(), f"sample {sample} is not finite"
        scale = np.abs(before).max()
        if scale == 0:
            assert (after == 0).all(), f"sample {sample} is zero and did not stay so"
            continue
        before, after = before / scale, after / scale
        left, values, right = np.linalg.svd(before, full_matrices=False)
        projected = (after - before) / (gain - 1)
        problems = []
        for r in counts(values, rank, energy, tolerance.energy):
            problem = _against(before, after, left, values, right, projected, r, gain, tolerance)
            if problem is None:
                break
            problems.append(problem)
        else:
            raise AssertionError(f"sample {sample} of {x.shape} {x.dtype}: " + "; or ".join(problems))


def _against(before, after, left, values, right, projected, r, gain, tolerance) -> str | None:
    """Why the answer is wrong for the count r, or None."""
    wanted = (values[:r] ** 2).sum()
    error = abs((projected**2).sum() / wanted - 1)
    if error > tolerance.energy:
        return f"r = {r}: captured energy off by {error:.2e} (allowed {tolerance.energy:.0e}), s = {_show(values)}"
    last, following = values[r - 1], values[r] if r < len(values) else 0.0
    if last > 0 and (last - following) / last > 1e-2:
        amplified = values.copy()
        amplified[:r] *= gain
        exact = (left * amplified) @ right
        distance = np.linalg.norm(after - exact) / np.linalg.norm(exact)
        if distance > tolerance.distance:
            return f"r = {r}: distance {distance:.2e} (allowed {tolerance.distance:.0e}), s = {_show(values)}"
    return None


def _show(values: np.ndarray) -> str:
    return np.array2string(values[:8], precision=3)
