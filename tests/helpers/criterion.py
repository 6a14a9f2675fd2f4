"""The test of any implementation of the operator, in float64 (docs/concepts/operator.md, "Correct")."""

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


@dataclass(frozen=True)
class Sample:
    """A sample's C x L matrix in float64, its largest magnitude at 1, and the decomposition of it."""

    scale: float  # what it was divided by
    matrix: np.ndarray
    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    def amplified(self, r: int, gain: float) -> np.ndarray:
        """The exact result for the count r, divided by the scale."""
        return (self.left * np.r_[self.values[:r] * gain, self.values[r:]]) @ self.right

    def gap(self, r: int) -> float:
        """The distance of s_r and s_(r+1)."""
        return self.values[r - 1] - (self.values[r] if r < len(self.values) else 0.0)


def decomposed(matrix: np.ndarray) -> Sample | None:
    """None for a matrix of zeros."""
    scale = float(np.abs(matrix).max())
    if scale == 0:
        return None
    unit = matrix / scale
    return Sample(scale, unit, *np.linalg.svd(unit, full_matrices=False))


@dataclass(frozen=True)
class Errors:
    """How far an answer is off, as fractions of what is allowed: over 1 is wrong."""

    energy: float  # criterion (a)
    distance: float  # criterion (b); 0 where it says nothing
    message: str

    @property
    def worst(self) -> float:
        return max(self.energy, self.distance)


def check(x: np.ndarray, y: np.ndarray, rank: int, gain: float, energy: float, axis: int, tolerance: Tolerance) -> None:
    """Assert that y is a correct answer for x, sample by sample, under criteria (a) and (b)."""
    assert y.shape == x.shape
    assert abs(gain - 1) >= 0.5, "the projector cannot be recovered well from a smaller change"
    for sample, (before, after) in enumerate(zip(as_matrices(x, axis), as_matrices(y, axis), strict=True)):
        assert np.isfinite(after).all(), f"sample {sample} is not finite"
        truth = decomposed(before)
        if truth is None:
            assert (after == 0).all(), f"sample {sample} is zero and did not stay so"
            continue
        problems = []
        for r in counts(truth.values, rank, energy, tolerance.energy):
            errors = errors_of(truth, after, r, gain, tolerance)
            if errors.worst <= 1:
                break
            problems.append(errors.message)
        else:
            raise AssertionError(f"sample {sample} of {x.shape} {x.dtype}: " + "; or ".join(problems))


def errors_of(
    truth: Sample, after: np.ndarray, r: int, gain: float, tolerance: Tolerance, rounding: float = 0.0
) -> Errors:
    """Criteria (a) and (b) for the count r.

    `rounding` is what the rounding of the result in its type may come to, a Frobenius norm over the scale. The
    tolerances hold it where the gain is well away from 1 and the type resolves it; elsewhere it is seen as 2 ||D||
    ||Q M|| + ||D||^2 in ||Q M||^2, with D the rounding over |gain - 1|, and as itself in the distance.
    """
    after = after / truth.scale
    size = np.linalg.norm(truth.values[:r])
    off = allowed = 0.0
    if gain != 1:
        projected = np.linalg.norm((after - truth.matrix) / (gain - 1))
        off = abs((projected / size) ** 2 - 1)
        blur = rounding / abs(gain - 1) / size
        allowed = tolerance.energy + 2 * blur + blur**2
    message = f"r = {r}: captured energy off by {off:.2e} (allowed {allowed:.1e})"
    energy, distance = off / allowed if gain != 1 else 0.0, 0.0
    if truth.values[r - 1] > 0 and truth.gap(r) / truth.values[r - 1] > 1e-2:
        exact = truth.amplified(r, gain)
        off = np.linalg.norm(after - exact) / np.linalg.norm(exact)
        allowed = tolerance.distance + rounding / np.linalg.norm(exact)
        message += f", distance {off:.2e} (allowed {allowed:.1e})"
        distance = off / allowed
    return Errors(float(energy), float(distance), f"{message}, s = {_show(truth.values)}")


def _show(values: np.ndarray) -> str:
    return np.array2string(values[:8], precision=3)
