"""Every execution path of the operator, on one case, and how far its answer is off as a fraction of what is allowed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from asvp_export.operator import Perturbation, native, reference
from asvp_export.operator.native import Problem
from tests.helpers.bodies import model
from tests.helpers.cases import LIMITS, TYPES, Case, laid_out, taken_back
from tests.helpers.criterion import (
    FUNCTION,
    REFERENCE32,
    REFERENCE64,
    Errors,
    Sample,
    Tolerance,
    counts,
    decomposed,
    errors_of,
)
from tests.helpers.native import CODES, LEVELS, Emulated, Kernels, Native
from tests.helpers.oracle import steps_off, widened

EXACT = Tolerance(1e-12, 1e-10)  # of the float64 result that half types are rounded from
TOLERANCES = {"float32": REFERENCE32, "float64": REFERENCE64}
HALF = ("float16", "bfloat16")
BODY = "function body"

# An array in the case's layout and type, its channel axis and a node: the result, an array like the first.
ExecutionPath = Callable[[np.ndarray, int, Perturbation, Case], np.ndarray]


def by_reference(x: np.ndarray, axis: int, node: Perturbation, case: Case) -> np.ndarray:
    bits = case.setting.dtype == "bfloat16"
    tensor = torch.from_numpy(x)  # shares the memory, strides and all
    tensor = tensor.view(torch.bfloat16) if bits else tensor
    with native.reference_only():
        y = reference(tensor, node.rank, node.gain, node.energy, axis)
    return (y.view(torch.uint16) if bits else y).numpy()


def by_kernels(kernels: Kernels, threads: int = 1) -> ExecutionPath:
    """A library's C ABI: in place where the map is strided, channels moved to the front where they stand between."""

    def run(x: np.ndarray, axis: int, node: Perturbation, case: Case) -> np.ndarray:
        attributes = (node.rank, node.gain, node.energy)
        if case.setting.layout == "strided":
            return _strided(kernels, x, attributes, threads)
        if axis == 2:
            moved = np.ascontiguousarray(np.moveaxis(x, 2, 1))
            return np.moveaxis(kernels.perturb(moved, *attributes, threads=threads), 1, 2)
        return kernels.perturb(x, *attributes, axis, threads=threads)

    return run


def _strided(kernels: Kernels, x: np.ndarray, attributes: tuple[int, float, float], threads: int) -> np.ndarray:
    n, c, length = x.shape
    block = np.zeros((n, c, 2, length, 3), x.dtype)
    at = block[:, :, 0, :, 1]
    at[:] = x
    steps = [step // x.itemsize for step in at.strides]
    problem = Problem(n, c, length, *steps, CODES[x.dtype], *attributes)
    status = kernels.call(problem, at.ctypes.data, at.ctypes.data, kernels.workspace(problem), threads)
    assert status == 0, status
    y = at.copy()
    at[:] = 0
    assert not block.any(), "written between the elements"
    return y


@functools.lru_cache(maxsize=4)
def _body(node: Perturbation, dtype: str, ndim: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of nodes that it places on the CPU
    model_proto = model([node], dims=tuple(f"d{i}" for i in range(ndim)), dtype=TYPES[dtype])
    return ort.InferenceSession(model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_body(x: np.ndarray, axis: int, node: Perturbation, case: Case) -> np.ndarray:
    """The function body in onnxruntime, without the library."""
    opened = _body(replace(node, axis=axis), case.setting.dtype, x.ndim)
    if case.setting.dtype != "bfloat16":
        return np.asarray(opened.run(None, {"X": np.ascontiguousarray(x)})[0])
    out = np.empty_like(x, order="C")
    bind = opened.io_binding()
    x = np.ascontiguousarray(x)
    for bind_array, name, values in ((bind.bind_input, "X", x), (bind.bind_output, "Y", out)):
        bind_array(
            name, "cpu", 0, 16, values.shape, values.ctypes.data
        )  # 16: TensorProto.BFLOAT16, of which numpy knows nothing
    opened.run_with_iobinding(bind)
    return out


def execution_paths(folder: Path) -> dict[str, ExecutionPath]:
    """All of them by name; `folder` has the native library and what emulates CUDA."""
    levels = {
        Native(folder, level).kernels: level for level in LEVELS
    }  # a level that this processor lacks is not there
    paths: dict[str, ExecutionPath] = {"reference": by_reference}
    paths |= {f"native, {name}": by_kernels(Native(folder, level)) for name, level in levels.items()}
    paths["CUDA, emulated"] = by_kernels(Emulated(folder), threads=2)
    paths[BODY] = by_body
    return paths


@dataclass(frozen=True)
class Judged:
    """One case by one execution path."""

    path: str
    pair: bool  # the node and its inverse
    usual: bool  # of the magnitudes that docs/concepts/operator.md speaks of
    errors: Errors


def judged(case: Case, paths: dict[str, ExecutionPath]) -> Iterator[Judged]:
    """The node by every path, and the pair of node and inverse where there is one.

    Raises:
        AssertionError: a promise that is no matter of degree is broken (zeros, NaN, the shape).
    """
    setting = case.setting
    x, axis = laid_out(case)
    clean = widened(case.maps)
    truths = [None if i == case.poisoned else decomposed(matrix) for i, matrix in enumerate(clean)]
    residual = 1.0 if setting.dtype in HALF or len(clean) % 2 else setting.gain**0.5
    node = Perturbation(setting.rank, setting.gain, setting.energy, axis)
    pair = setting.gain > 1 and setting.energy == 1
    if pair:
        node = replace(node, residual=residual)
    for path, run in paths.items():
        if path == BODY and setting.dtype == "float64" and not case.usual:
            continue  # it computes in float32, whose range these leave
        y = run(x, axis, node, case)
        assert y.shape == x.shape and y.dtype == x.dtype, (path, y.shape, y.dtype)
        exposed = taken_back(y, case, axis)
        yield Judged(path, False, case.usual, _worst(_node_errors(case, truths, exposed, path), case))
        if pair:
            assert node.inverse
            residual_map = taken_back(run(y, axis, node.inverse, case), case, axis)
            yield Judged(
                path, True, case.usual, _worst(_pair_errors(case, clean, exposed, residual_map, node, path), case)
            )


def _worst(of_samples: Iterator[Errors], case: Case) -> Errors:
    """Of all samples; the captured energy and the distance may be of two."""
    by_sample = list(of_samples)
    if not by_sample:
        return Errors(0.0, 0.0, "nothing but zeros and NaN")
    message = max(by_sample, key=lambda errors: errors.worst).message
    energy = max(errors.energy for errors in by_sample)
    distance = max(errors.distance for errors in by_sample)
    return Errors(energy, distance, f"{case.setting}: {message}")


def _finite(case: Case, results: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The samples that are to be finite; the poisoned one has to be NaN."""
    for sample, after in enumerate(results):
        if sample == case.poisoned:
            assert np.isnan(after).all(), f"{case.setting}: the poisoned sample is not NaN"
        else:
            yield sample, after


def _node_errors(case: Case, truths: list[Sample | None], results: np.ndarray, path: str) -> Iterator[Errors]:
    for sample, after in _finite(case, results):
        truth = truths[sample]
        if truth is None:
            yield Errors(0.0, 0.0 if (after == 0).all() else np.inf, "a map of zeros")
        elif not np.isfinite(after).all():
            yield Errors(np.inf, np.inf, f"not finite, scale {truth.scale:.1e}, shape {after.shape}")
        else:
            tolerance = FUNCTION if path == BODY else TOLERANCES.get(case.setting.dtype, EXACT)
            right = counts(truth.values, case.setting.rank, case.setting.energy, tolerance.energy)
            by_count = [_sample_errors(case, truth, after, r, tolerance) for r in right]
            yield min(by_count, key=lambda errors: errors.worst)


def _sample_errors(case: Case, truth: Sample, after: np.ndarray, r: int, tolerance: Tolerance) -> Errors:
    setting = case.setting
    context = f", scale {truth.scale:.1e}, shape {after.shape}, height {case.height}"
    if setting.dtype in HALF and tolerance is EXACT and truth.gap(r) > 1e-6 * truth.values[0]:
        wide = truth.amplified(r, setting.gain) * truth.scale
        steps = float(steps_off(after, wide, TYPES[setting.dtype]).max())
        return Errors(0.0, steps / 2, f"r = {r}: {steps:.2f} units in the last place{context}")
    _, _, least, unit = LIMITS["float32" if setting.dtype == "float64" and tolerance is FUNCTION else setting.dtype]
    rounding = _subnormal(after.shape, r, setting.gain) * (least / truth.scale)
    if setting.dtype in HALF or abs(setting.gain - 1) < 0.5:
        rounding += unit * float(np.linalg.norm(truth.amplified(r, setting.gain)))
    errors = errors_of(truth, after, r, setting.gain, tolerance, rounding)
    return replace(errors, message=errors.message + context)


def _subnormal(shape: tuple[int, ...], rank: int, gain: float) -> float:
    """What the steps of subnormal numbers come to, a Frobenius norm over the least step; else nothing.

    Each operation is off by half of the smallest step: C products and sums in each of r L entries of U^T M, which
    the gain amplifies; r, the factor and the sum in each of C L entries of the result.
    """
    c, length = shape
    r = min(rank, c, length)
    return 0.5 * ((r + 2) * (c * length) ** 0.5 + abs(gain - 1) * c * (r * length) ** 0.5)


def _pair_errors(
    case: Case, clean: np.ndarray, exposed: np.ndarray, residual_maps: np.ndarray, node: Perturbation, path: str
) -> Iterator[Errors]:
    """How far the readers' map is off what the exposed one holds of the clean one (docs/concepts/two-gains.md)."""
    dtype = case.setting.dtype
    _, _, least, unit = LIMITS[dtype]
    allowed = (2 * node.gain + 1) * unit if dtype in HALF else 8 * node.gain * unit
    if path == BODY:  # it computes in float32
        allowed = 8 * node.gain * LIMITS["float32"][3] + (allowed if dtype in HALF else 0.0)
    elif dtype == "float64":  # its projectors are no more exact than its maps
        allowed += 4 * clean.shape[1] * node.gain * unit
    summed_short = dtype == "float32" and (path not in (BODY, "reference") or (path == BODY and node.rank == 1))
    blur = 1e-7 if summed_short else 1e-15  # of s_1^2, in the Gram matrix
    for sample, after in _finite(case, residual_maps):
        scale = np.abs(clean[sample]).max()
        if scale == 0:
            yield Errors(0.0, 0.0 if (after == 0).all() else np.inf, "a map of zeros")
            continue
        before, exposed_map, after = (matrix / scale for matrix in (clean[sample], exposed[sample], after))
        values = np.linalg.svd(before, compute_uv=False)[: node.rank]
        expected = before + (node.residual_gain - 1) * (exposed_map - before) / (node.gain - 1)
        size = float(np.linalg.norm(before))
        off = float(np.linalg.norm(after - expected)) / size
        steps = 2 * _subnormal(after.shape, node.rank, node.gain) + _subnormal(after.shape, node.rank, 0.0)
        # What does not grow with h: a projector that does not commute, or an s_i that is not known at all.
        turned = np.minimum(blur * values[0] ** 2 / np.maximum(values, 1e-300), values).max() / size
        most = allowed + min(turned, 3e-6) + steps * (least / scale) / size
        message = (
            f"pair with {node.residual_gain:g}: off by {off:.2e} (allowed {most:.1e}), scale {scale:.1e}, "
            f"shape {after.shape}"
        )
        yield Errors(0.0, off / most if np.isfinite(off) else np.inf, message)
