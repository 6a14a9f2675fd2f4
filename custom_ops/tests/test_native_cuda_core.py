"""The CUDA kernels' bodies, run by the CPU block by block (cuda_emulated.cpp), against float64.

What this cannot show is what only a GPU does: barriers that are missing between phases, launches, the vector loads' alignment.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from criterion import REFERENCE32, REFERENCE64, check
from hypothesis import given, settings
from hypothesis import strategies as st
from native import CODES, Problem, problem_of
from spectra import ENERGIES, GAINS, SPECTRA, feature_maps, matrix
from test_native_cpu import TOLERANCES, TYPES, exact, filled, steps_off, to_type, widened

# blocks, warps and threads backwards; blocks shuffled; shuffled, and more shared memory for the solve
ORDERS = (1, 2, 3)


class Emulated:
    def __init__(self, folder: Path) -> None:
        self.library = library = ctypes.CDLL(str(folder / "libasvp_cuda_emulated.so"))
        library.asvp_workspace_cuda_emulated.restype = ctypes.c_size_t
        library.asvp_perturb_cuda_emulated.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int]

    def call(self, problem: Problem, x: int, y: int, order: int = 0) -> int:
        size = self.library.asvp_workspace_cuda_emulated(ctypes.byref(problem))
        raw = np.full(size + 512, 0xFF, np.uint8)  # NaN: nothing may count on zeros
        start = -raw.ctypes.data % 256
        status = self.library.asvp_perturb_cuda_emulated(ctypes.byref(problem), x, y, raw[start:].ctypes.data, order)
        assert (raw[:start] == 0xFF).all() and (raw[start + size :] == 0xFF).all(), "written outside the workspace"
        return status

    def perturb(self, x, rank, gain, energy=1.0, axis=1, *, order=0, in_place=False, offset=0) -> np.ndarray:
        problem = problem_of(x, rank, gain, energy, axis)
        source, target = (placed(x, offset) for _ in range(2))
        target = source if in_place else target
        assert self.call(problem, source.ctypes.data, target.ctypes.data, order) == 0
        assert in_place or (source == x).all() or np.isnan(widened(x)).any()
        return target.copy()


def placed(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy whose address misses an alignment of 64 by `offset` bytes."""
    raw = np.zeros(x.nbytes + 128 + offset, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    copy = raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


@pytest.fixture(scope="session")
def cuda(folder) -> Emulated:
    return Emulated(folder)


# ---------------------------------------------------------------- correct


@pytest.mark.parametrize("dtype", TOLERANCES)
@settings(max_examples=40, deadline=None)
@given(
    mapped=feature_maps(),
    rank=st.integers(1, 6),
    gain=GAINS,
    energy=ENERGIES,
    order=st.integers(0, 3),
)
def test_small_maps_of_every_spectrum_layout_and_scale(cuda, dtype, mapped, rank, gain, energy, order):
    x, axis = mapped
    x = x.astype(dtype)
    check(x, cuda.perturb(x, rank, gain, energy, axis, order=order), rank, gain, energy, axis, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
@settings(max_examples=30, deadline=None)
@given(mapped=feature_maps(), rank=st.integers(1, 5), gain=GAINS)
def test_half_types_are_the_float64_result_rounded_once(cuda, dtype, mapped, rank, gain):
    x, axis = mapped
    half = to_type(x / (np.abs(x).max() or 1.0) * 100, dtype)
    y = widened(cuda.perturb(half, rank, gain, 1.0, axis))
    wide, clear = exact(widened(half), rank, gain, axis)
    steps = steps_off(y, wide, dtype)
    assert steps[clear].size == 0 or steps[clear].max() <= 2


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_half_types_hold_where_the_map_and_its_change_cancel(cuda, dtype):
    x = filled((1, 24, 50, 200), dtype)
    wide, clear = exact(widened(x), 3, 10.0, 1)
    assert clear.all()
    assert steps_off(widened(cuda.perturb(x, 3, 10.0)), wide, dtype).max() <= 1


def test_to_half_is_one_rounding(cuda):
    rng = np.random.default_rng(0)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].astype(np.float64)
    ties = (np.sort(every)[1:] + np.sort(every)[:-1]) / 2
    values = np.r_[
        every, ties, ties * (1 + 2.0**-50), ties * (1 - 2.0**-50), rng.standard_normal(10_000), 7e4, np.inf, -np.inf
    ]
    halves, brains = np.empty(values.shape, np.uint16), np.empty(values.shape, np.uint16)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (values, halves, brains)]
    cuda.library.asvp_to_half_emulated(*pointers, ctypes.c_int64(values.size))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(halves, values.astype(np.float16).view(np.uint16))
    near = widened(brains)
    brains, near, values = (a[np.isfinite(near) & (near != 0)] for a in (brains, near, values))
    for other in (-1, 1):  # no neighbour is nearer; halfway, the last bit is even
        beside = widened((brains.astype(np.int64) + other).astype(np.uint16))
        here, there = np.abs(near - values), np.abs(beside - values)
        assert ((here < there) | ((here == there) & (brains % 2 == 0))).all()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", SPECTRA)
def test_spectra_at_medium_sizes(cuda, dtype, kind):
    for c, length, rank, energy in [(33, 700, 7, 0.97), (64, 1111, 1, 1.0)]:
        x = matrix(kind, c, length, np.random.default_rng(c)).astype(dtype)[None]
        check(x, cuda.perturb(x, rank, 3.0, energy), rank, 3.0, energy, 1, TOLERANCES[dtype])


@pytest.mark.parametrize(
    "dtype, c, length",
    [
        *((t, *shape) for t in TOLERANCES for shape in [(1, 1), (1, 4099), (2, 1), (3, 100_003), (31, 2), (65, 513)]),
        (np.float32, 180, 700), (np.float32, 256, 300), (np.float32, 300, 7), (np.float32, 512, 100), (np.float64, 70, 300),
    ],
)  # fmt: skip
def test_odd_sizes(cuda, dtype, c, length):
    kind = "image" if c % 2 else "decaying"
    x = matrix(kind, c, length, np.random.default_rng(c)).astype(dtype)[None]
    check(x, cuda.perturb(x, 4, 3.0), 4, 3.0, 1.0, 1, TOLERANCES[dtype])


def test_many_components(cuda):
    rng = np.random.default_rng(0)
    for c, rank in [(5, 5), (40, 17), (40, 40), (40, 1000), (130, 100)]:
        x = matrix("noise", c, 300, rng).astype(np.float32)[None]
        check(x, cuda.perturb(x, rank, 3.0), rank, 3.0, 1.0, 1, REFERENCE32)


def test_values_far_below_the_first_and_narrow_gaps_in_float32(cuda):
    """Where a float32 Gram matrix is not enough, and the solve has to notice it."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 12)))[0] for n in (12, 5000))
    for second in (1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-5):
        for gap in (0.9, 0.98, 0.985):
            values = np.r_[1.0, second, second * gap * 0.95 ** np.arange(10)]
            x = ((left * values) @ right.T).astype(np.float32)[None]
            check(x, cuda.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("kind", ["noise", "image", "flat"])
def test_long_maps(cuda, kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 1_000_001), dtype=np.float32)
    if kind == "image":
        x = np.maximum(0.2 * x + rng.random((1, 4, 1), dtype=np.float32), 0)
    if kind == "flat":
        x[0, 2] = 3 * x[0, 1]
    check(x, cuda.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e18, 1e36])
def test_tiny_and_huge_float32_maps(cuda, scale):
    x = (np.random.default_rng(0).standard_normal((2, 8, 9, 11)) * scale).astype(np.float32)
    check(x, cuda.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_tiny_and_huge_float64_maps(cuda, scale):
    x = np.random.default_rng(0).standard_normal((2, 8, 9, 11)) * scale
    check(x, cuda.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE64)


def test_half_types_round_to_even_overflow_to_infinity_and_keep_subnormals(cuda):
    ends = np.float16([6e-8, 1e-7, 6e-5, 6.1e-5, 1.0, 2047.0, 65504.0, -65504.0, -6e-8, 0.0]).reshape(1, 1, -1)
    for gain in (1.0, 0.5, 1.5, 3.0):  # one channel: y is gain times x
        with np.errstate(over="ignore"):
            wanted = (ends.astype(np.float64) * gain).astype(np.float16)
        np.testing.assert_array_equal(cuda.perturb(ends, 1, gain), wanted)


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 16, 9000), (2, 70, 1500), (90, 5, 70)])
def test_bits_do_not_depend_on_the_order_of_blocks_and_threads(cuda, dtype, shape):
    x = filled(shape, dtype)
    wanted = cuda.perturb(x, 4, 3.0)
    for order in ORDERS:
        np.testing.assert_array_equal(cuda.perturb(x, 4, 3.0, order=order), wanted)


def test_bits_do_not_depend_on_where_the_solve_keeps_its_matrix(cuda):
    for c in (70, 100, 130):
        x = filled((1, c, 400), np.float32)
        np.testing.assert_array_equal(cuda.perturb(x, 4, 3.0, order=3), cuda.perturb(x, 4, 3.0, order=2))


@pytest.mark.parametrize("dtype", TYPES)
def test_layouts_give_the_same_bits(cuda, dtype):
    x = filled((2, 37, 1300), dtype)
    wanted = cuda.perturb(x, 3, 3.0)
    tokens = np.ascontiguousarray(x.transpose(0, 2, 1))
    np.testing.assert_array_equal(cuda.perturb(tokens, 3, 3.0, axis=-1), wanted.transpose(0, 2, 1))
    strided = filled((2, 37, 2, 1300, 3), dtype, seed=1)  # every third position, channels with a gap, samples apart
    strided[:, :, 0, :, 1] = x
    steps = [s // x.itemsize for s in strided.strides]
    problem = Problem(2, 37, 1300, steps[0], steps[1], steps[3], CODES[x.dtype], 3, 3.0, 1.0)
    y = strided.copy()
    at, first = y[:, :, 0, :, 1], strided[:, :, 0, :, 1]
    assert cuda.call(problem, first.ctypes.data, at.ctypes.data) == 0
    np.testing.assert_array_equal(at, wanted)
    at[:] = x
    np.testing.assert_array_equal(y, strided)  # nothing between the elements was touched


@pytest.mark.parametrize("dtype", TYPES)
def test_addresses_and_in_place_give_the_same_bits(cuda, dtype):
    for axis, shape in [(1, (2, 20, 1040)), (1, (2, 19, 1037)), (-1, (2, 1037, 24)), (-1, (2, 1037, 19))]:
        x = filled(shape, dtype)
        wanted = cuda.perturb(x, 2, 3.0, axis=axis)
        for offset in (x.itemsize, 8, 16):
            np.testing.assert_array_equal(cuda.perturb(x, 2, 3.0, axis=axis, offset=offset), wanted)
        np.testing.assert_array_equal(cuda.perturb(x, 2, 3.0, axis=axis, in_place=True), wanted)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n, c, length", [(3, 16, 2000), (130, 3, 20)])
def test_a_batch_gives_the_bits_of_its_samples(cuda, dtype, n, c, length):
    x = filled((n, c, length), dtype)
    y = cuda.perturb(x, 2, 3.0, 0.9)
    for sample in range(0, n, 7):
        np.testing.assert_array_equal(y[sample], cuda.perturb(x[sample : sample + 1], 2, 3.0, 0.9)[0])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 4, 25), (3, 12, 2001)])
def test_a_poisoned_sample_is_nan_and_leaves_the_others_alone(cuda, dtype, poison, shape):
    x = filled(shape, dtype)
    clean = cuda.perturb(x, 3, 3.0)
    for place in [(0, 0), (3, shape[2] - 1)]:
        poisoned = x.copy()
        poisoned[(1, *place)] = to_type(np.array([poison]), dtype)[0]
        y = cuda.perturb(poisoned, 3, 3.0)
        assert np.isnan(widened(y)[1]).all()
        np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def test_zero_maps_stay_zero(cuda):
    for dtype in TYPES:
        for shape in [(2, 6, 70), (2, 6, 1700)]:
            assert (cuda.perturb(np.zeros(shape, dtype), 2, 3.0, 0.9) == 0).all()


# ---------------------------------------------------------------- the solve, and the plan


@pytest.mark.parametrize("doubtful", [False, True], ids=["iterated", "rotated"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 32, 33, 64, 90])
def test_the_solve_is_as_good_as_float64(cuda, n, doubtful):
    """Orthonormal vectors, residuals and values to 1e-13 of the trace (LAPACK's own here: 1e-15), also by the second road."""
    rng = np.random.default_rng(n)
    for kind in SPECTRA:
        m = matrix(kind, n, n + 10, rng)
        gram = m @ m.T / ((m * m).sum() or 1.0)
        wanted = np.linalg.eigvalsh(gram)[::-1]
        for k, threads in [(1, 512), (min(4, n), 288), (n, 512)]:
            values, vectors, copy = np.zeros(k + 1), np.zeros((k, n)), gram.copy()
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in (copy, values, vectors)]
            cuda.library.asvp_leading_cuda_emulated(n, k, *pointers, threads, int(doubtful), int(doubtful))
            top = min(k + 1, n)
            np.testing.assert_allclose(values[:top], wanted[:top], rtol=0, atol=1e-13)
            np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), rtol=0, atol=1e-13)
            np.testing.assert_allclose(gram @ vectors.T, vectors.T * values[:k], rtol=0, atol=1e-13)


def test_every_tile_fits_into_the_threads_registers_and_shared_memory(cuda):
    excess, shared = ctypes.c_int(), ctypes.c_int()
    cuda.library.asvp_gram_limits_cuda_emulated(ctypes.byref(excess), ctypes.byref(shared))
    assert excess.value <= 0
    assert shared.value <= 48 << 10


def test_ranks_and_channels_beyond_shared_memory_are_refused(cuda):
    for c, rank, dtype, status in [(1016, 1016, 1, 0), (1100, 1017, 1, 1), (8200, 1, 1, 1)]:
        problem = Problem(1, c, rank, c * rank, rank, 1, dtype, rank, 3.0, 1.0)
        zeros = np.zeros(c * rank, np.float16)  # a zero map: no solve
        assert cuda.call(problem, zeros.ctypes.data, zeros.ctypes.data) == status


@pytest.mark.parametrize("c, length", [(64, 128 * 128), (64, 1024 * 1024), (180, 512 * 512), (32, 1 << 22)])
def test_scratch_memory_is_at_most_the_map(cuda, c, length):
    problem = Problem(1, c, length, c * length, length, 1, 0, 4, 1.1, 1.0)
    assert cuda.library.asvp_workspace_cuda_emulated(ctypes.byref(problem)) <= max(4 * c * length, 1 << 20)
