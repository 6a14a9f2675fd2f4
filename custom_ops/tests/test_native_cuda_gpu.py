"""libasvp's CUDA kernels on a GPU, through torch's memory and streams, against float64.

Needs a GPU, nvcc and a PyTorch with CUDA. Also the program to run under compute-sanitizer:

    compute-sanitizer --tool memcheck python -m pytest custom_ops/tests/test_native_cuda_gpu.py -k "not large"
    compute-sanitizer --tool racecheck ... ; --tool synccheck ... ; --tool initcheck ...
"""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest
import torch

from tests.helpers.criterion import REFERENCE32, REFERENCE64, check
from tests.helpers.native import Emulated, Problem, build, cuda_missing
from tests.helpers.oracle import exact, steps_off
from tests.helpers.spectra import SPECTRA, matrix

pytestmark = pytest.mark.gpu
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
TYPES = list(CODES)
TOLERANCES = {torch.float32: REFERENCE32, torch.float64: REFERENCE64}


class Cuda:
    def __init__(self, path) -> None:
        self.library = library = ctypes.CDLL(str(path))
        library.asvp_cuda_unavailable.restype = ctypes.c_char_p
        library.asvp_workspace_cuda.restype = ctypes.c_size_t
        library.asvp_perturb_cuda.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_size_t, ctypes.c_void_p]

    def problem(self, x: torch.Tensor, rank: int, gain: float, energy: float = 1.0, axis: int = 1) -> Problem:
        """Of an [N, C, L] tensor (axis 1) or an [N, L, C] one (axis -1), with whatever strides it has."""
        channel, position = (1, 2) if axis == 1 else (2, 1)
        shape, step = x.shape, x.stride()
        return Problem(
            shape[0],
            shape[channel],
            shape[position],
            step[0],
            step[channel],
            step[position],
            CODES[x.dtype],
            rank,
            gain,
            energy,
        )

    def workspace(self, problem: Problem) -> torch.Tensor:
        """Full of NaN."""
        size = self.library.asvp_workspace_cuda(ctypes.byref(problem))
        assert size > 0
        return torch.full((size,), 255, dtype=torch.uint8, device="cuda")

    def call(self, problem: Problem, x: torch.Tensor, y: torch.Tensor, workspace: torch.Tensor) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        status = self.library.asvp_perturb_cuda(
            ctypes.byref(problem), x.data_ptr(), y.data_ptr(), workspace.data_ptr(), workspace.numel(), stream
        )
        assert status == 0, status

    def perturb(self, x, rank, gain, energy=1.0, axis=1, *, in_place=False) -> torch.Tensor:
        problem = self.problem(x, rank, gain, energy, axis)
        y = x.clone() if in_place else torch.full_like(x, 7)
        assert y.stride() == x.stride()
        self.call(problem, y if in_place else x, y, self.workspace(problem))
        return y


@pytest.fixture(scope="session")
def cuda(request) -> Cuda:
    reason = cuda_missing()
    if reason and request.config.option.markexpr == "gpu":  # make test-gpu must not pass by skipping everything
        pytest.exit(f"nothing was tested: {reason}", returncode=1)
    if reason:  # most machines; the CPU's tests run the same kernels' bodies there
        pytest.skip(reason)
    architecture = "{}{}-real".format(*torch.cuda.get_device_capability())
    folder = build("tests-gpu", "-DASVP_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", target="asvp")
    loaded = Cuda(folder / "libasvp.so")
    assert loaded.library.asvp_cuda_unavailable() is None
    return loaded


def drawn(shape, dtype, seed=0) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values).to("cuda", dtype)


def on_host(x: torch.Tensor) -> np.ndarray:
    return (x if x.dtype in TOLERANCES else x.double()).cpu().numpy()


def held(x: torch.Tensor, y: torch.Tensor, rank: int, gain: float, energy: float = 1.0, axis: int = 1) -> None:
    """Assert the criterion of docs/concepts/operator.md for y's type."""
    if x.dtype in TOLERANCES:
        check(on_host(x), on_host(y), rank, gain, energy, axis, TOLERANCES[x.dtype])
        return
    wide, clear = exact(on_host(x), rank, gain, axis)
    steps = steps_off(on_host(y), wide, np.float16 if x.dtype == torch.float16 else np.uint16)
    assert steps[clear].size == 0 or steps[clear].max() <= 2


# ---------------------------------------------------------------- correct


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", SPECTRA)
def test_spectra(cuda, dtype, kind):
    for c, length, rank in [(3, 50, 2), (33, 700, 7), (64, 1111, 1), (64, 20_000, 4), (97, 2051, 4)]:
        x = torch.from_numpy(matrix(kind, c, length, np.random.default_rng(c))).to("cuda", dtype)[None]
        held(x, cuda.perturb(x, rank, 3.0), rank, 3.0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "c, length",
    [(1, 1), (1, 4099), (2, 1), (3, 100_003), (31, 2), (65, 513), (180, 1500), (256, 512), (300, 7), (512, 300)],
)
def test_odd_sizes_and_both_layouts(cuda, dtype, c, length):
    kind = "image" if c % 2 else "decaying"
    x = torch.from_numpy(matrix(kind, c, length, np.random.default_rng(c))).to("cuda", dtype)[None]
    y = cuda.perturb(x, 4, 3.0)
    held(x, y, 4, 3.0)
    if length > 1:
        tokens = x.transpose(1, 2).contiguous()
        assert torch.equal(cuda.perturb(tokens, 4, 3.0, axis=-1).transpose(1, 2), y)


# Not for halves: where the threshold falls near a partial sum two ranks are right, and their criterion cannot tell.
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_the_energy_count(cuda, dtype, energy):
    x = torch.from_numpy(matrix("decaying", 40, 900, np.random.default_rng(0))).to("cuda", dtype)[None]
    held(x, cuda.perturb(x, 20, 3.0, energy), 20, 3.0, energy)


@pytest.mark.parametrize("c, rank", [(5, 5), (40, 17), (40, 1000), (130, 100)])
def test_many_components(cuda, c, rank):
    x = drawn((1, c, 300), torch.float32)
    held(x, cuda.perturb(x, rank, 3.0), rank, 3.0)


def test_values_far_below_the_first_in_float32(cuda):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 12)))[0] for n in (12, 5000))
    for second in (1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-5):
        for gap in (0.9, 0.98, 0.985):
            values = np.r_[1.0, second, second * gap * 0.95 ** np.arange(10)]
            x = torch.from_numpy((left * values) @ right.T).to("cuda", torch.float32)[None]
            held(x, cuda.perturb(x, 2, 3.0), 2, 3.0)


@pytest.mark.parametrize(
    "dtype, scale",
    [(torch.float32, s) for s in (1e-37, 1e-20, 1e18, 1e36)]
    + [(torch.float64, s) for s in (1e-300, 1e-160, 1e160, 1e300)],
)
def test_tiny_and_huge_maps(cuda, dtype, scale):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 8, 900)) * scale).to("cuda", dtype)
    held(x, cuda.perturb(x, 2, 3.0), 2, 3.0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 4, 25), (3, 12, 9001)])
def test_poison_and_zero(cuda, dtype, shape):
    x = drawn(shape, dtype)
    clean = cuda.perturb(x, 3, 3.0)
    for value in (float("nan"), float("inf")):
        poisoned = x.clone()
        poisoned[1, 3, -1] = value
        y = cuda.perturb(poisoned, 3, 3.0)
        assert torch.isnan(y[1]).all()
        assert torch.equal(y[::2], clean[::2])
    assert (cuda.perturb(torch.zeros_like(x), 3, 3.0, 0.9) == 0).all()


@pytest.mark.parametrize("kind", ["noise", "image"])
def test_large_maps_of_four_million_positions(cuda, kind):
    x = drawn((1, 4, 4_000_001), torch.float32)
    if kind == "image":
        x = (0.2 * x + torch.rand(1, 4, 1, device="cuda")).clamp_min(0)
    held(x, cuda.perturb(x, 2, 3.0), 2, 3.0)


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 64, 128 * 128), (3, 48, 5000), (500, 24, 64), (1, 180, 4096)])
def test_bits_are_the_same_from_run_to_run_and_in_place(cuda, dtype, shape):
    x = drawn(shape, dtype)
    wanted = cuda.perturb(x, 4, 3.0)
    for _ in range(5):
        assert torch.equal(cuda.perturb(x, 4, 3.0), wanted)
    assert torch.equal(cuda.perturb(x, 4, 3.0, in_place=True), wanted)
    assert torch.equal(cuda.perturb(x[:1], 4, 3.0), wanted[:1])  # a batch gives what its samples give


@pytest.mark.parametrize("dtype", TYPES)
def test_addresses_and_strides(cuda, dtype):
    x = drawn((2, 20, 1040), dtype)
    wanted = cuda.perturb(x, 2, 3.0)
    for shift in (1, 2, 3, 4, 8):
        memory = torch.empty(x.numel() + shift, dtype=dtype, device="cuda")
        moved = memory[shift:].view(x.shape).copy_(x)
        problem, out = cuda.problem(moved, 2, 3.0), torch.empty_like(memory)[shift:].view(x.shape)
        for to in (out, moved):  # a clone would be aligned again
            cuda.call(problem, moved, to, cuda.workspace(problem))
            assert torch.equal(to, wanted)
    strided = torch.zeros(2, 20, 2, 1040, 3, dtype=dtype, device="cuda")
    strided[:, :, 1, :, 2] = x
    at = strided[:, :, 1, :, 2]
    problem = cuda.problem(at, 2, 3.0)
    cuda.call(problem, at, at, cuda.workspace(problem))
    assert torch.equal(at, wanted)
    at.zero_()
    assert (strided == 0).all()  # nothing between the elements was touched


@pytest.mark.parametrize("dtype", TYPES)
def test_the_gpu_gives_what_the_emulation_gives(cuda, dtype, folder):
    """To rounding: the order of all sums is the same; square roots and divisions are IEEE's on both."""
    emulated = Emulated(folder)
    x = drawn((2, 40, 3000), dtype)
    host = x.view(torch.uint16) if dtype == torch.bfloat16 else x
    wanted = torch.from_numpy(emulated.perturb(host.cpu().numpy(), 3, 3.0)).view(dtype).to("cuda")
    assert torch.equal(cuda.perturb(x, 3, 3.0), wanted)


# ---------------------------------------------------------------- streams, graphs, threads


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 64, 9000), (40, 16, 100), (1, 130, 700)])
def test_a_call_can_be_captured_into_a_graph(cuda, dtype, shape):
    x = drawn(shape, dtype)
    problem, y = cuda.problem(x, 3, 3.0), torch.empty_like(x)
    workspace = cuda.workspace(problem)
    cuda.call(problem, x, y, workspace)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda.call(problem, x, y, workspace)
    for seed in range(3):
        x.copy_(drawn(shape, dtype, seed))
        workspace.fill_(255)
        graph.replay()
        assert torch.equal(y, cuda.perturb(x, 3, 3.0))


def test_it_runs_on_the_given_stream(cuda):
    """The input is still being made on that stream when the call is given to it."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        a = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            a = torch.nn.functional.normalize(a @ a)
        x = a[None, :64].contiguous()
        y = cuda.perturb(x, 2, 3.0)
    side.synchronize()
    held(x, y, 2, 3.0)


def test_threads_and_streams_at_once(cuda):
    x = [drawn((1, 8 * (i + 1), 3000), torch.float32, i) for i in range(8)]
    wanted = [cuda.perturb(one, 2, 3.0) for one in x]
    torch.cuda.synchronize()
    wrong = []

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            wrong.extend(i for _ in range(20) if not torch.equal(cuda.perturb(x[i], 2, 3.0), wanted[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bad_calls_are_refused(cuda):
    x = drawn((1, 4, 50), torch.float32)
    problem = cuda.problem(x, 2, 3.0)
    workspace = cuda.workspace(problem)
    call = cuda.library.asvp_perturb_cuda
    size = workspace.numel()
    place, at = x.data_ptr(), workspace.data_ptr()
    assert call(ctypes.byref(problem), place, place, at, size - 1, None) == 2
    assert call(ctypes.byref(problem), place, place, at + 8, size, None) == 2
    assert call(ctypes.byref(problem), None, place, at, size, None) == 1
    assert call(ctypes.byref(problem), place + 1, place, at, size, None) == 1
    assert call(ctypes.byref(problem), place, place + 2, at, size, None) == 1
    problem.rank = 0
    assert call(ctypes.byref(problem), place, place, at, size, None) == 1
