"""libasvp's kernels against float64: the CPU's at every level, and CUDA's as a CPU runs them block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.criterion import REFERENCE32, REFERENCE64, check
from tests.helpers.native import CODES, LEVELS, Emulated, Kernels, Native, Problem, problem_of
from tests.helpers.oracle import TOLERANCES, TYPES, check_both_layouts, exact, filled, steps_off, to_type, widened
from tests.helpers.spectra import ENERGIES, GAINS, SPECTRA, feature_maps, matrix

THREADS = st.sampled_from([1, 2, 3, 4])  # of CUDA's kernels: the order of blocks and threads (see `Emulated`)


@pytest.fixture(scope="session", params=[*LEVELS, "cuda"])
def native(request, folder) -> Kernels:
    """A level that this processor lacks gives its best one again."""
    return Emulated(folder) if request.param == "cuda" else Native(folder, request.param)


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
    for c, length, rank, energy in [(33, 700, 7, 0.97), (64, 1111, 1, 1.0), (81, 2051, 4, 1.0)]:
        x = matrix(kind, c, length, np.random.default_rng(c)).astype(dtype)[None]
        check(x, native.perturb(x, rank, 3.0, energy, threads=2), rank, 3.0, energy, 1, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("c, length", [(1, 1), (1, 4099), (2, 1), (3, 100_003), (31, 2), (65, 513)])
def test_odd_sizes(native, dtype, c, length):
    check_both_layouts(native, dtype, c, length)


def test_many_components(native):
    rng = np.random.default_rng(0)
    for c, rank in [(5, 5), (40, 17), (40, 40), (40, 1000), (130, 13), (130, 100)]:
        x = matrix("noise", c, 300, rng).astype(np.float32)[None]
        check(x, native.perturb(x, rank, 3.0), rank, 3.0, 1.0, 1, REFERENCE32)


def test_values_far_below_the_first_and_narrow_gaps_in_float32(native):
    """Where a float32 Gram matrix is not enough, and the kernel has to notice it."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 12)))[0] for n in (12, 5000))
    for second in (1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-5):
        for gap in (0.9, 0.98, 0.985):
            values = np.r_[1.0, second, second * gap * 0.95 ** np.arange(10)]
            x = ((left * values) @ right.T).astype(np.float32)[None]
            check(x, native.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE32)


def test_more_channels_than_positions_leave_a_gap_that_float32_sums_have_to_resolve(native):
    """All values are leading, but the channels have directions beyond: the last value has to stand out against zero."""
    rng = np.random.default_rng(0)
    for last in (3e-3, 1e-3, 3e-4):
        left, right = (np.linalg.qr(rng.standard_normal((n, 6)))[0] for n in (22, 6))
        x = ((left * [1, 1, last, last, 0.9 * last, 0.9 * last]) @ right.T).astype(np.float32)[None]
        check(x, native.perturb(x, 7, 1000.0), 7, 1000.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("rank", [1, 4, 28])
def test_an_inverse_of_any_rank_gives_a_float32_map_back(native, rank):
    """8 u h of the map, beside what the first node's float32 sums leave (docs/concepts/two-gains.md)."""
    rng = np.random.default_rng(rank)
    left, right = (np.linalg.qr(rng.standard_normal((n, 85)))[0] for n in (85, 561))
    for last in (0.3, 0.04, 3e-3):
        values = np.r_[1, np.full(rank - 1, last), np.full(85 - rank, 0.9 * last)]
        x = ((left * values) @ right.T).astype(np.float32)[None]
        for gain in (10.0, 100.0, 1000.0):
            back = native.perturb(native.perturb(x, rank, gain), rank, 1 / gain)
            assert np.linalg.norm(back - x) <= (8 * 2.0**-24 * gain + 3e-6) * np.linalg.norm(x)


@pytest.mark.parametrize("c", [12, 64])
@pytest.mark.parametrize("kind", ["flat", "decaying", "image", "noise"])
def test_an_inverse_gives_a_float64_map_back(native, kind, c):
    """Within (8 + C) u h. Rotations make vectors longer or shorter, which would leave twice that at 64 channels."""
    x = matrix(kind, c, 300, np.random.default_rng(c))[None]
    for gain in (10.0, 1000.0):
        back = native.perturb(native.perturb(x, 1, gain), 1, 1 / gain)
        assert np.linalg.norm(back - x) <= (8 + c) * 2.0**-53 * gain * np.linalg.norm(x)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e18, 1e36])
def test_tiny_and_huge_float32_maps(native, scale):
    x = (np.random.default_rng(0).standard_normal((2, 8, 9, 11)) * scale).astype(np.float32)
    check(x, native.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_tiny_and_huge_float64_maps(native, scale):
    x = np.random.default_rng(0).standard_normal((2, 8, 9, 11)) * scale
    check(x, native.perturb(x, 2, 3.0), 2, 3.0, 1.0, 1, REFERENCE64)


@pytest.mark.parametrize("gain", [1e30, 3e38, 1e55, 1e150, 1e300, 1.7e308])
def test_gains_beyond_the_range_of_float32(native, gain):
    """What the result's type holds comes out right; a map of zeros stays one."""
    for dtype in TYPES:
        for shape in [(2, 6, 70), (2, 6, 1700)]:
            assert (native.perturb(np.zeros(shape, dtype), 2, gain) == 0).all()
    noise = np.random.default_rng(0).standard_normal((2, 8, 99))
    # The projection that a gain of 3 applies, 1e35 and 1e300 large; M itself is below rounding beside it.
    for x, off in [((noise * (1e35 / gain)).astype(np.float32), 1e-5), (noise * (1e300 / gain), 1e-10)]:
        projected = (native.perturb(x, 2, 3.0).astype(np.float64) - x) / 2
        largest = np.abs(projected).max()
        if largest > 1e-30:  # what float32 holds to all its bits
            amplified = native.perturb(x, 2, gain).astype(np.float64) / gain
            np.testing.assert_allclose(amplified, projected, rtol=0, atol=off * largest)


def test_half_types_round_to_even_overflow_to_infinity_and_keep_subnormals(native):
    ends = np.float16([6e-8, 1e-7, 6e-5, 6.1e-5, 1.0, 2047.0, 65504.0, -65504.0, -6e-8, 0.0]).reshape(1, 1, -1)
    for gain in (1.0, 0.5, 1.5, 3.0):  # one channel: y is gain times x
        with np.errstate(over="ignore"):
            wanted = (ends.astype(np.float64) * gain).astype(np.float16)
        np.testing.assert_array_equal(native.perturb(ends, 1, gain), wanted)


# ---------------------------------------------------------------- the same bits


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


@pytest.mark.parametrize("shape", [(1, 6, 70), (2, 1, 70), (2, 6, 1), (1, 1, 1)])
@pytest.mark.parametrize("stride", [0, -1, 5, 2**62, -(2**63)])
def test_the_stride_of_a_single_element_counts_for_nothing(native, shape, stride):
    x = filled(shape, np.float32)
    problem, y = problem_of(x, 2, 3.0), np.empty_like(x)
    for count, name in zip(shape, ("sample_stride", "channel_stride", "position_stride"), strict=True):
        if count == 1:
            setattr(problem, name, stride)
    assert native.call(problem, x.ctypes.data, y.ctypes.data, native.workspace(problem)) == 0
    np.testing.assert_array_equal(y, native.perturb(x, 2, 3.0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n, c, length", [(3, 16, 4200), (130, 3, 20)])
def test_a_batch_gives_the_bits_of_its_samples(native, dtype, n, c, length):
    x = filled((n, c, length), dtype)
    y = native.perturb(x, 2, 3.0, 0.9, threads=2)
    for sample in range(n):
        np.testing.assert_array_equal(y[sample], native.perturb(x[sample : sample + 1], 2, 3.0, 0.9)[0])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 4, 25), (3, 20, 4201)])
def test_a_poisoned_sample_is_nan_and_leaves_the_others_alone(native, dtype, poison, shape):
    x = filled(shape, dtype)
    clean = native.perturb(x, 3, 3.0, threads=2)
    for place in [(0, 0), (2, 24), (3, shape[2] - 1)]:
        poisoned = x.copy()
        poisoned[(1, *place)] = to_type(np.array([poison]), dtype)[0]
        y = native.perturb(poisoned, 3, 3.0, threads=2)
        assert np.isnan(widened(y)[1]).all()
        np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("c, length", [(16, 2048), (64, 128 * 128), (180, 128 * 128), (64, 1024 * 1024), (32, 1 << 22)])
def test_scratch_memory_is_at_most_the_map(native, c, length):
    problem = Problem(1, c, length, c * length, length, 1, 0, 4, 1.1, 1.0)
    assert native.workspace_bytes(problem) <= max(4 * c * length, 1 << 20)


def test_zero_maps_stay_zero(native):
    for dtype in TYPES:
        for shape in [(2, 6, 70), (2, 6, 1700)]:
            assert (native.perturb(np.zeros(shape, dtype), 2, 3.0, 0.9) == 0).all()
