"""libasvp on the CPU: what test_native_kernels.py does not test of its kernels and its ABI; and the sanitizers."""

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

from tests.helpers.criterion import REFERENCE32, check
from tests.helpers.native import LEVELS, Native, Problem, build, problem_of
from tests.helpers.oracle import TOLERANCES, TYPES, check_both_layouts, filled
from tests.helpers.spectra import SPECTRA, matrix


@pytest.fixture(scope="session", params=LEVELS)
def native(request, folder) -> Native:
    """A level that this processor lacks gives its best one again."""
    return Native(folder, request.param)


@pytest.fixture(scope="session")
def best(folder) -> Native:
    return Native(folder)


# ---------------------------------------------------------------- correct


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("c, length", [(180, 1500), (256, 512), (300, 7), (512, 300)])
def test_many_channels(native, dtype, c, length):
    check_both_layouts(native, dtype, c, length)


@pytest.mark.parametrize("kind", SPECTRA)
def test_spectra_at_many_channels(native, kind):
    """From 224 channels on Lanczos goes first and has to prove its result; where it cannot, the direct method runs."""
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
    """Errors (a) and (b) of docs/concepts/operator.md for maps too large for a float64 SVD: from the Gram matrix."""
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
@pytest.mark.parametrize("c, length", [(32, 1 << 22), pytest.param(512, 1 << 18, marks=pytest.mark.slow)])
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


def test_float16_does_not_overflow_inside(native):
    x = np.full((1, 64, 128, 128), 200.0, np.float16)
    np.testing.assert_array_equal(native.perturb(x, 1, 2.0), np.full_like(x, 400.0))


# ---------------------------------------------------------------- layouts, addresses, batches, threads


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
        {"n": -1},
        {"c": -2},
        {"rank": 0},
        {"gain": 0.0},
        {"gain": float("nan")},
        {"gain": float("inf")},
        {"energy": 0.0},
        {"energy": 1.5},
        {"energy": float("nan")},
        {"dtype": 7},
        {"channel_stride": 0},
        {"position_stride": -1},
        {"sample_stride": 0},
        {"l": 2**62},
        {"sample_stride": 2**60},
        {"channel_stride": 2**62},
        {"position_stride": 2**63 - 1},
        {"n": 2**62},
    ],
)
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


# ---------------------------------------------------------------- sanitizers


@pytest.mark.skipif("ASVP_SANITIZED" in os.environ, reason="this is the run with sanitizers")
@pytest.mark.slow
@pytest.mark.parametrize("sanitizer, case", [("address", "sweep"), ("thread", "threads")])
def test_sanitizers_find_nothing(sanitizer, case):
    """In a host of our own: buffers of exactly the promised size, many calls at once."""
    folder = build(f"tests-{sanitizer}", f"-DASVP_SANITIZE={sanitizer}")
    done = subprocess.run([folder / "asvp_sanitize", case], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("ASVP_SANITIZED" in os.environ, reason="this is the run with sanitizers")
@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_native_kernels.py", "test_native_cpu.py", "test_native_cuda_core.py"])
def test_every_case_runs_under_the_sanitizers(file):
    """Address and undefined behaviour, over the same cases; Python is not built with them, so they are loaded first."""
    folder = build("tests-address", "-DASVP_SANITIZE=address")
    (compiler,) = re.findall("^CMAKE_CXX_COMPILER:[A-Z]+=(.*)$", (folder / "CMakeCache.txt").read_text(), re.MULTILINE)
    ask = [[compiler, f"-print-file-name={name}.so"] for name in ("libasan", "libubsan", "libstdc++")]
    libraries = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in ask]
    if not all(Path(name).is_absolute() for name in libraries):
        # Clang links its sanitizers into programs alone; the C++ hosts above run over shapes, types and threads anyway.
        pytest.skip(f"{compiler} has no shared sanitizers to load into Python")
    settings = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "ASVP_SANITIZED": "1"}
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
        "addopts=-q --import-mode=importlib",
    ]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
