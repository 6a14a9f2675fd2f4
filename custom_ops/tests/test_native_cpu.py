"""libasvp on the CPU against float64, at every level of kernels; built once with CMake from custom_ops."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from criterion import REFERENCE32, REFERENCE64, as_matrices, check
from hypothesis import given, settings
from hypothesis import strategies as st
from native import CODES, LEVELS, Native, Problem, build, problem_of
from spectra import ENERGIES, GAINS, SPECTRA, feature_maps, matrix

THREADS = st.sampled_from([1, 2, 3])
TOLERANCES = {np.float32: REFERENCE32, np.float64: REFERENCE64}
TYPES = [np.float32, np.float16, np.uint16, np.float64]  # uint16: the bits of bfloat16


@pytest.fixture(scope="session", params=LEVELS)
def native(request, folder) -> Native:
    """A level that this processor lacks gives its best one again."""
    return Native(folder, request.param)


@pytest.fixture(scope="session")
def best(folder) -> Native:
    return Native(folder)


def to_type(values: np.ndarray, dtype) -> np.ndarray:
    if dtype != np.uint16:
        return values.astype(dtype)
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def widened(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint16:
        return x.astype(np.float64)
    return torch.from_numpy(x).view(torch.bfloat16).double().numpy()


def filled(shape, dtype, seed=0) -> np.ndarray:
    return to_type(np.random.default_rng(seed).standard_normal(shape), dtype)


def exact(x: np.ndarray, rank: int, gain: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The float64 result in x's shape, and for each sample whether its leading space is defined."""
    results, clear = [], []
    for m in as_matrices(x, axis):
        left, values, right = np.linalg.svd(m, full_matrices=False)
        r = min(rank, len(values))
        following = values[r] if r < len(values) else 0.0
        clear.append(values[r - 1] - following > 1e-6 * values[0])
        values[:r] *= gain
        results.append((left * values) @ right)
    channels_first = np.stack(results).reshape(x.shape[0], x.shape[axis], *np.delete(x.shape, (0, axis)))
    return np.moveaxis(channels_first, 1, axis), np.array(clear)


def steps_off(y: np.ndarray, wide: np.ndarray, dtype) -> np.ndarray:
    """Distance in units in the last place, beyond what float64 itself leaves where terms cancel."""
    info = torch.finfo(torch.float16 if dtype == np.float16 else torch.bfloat16)
    ulp = 2 ** np.floor(np.log2(np.maximum(np.abs(wide), info.tiny))) * info.eps
    return np.maximum(np.abs(y - wide) - 1e-12 * np.abs(wide).max(), 0) / ulp


# ---------------------------------------------------------------- correct


@pytest.mark.parametrize("dtype", TOLERANCES)
@settings(max_examples=100, deadline=None)
@given(mapped=feature_maps(), rank=st.integers(1, 6), gain=GAINS, energy=ENERGIES, threads=THREADS)
def test_small_maps_of_every_spectrum_layout_and_scale(native, dtype, mapped, rank, gain, energy, threads):
    x, axis = mapped
    x = x.astype(dtype)
    check(x, native.perturb(x, rank, gain, energy, axis, threads=threads), rank, gain, energy, axis, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
@settings(max_examples=80, deadline=None)
@given(mapped=feature_maps(), rank=st.integers(1, 5), gain=GAINS)
def test_half_types_are_the_float64_result_rounded_once(native, dtype, mapped, rank, gain):
    x, axis = mapped
    half = to_type(x / (np.abs(x).max() or 1.0) * 100, dtype)
    y = widened(native.perturb(half, rank, gain, 1.0, axis))
    wide, clear = exact(widened(half), rank, gain, axis)
    steps = steps_off(y, wide, dtype)
    assert steps[clear].size == 0 or steps[clear].max() <= 2


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_half_types_hold_where_the_map_and_its_change_cancel(native, dtype):
    x = filled((1, 24, 100, 200), dtype)
    wide, clear = exact(widened(x), 3, 10.0, 1)
    steps = steps_off(widened(native.perturb(x, 3, 10.0)), wide, dtype)
    assert clear.all()
    assert steps.max() <= 1  # 480,000 elements, some a hundred thousand times smaller than what they are the sum of


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", SPECTRA)
def test_spectra_at_medium_sizes(native, dtype, kind):
    for c, length, rank, energy in [(33, 700, 7, 0.97), (64, 1111, 1, 1.0), (97, 2051, 4, 1.0)]:
        x = matrix(kind, c, length, np.random.default_rng(c)).astype(dtype)[None]
        check(x, native.perturb(x, rank, 3.0, energy, threads=2), rank, 3.0, energy, 1, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "c, length",
    [(1, 1), (1, 4099), (2, 1), (3, 100_003), (31, 2), (65, 513), (180, 1500), (256, 512), (300, 7), (512, 300)],
)
def test_odd_sizes(native, dtype, c, length):
    kind = "image" if c % 2 else "decaying"
    x = matrix(kind, c, length, np.random.default_rng(c)).astype(dtype)[None]
    check(x, native.perturb(x, 4, 3.0, threads=2), 4, 3.0, 1.0, 1, TOLERANCES[dtype])
    tokens = np.ascontiguousarray(x.transpose(0, 2, 1))
    if length > 1:
        check(tokens, native.perturb(tokens, 2, 3.0, axis=-1), 2, 3.0, 1.0, -1, TOLERANCES[dtype])


@pytest.mark.parametrize("kind", SPECTRA)
def test_spectra_at_many_channels(native, kind):
    """From 224 channels on Lanczos goes first and has to prove what it found; where it cannot, the direct method takes over."""
    for c, length, rank, energy in [(224, 500, 4, 1.0), (233, 900, 9, 0.95), (256, 640, 1, 1.0), (391, 450, 19, 0.5)]:
        x = matrix(kind, c, length, np.random.default_rng(c)).astype(np.float32)[None]
        check(x, native.perturb(x, rank, 3.0, energy, threads=2), rank, 3.0, energy, 1, REFERENCE32)


@pytest.mark.skipif("ASVP_SANITIZED" in os.environ, reason="numbers only: the spectra above run through the same lines")
@pytest.mark.parametrize(
    "leading",
    [
        [1, 1, 1, 1, 1],  # an iteration from one vector sees one of them
        [1, 0.5, 0.5, 0.5, 0.5, 0.5],
        [1, 0.5, 0.4, 0.3, 0.3 * (1 - 1e-6)],
        [1, 0.5, 0.4, 0.3, 0.3 * (1 - 4e-3)],
        [1, 0.5, 0.4, 0.3, 0.3 * (1 - 1.1e-2)],
        [1, 0.02, 0.02 * (1 - 2e-2), 0.02 * (1 - 4e-2), 0.02 * (1 - 5e-2)],
        [1, 3e-3, 2e-3, 1.5e-3, 1.4e-3],
        [1, 0.9, 0, 0, 0],
        [1, 0.5, 0.5 * (1 - 2e-2), 0.4, 0.4],
    ],
)
@pytest.mark.parametrize("tail", ["flat", "falling", "zero"])
def test_leading_values_close_to_each_other_and_to_the_rest(best, leading, tail):
    c, length = 224, 500
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, c)))[0] for n in (c, length))
    rest = {"flat": np.full(c, 0.98), "falling": 0.97 ** np.arange(1, c + 1), "zero": np.zeros(c)}[tail]
    values = np.r_[leading, leading[-1] * rest][:c]
    x = ((left * values) @ right.T).astype(np.float32)[None]
    for rank, energy in [(4, 1.0), (3, 1.0), (4, 0.8), (5, 1.0)]:
        check(x, best.perturb(x, rank, 3.0, energy), rank, 3.0, energy, 1, REFERENCE32)


def test_many_components(native):
    rng = np.random.default_rng(0)
    for c, rank in [(40, 17), (40, 40), (40, 1000), (130, 13), (130, 100)]:
        x = matrix("noise", c, 300, rng).astype(np.float32)[None]
        check(x, native.perturb(x, rank, 3.0), rank, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("kind", ["noise", "image", "flat"])
def test_four_million_positions(best, kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 4_000_001), dtype=np.float32)
    if kind == "image":
        x = np.maximum(0.2 * x + rng.random((1, 4, 1), dtype=np.float32), 0)
    if kind == "flat":
        x[0, 2] = 3 * x[0, 1]
    check(x, best.perturb(x, 2, 3.0, threads=2), 2, 3.0, 1.0, 1, REFERENCE32)


def block_criterion(x: torch.Tensor, y: torch.Tensor, rank: int, gain: float) -> tuple[float, float]:
    """Errors (a) and (b) of docs/operator.md for maps of which float64 holds no SVD: block by block, from the Gram matrix."""
    c, length = x.shape
    gram = torch.zeros(c, c, dtype=torch.float64)
    captured, difference, norm = 0.0, 0.0, 0.0
    for block in x.split(1 << 16, 1):
        gram.addmm_(block.double(), block.double().T)
    values, vectors = torch.linalg.eigh(gram)
    r = min(rank, c, length)
    basis = vectors[:, -r:]
    assert r == c or (values[-r].sqrt() - values[-r - 1].sqrt()) / values[-r].sqrt() > 1e-2
    for before, after in zip(x.split(1 << 16, 1), y.split(1 << 16, 1), strict=True):
        before, after = before.double(), after.double()
        exact = torch.addmm(before, basis, basis.T @ before, alpha=gain - 1)
        captured += ((after - before) / (gain - 1)).square().sum().item()
        difference += (after - exact).square().sum().item()
        norm += exact.square().sum().item()
    return abs(captured / values[-r:].sum().item() - 1), (difference / norm) ** 0.5


@pytest.mark.skipif(
    "ASVP_SANITIZED" in os.environ, reason="gigabytes, and nothing that smaller maps do not run through"
)
@pytest.mark.parametrize("c, length", [(32, 1 << 22), (512, 1 << 18)])
def test_maps_of_2_to_the_27_elements(best, c, length):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(c, length, generator=generator)
    for i in range(min(3, c)):  # leading components, well apart; plain noise has none
        x.addr_(torch.randn(c, generator=generator), torch.randn(length, generator=generator), alpha=3.0 - i)
    y = torch.empty_like(x)
    problem = Problem(1, c, length, c * length, length, 1, 0, 3, 3.0, 1.0)
    assert best.call(problem, x.data_ptr(), y.data_ptr(), best.workspace(problem), 2) == 0
    energy, distance = block_criterion(x, y, 3, 3.0)
    assert energy <= REFERENCE32.energy and distance <= REFERENCE32.distance, (energy, distance)


def test_values_far_below_the_first_and_narrow_gaps_in_float32(native):
    """Where a float32 Gram matrix is not enough, and the kernel has to notice it."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 12)))[0] for n in (12, 5000))
    for second in (1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-5):
        for gap in (0.9, 0.98, 0.985):
            values = np.r_[1.0, second, second * gap * 0.95 ** np.arange(10)]
            x = ((left * values) @ right.T).astype(np.float32)[None]
            check(x, native.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e18, 1e36])
def test_tiny_and_huge_float32_maps(native, scale):
    x = (np.random.default_rng(0).standard_normal((2, 8, 9, 11)) * scale).astype(np.float32)
    check(x, native.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_tiny_and_huge_float64_maps(native, scale):
    x = np.random.default_rng(0).standard_normal((2, 8, 9, 11)) * scale
    check(x, native.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE64)


def test_float16_does_not_overflow_inside(native):
    x = np.full((1, 64, 128, 128), 200.0, np.float16)
    np.testing.assert_array_equal(native.perturb(x, 1, 2.0), np.full_like(x, 400.0))


def test_half_types_round_to_even_overflow_to_infinity_and_keep_subnormals(native):
    ends = np.float16([6e-8, 1e-7, 6e-5, 6.1e-5, 1.0, 2047.0, 65504.0, -65504.0, -6e-8, 0.0]).reshape(1, 1, -1)
    for gain in (1.0, 0.5, 1.5, 3.0):  # one channel: y is gain times x
        with np.errstate(over="ignore"):
            wanted = (ends.astype(np.float64) * gain).astype(np.float16)
        np.testing.assert_array_equal(native.perturb(ends, 1, gain), wanted)


# ---------------------------------------------------------------- layouts, addresses, batches, threads


@pytest.mark.parametrize("dtype", TYPES)
def test_layouts_give_the_same_bits(native, dtype):
    """The arithmetic runs on packed blocks, so only the way to them differs."""
    x = filled((2, 37, 1300), dtype)
    wanted = native.perturb(x, 3, 3.0)
    tokens = np.ascontiguousarray(x.transpose(0, 2, 1))
    np.testing.assert_array_equal(native.perturb(tokens, 3, 3.0, axis=-1), wanted.transpose(0, 2, 1))
    strided = filled((2, 37, 2, 1300, 3), dtype, seed=1)  # every third position, channels with a gap, samples apart
    strided[:, :, 0, :, 1] = x
    steps = [s // x.itemsize for s in strided.strides]
    problem = Problem(2, 37, 1300, steps[0], steps[1], steps[3], CODES[x.dtype], 3, 3.0, 1.0)
    y = strided.copy()
    at = y[:, :, 0, :, 1]
    first = strided[:, :, 0, :, 1]
    workspace = native.workspace(problem)
    assert native.call(problem, first.ctypes.data, at.ctypes.data, workspace) == 0
    np.testing.assert_array_equal(at, wanted)
    at[:] = x
    np.testing.assert_array_equal(y, strided)  # nothing between the elements was touched


@pytest.mark.parametrize("dtype", TYPES)
def test_unaligned_addresses_and_in_place_give_the_same_bits(native, dtype):
    for axis, shape in [(1, (2, 19, 1037)), (-1, (2, 1037, 19))]:
        x = filled(shape, dtype)
        wanted = native.perturb(x, 2, 3.0, axis=axis)
        for offset in (1, 2, 4, 8, 20, 32):
            np.testing.assert_array_equal(native.perturb(x, 2, 3.0, axis=axis, offset=offset), wanted)
        np.testing.assert_array_equal(native.perturb(x, 2, 3.0, axis=axis, in_place=True), wanted)
        np.testing.assert_array_equal(native.perturb(x, 2, 3.0, axis=axis, in_place=True, threads=3), wanted)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 32, 40_000), (3, 48, 5000), (90, 5, 70), (1, 200, 3000)])
def test_bits_do_not_depend_on_threads(native, dtype, shape):
    x = filled(shape, dtype)
    wanted = native.perturb(x, 4, 3.0)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(native.perturb(x, 4, 3.0, threads=threads), wanted)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n, c, length", [(3, 16, 9000), (130, 3, 20)])
def test_a_batch_gives_the_bits_of_its_samples(native, dtype, n, c, length):
    x = filled((n, c, length), dtype)
    y = native.perturb(x, 2, 3.0, 0.9, threads=2)
    for sample in range(n):
        np.testing.assert_array_equal(y[sample], native.perturb(x[sample : sample + 1], 2, 3.0, 0.9)[0])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 4, 25), (3, 20, 9001)])
def test_a_poisoned_sample_is_nan_and_leaves_the_others_alone(native, dtype, poison, shape):
    x = filled(shape, dtype)
    clean = native.perturb(x, 3, 3.0, threads=2)
    for place in [(0, 0), (2, 24), (3, shape[2] - 1)]:
        poisoned = x.copy()
        poisoned[(1, *place)] = to_type(np.array([poison]), dtype)[0]
        y = native.perturb(poisoned, 3, 3.0, threads=2)
        assert np.isnan(widened(y)[1]).all()
        np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def test_a_parallel_for_in_python_that_runs_backwards(best):
    """The promise is any order: a host of our own, one task after the other, from the last."""
    x = filled((2, 24, 30_000), np.float32)
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
    host_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    sizes = []

    def backwards(_host, task, count, argument):
        sizes.append(count)
        for index in reversed(range(count)):
            task_type(task)(argument, index)

    problem, y, callback = problem_of(x, 2, 3.0), np.empty_like(x), host_type(backwards)
    workspace = best.workspace(problem)
    assert not best.library.asvp_perturb_cpu(
        ctypes.byref(problem),
        x.ctypes.data,
        y.ctypes.data,
        workspace.ctypes.data,
        workspace.nbytes,
        ctypes.cast(callback, ctypes.c_void_p),
        None,
    )
    np.testing.assert_array_equal(y, best.perturb(x, 2, 3.0))
    assert max(sizes) > 8


# ---------------------------------------------------------------- the ABI


def test_levels_can_be_forced(folder):
    assert Native(folder, "portable").kernels == "portable"
    assert Native(folder, "nonsense").kernels == Native(folder).kernels


@pytest.mark.parametrize(
    "change",
    [
        {"n": -1}, {"c": -2}, {"rank": 0}, {"gain": 0.0}, {"gain": float("nan")}, {"gain": float("inf")}, {"energy": 0.0},
        {"energy": 1.5}, {"energy": float("nan")}, {"dtype": 7}, {"channel_stride": 0}, {"position_stride": -1},
        {"sample_stride": 0}, {"l": 2**62},
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_with_a_reason(best, change):
    x = filled((2, 4, 50), np.float32)
    problem = problem_of(x, 1, 3.0)
    workspace = best.workspace(problem)
    for field, value in change.items():
        setattr(problem, field, value)
    assert best.library.asvp_check(ctypes.byref(problem))
    assert best.library.asvp_workspace_cpu(ctypes.byref(problem)) == 0
    assert best.call(problem, x.ctypes.data, x.ctypes.data, workspace) == 1


def test_a_small_or_unaligned_workspace_is_refused(best):
    x = filled((2, 4, 50), np.float32)
    problem = problem_of(x, 1, 3.0)
    workspace = best.workspace(problem)
    assert best.call(problem, x.ctypes.data, x.ctypes.data, workspace[:-1]) == 2
    assert best.call(problem, x.ctypes.data, x.ctypes.data, workspace[1:]) == 2
    assert best.call(problem, None, x.ctypes.data, workspace) == 1


@pytest.mark.parametrize("shape", [(0, 4, 50), (2, 0, 50), (2, 4, 0)])
def test_empty_maps(best, shape):
    x = np.zeros(shape, np.float32)
    assert best.call(problem_of(x, 1, 3.0), None, None, np.zeros(0, np.uint8)) == 0


@pytest.mark.parametrize("c, length", [(16, 2048), (64, 256 * 256), (180, 128 * 128), (32, 1 << 22)])
def test_scratch_memory_is_at_most_the_map(best, c, length):
    problem = Problem(1, c, length, c * length, length, 1, 0, 4, 1.1, 1.0)
    assert best.library.asvp_workspace_cpu(ctypes.byref(problem)) <= max(4 * c * length, 1 << 20)


def test_zero_maps_stay_zero(native):
    for dtype in TYPES:
        x = np.zeros((2, 6, 700), dtype)
        assert (native.perturb(x, 2, 3.0, 0.9) == 0).all()


# ---------------------------------------------------------------- sanitizers


@pytest.mark.skipif("ASVP_SANITIZED" in os.environ, reason="this is the run with sanitizers")
@pytest.mark.parametrize("sanitizer, what", [("address", "sweep"), ("thread", "threads")])
def test_sanitizers_find_nothing(sanitizer, what):
    """In a host of our own: buffers of exactly the promised size, many calls at once."""
    folder = build(f"tests-{sanitizer}", f"-DASVP_SANITIZE={sanitizer}")
    done = subprocess.run([folder / "asvp_sanitize", what], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("ASVP_SANITIZED" in os.environ, reason="this is the run with sanitizers")
@pytest.mark.parametrize("file", ["test_native_cpu.py", "test_native_cuda_core.py"])
def test_every_case_runs_under_the_sanitizers(file):
    """Address and undefined behaviour, over the same cases; Python is not built with them, so they are loaded first."""
    folder = build("tests-address", "-DASVP_SANITIZE=address")
    (compiler,) = re.findall("^CMAKE_CXX_COMPILER:[A-Z]+=(.*)$", (folder / "CMakeCache.txt").read_text(), re.MULTILINE)
    ask = [[compiler, f"-print-file-name={name}.so"] for name in ("libasan", "libubsan", "libstdc++")]
    found = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in ask]
    if not all(Path(name).is_absolute() for name in found):
        # Clang links its sanitizers into programs alone; there the C++ hosts above still run over shapes, types and threads.
        pytest.skip(f"{compiler} has no shared sanitizers to load into Python")
    settings = {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0", "ASVP_SANITIZED": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(Path(__file__).with_name(file)),
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-o",
        "addopts=-q",
    ]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
