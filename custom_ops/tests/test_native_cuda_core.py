"""The CUDA kernels' bodies, run by the CPU block by block: what test_native_kernels.py does not test of them.

Only a GPU shows missing barriers between phases, failing launches, and vector loads that are not aligned.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.helpers.criterion import REFERENCE32, check
from tests.helpers.native import Emulated, Problem
from tests.helpers.oracle import TYPES, check_both_layouts, filled, widened
from tests.helpers.spectra import SPECTRA, matrix


@pytest.fixture(scope="session")
def cuda(folder) -> Emulated:
    return Emulated(folder)


# ---------------------------------------------------------------- correct


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


@pytest.mark.parametrize(
    "dtype, c, length",
    [
        (np.float32, 180, 700),
        (np.float32, 256, 300),
        (np.float32, 300, 7),
        (np.float32, 512, 100),
        (np.float64, 70, 300),  # its rotations take a CPU long
    ],
)
def test_many_channels(cuda, dtype, c, length):
    check_both_layouts(cuda, dtype, c, length)


@pytest.mark.parametrize("kind", ["noise", "image", "flat"])
def test_long_maps(cuda, kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 1_000_001), dtype=np.float32)
    if kind == "image":
        x = np.maximum(0.2 * x + rng.random((1, 4, 1), dtype=np.float32), 0)
    if kind == "flat":
        x[0, 2] = 3 * x[0, 1]
    check(x, cuda.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE32)


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 16, 9000), (2, 70, 1500), (90, 5, 70)])
def test_bits_do_not_depend_on_the_order_of_blocks_and_threads(cuda, dtype, shape):
    x = filled(shape, dtype)
    wanted = cuda.perturb(x, 4, 3.0)
    for order in (2, 3, 4):
        np.testing.assert_array_equal(cuda.perturb(x, 4, 3.0, threads=order), wanted)


def test_bits_do_not_depend_on_where_the_solve_keeps_its_matrix(cuda):
    for c in (70, 100, 130):
        x = filled((1, c, 400), np.float32)
        np.testing.assert_array_equal(cuda.perturb(x, 4, 3.0, threads=4), cuda.perturb(x, 4, 3.0, threads=3))


@pytest.mark.parametrize("dtype", TYPES)
def test_addresses_and_in_place_give_the_same_bits(cuda, dtype):
    for axis, shape in [(1, (2, 20, 1040)), (1, (2, 19, 1037)), (-1, (2, 1037, 24)), (-1, (2, 1037, 19))]:
        x = filled(shape, dtype)
        wanted = cuda.perturb(x, 2, 3.0, axis=axis)
        for offset in (x.itemsize, 8, 16):
            np.testing.assert_array_equal(cuda.perturb(x, 2, 3.0, axis=axis, offset=offset), wanted)
        np.testing.assert_array_equal(cuda.perturb(x, 2, 3.0, axis=axis, in_place=True), wanted)


# ---------------------------------------------------------------- the solve, and the plan


@pytest.mark.parametrize("doubtful", [False, True], ids=["iterated", "rotated"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 32, 33, 64, 90])
def test_the_solve_is_as_good_as_float64(cuda, n, doubtful):
    """Orthonormal vectors, residuals and values to 1e-13 of the trace (LAPACK's own: 1e-15), by both algorithms."""
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
        assert cuda.call(problem, zeros.ctypes.data, zeros.ctypes.data, cuda.workspace(problem)) == status
