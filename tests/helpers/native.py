"""libasvp through ctypes, built once: its kernels for the CPU, and those for CUDA as a CPU runs them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from asvp_export.operator.native import Problem

SOURCE = Path(__file__).resolve().parents[2] / "custom_ops"
CMAKE = (
    shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    or "cmake"
)
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
LEVELS = ("portable", "avx2", "avx512")
CODES = {  # bfloat16 is carried as uint16: numpy has no such type
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 1,
    np.dtype(np.uint16): 2,
    np.dtype(np.float64): 3,
}


def build(name: str, *options: str, target: str = "all") -> Path:
    """Build custom_ops in build/`name`, which is kept, so that the next time only what changed is compiled.

    CUDA is left to the installation, and to the tests of the CUDA sources.
    """
    folder = SOURCE.parent / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # tests run in several processes
        for command in (
            [CMAKE, "-S", str(SOURCE), "-B", str(folder), "-DASVP_TESTS=ON", "-DASVP_CUDA=OFF", *options],
            [CMAKE, "--build", str(folder), "--parallel", "2", "--target", target],
        ):
            completed = subprocess.run(command, capture_output=True, text=True)
            assert completed.returncode == 0, completed.stdout + completed.stderr
    return folder


def onnxruntime_library() -> str:
    """The runtime's own library, for programs on its C API; skips the test where there is none of its own.

    On some platforms the runtime is linked into the Python module, which exports no C API.
    """
    package = Path(importlib.util.find_spec("onnxruntime").origin).parent
    library = next(package.glob("capi/libonnxruntime.so.*"), None)
    if library is None:  # nothing to load: what such a program asks of the C API is not exported
        pytest.skip("this onnxruntime has no shared library of its own")
    return str(library)


def cuda_missing() -> str | None:
    """What it takes to build the CUDA half and run it on a GPU, and is not here."""
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    return None if NVCC else "there is no nvcc to build libasvp's CUDA half with"


class Kernels(ABC):
    """A library's call for maps in this machine's memory; what differs between libraries is left to each."""

    alignment: int  # of the workspace, in bytes

    @abstractmethod
    def workspace_bytes(self, problem: Problem) -> int:
        """What the library asks for."""

    @abstractmethod
    def call(self, problem: Problem, x: int, y: int, workspace: np.ndarray, threads: int = 1) -> int:
        """Its status; 0 is success."""

    def workspace(self, problem: Problem) -> np.ndarray:
        """Filled with a NaN pattern, so that nothing counts on zeros, like the memory around it."""
        size = self.workspace_bytes(problem)
        raw = np.full(size + 2 * self.alignment, 0xFF, np.uint8)
        start = -raw.ctypes.data % self.alignment
        return raw[start : start + size]

    def perturb(
        self,
        x: np.ndarray,
        rank: int,
        gain: float,
        energy: float = 1.0,
        axis: int = 1,
        *,
        threads: int = 1,
        in_place: bool = False,
        offset: int = 0,
    ) -> np.ndarray:
        """The operator on a contiguous array; `offset`: bytes by which both pointers miss an alignment of 64."""
        problem = problem_of(x, rank, gain, energy, axis)
        source = _placed(x.nbytes, offset)
        source[:] = np.ascontiguousarray(x).view(np.uint8).reshape(-1)
        target = source if in_place else _placed(x.nbytes, offset)
        workspace = self.workspace(problem)
        status = self.call(problem, source.ctypes.data, target.ctypes.data, workspace, threads)
        assert status == 0, status
        if not in_place:
            assert (source == np.ascontiguousarray(x).view(np.uint8).reshape(-1)).all(), "the input was changed"
        raw, start = workspace.base, workspace.ctypes.data - workspace.base.ctypes.data
        around = np.r_[raw[:start], raw[start + workspace.nbytes :]]
        assert (around == 0xFF).all(), "written outside the workspace"
        return target.copy().view(x.dtype).reshape(x.shape)


class Native(Kernels):
    """One loaded library; `level` forces its kernels (ASVP_CPU_KERNELS is read at the first call)."""

    alignment = 64

    def __init__(self, folder: Path, level: str | None = None) -> None:
        name = folder / "libasvp.so"
        if level:
            name = shutil.copy(name, Path(tempfile.mkdtemp(dir=folder)) / name.name)  # loaded apart from the others
            os.environ["ASVP_CPU_KERNELS"] = level
        self.library = library = ctypes.CDLL(str(name))
        library.asvp_cpu_kernels.restype = ctypes.c_char_p
        library.asvp_check.restype = ctypes.c_char_p
        library.asvp_check.argtypes = [ctypes.c_void_p]
        library.asvp_workspace_cpu.restype = ctypes.c_size_t
        library.asvp_workspace_cpu.argtypes = [ctypes.c_void_p]
        void, size = ctypes.c_void_p, ctypes.c_size_t
        library.asvp_perturb_cpu.argtypes = [void, void, void, void, size, void, void]
        self.kernels = library.asvp_cpu_kernels().decode()
        os.environ.pop("ASVP_CPU_KERNELS", None)
        pool = ctypes.CDLL(str(folder / "libasvp_threads.so"))
        pool.asvp_threads_new.restype = void
        pool.asvp_threads_new.argtypes = [ctypes.c_int]
        self._new_pool, self._pools = pool.asvp_threads_new, {}
        self._parallel_for = ctypes.cast(pool.asvp_threads_for, void)

    def pool(self, threads: int) -> int:
        if threads not in self._pools:
            self._pools[threads] = self._new_pool(threads)
        return self._pools[threads]

    def workspace_bytes(self, problem: Problem) -> int:
        return self.library.asvp_workspace_cpu(ctypes.byref(problem))

    def call(self, problem: Problem, x: int, y: int, workspace: np.ndarray, threads: int = 1) -> int:
        parallel = (self._parallel_for, self.pool(threads)) if threads > 1 else (None, None)
        return self.library.asvp_perturb_cpu(
            ctypes.byref(problem), x, y, workspace.ctypes.data, workspace.nbytes, *parallel
        )


class Emulated(Kernels):
    """The CUDA kernels' bodies, run by the CPU (cuda_emulated.cpp).

    In place of a number of threads there is an order: 1 as it comes; 2 blocks, warps and threads backwards, more shared
    memory for the solve; from 3 on blocks shuffled, and for even numbers the more memory.
    """

    alignment = 256

    def __init__(self, folder: Path) -> None:
        self.library = library = ctypes.CDLL(str(folder / "libasvp_cuda_emulated.so"))
        library.asvp_workspace_cuda_emulated.restype = ctypes.c_size_t
        library.asvp_workspace_cuda_emulated.argtypes = [ctypes.c_void_p]
        library.asvp_perturb_cuda_emulated.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int]

    def workspace_bytes(self, problem: Problem) -> int:
        return self.library.asvp_workspace_cuda_emulated(ctypes.byref(problem))

    def call(self, problem: Problem, x: int, y: int, workspace: np.ndarray, threads: int = 1) -> int:
        return self.library.asvp_perturb_cuda_emulated(ctypes.byref(problem), x, y, workspace.ctypes.data, threads - 1)


def _placed(size: int, offset: int) -> np.ndarray:
    raw = np.zeros(size + 128 + offset, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    return raw[start : start + size]


def problem_of(x: np.ndarray, rank: int, gain: float, energy: float = 1.0, axis: int = 1) -> Problem:
    """The problem of a contiguous array with its channels on axis 1 or the last one."""
    n, c = x.shape[0], x.shape[axis]
    length = int(np.prod(x.shape)) // max(n * c, 1)
    last = axis % x.ndim == x.ndim - 1 and x.ndim > 2
    strides = (c * length, 1, c) if last else (c * length, length, 1)
    return Problem(n, c, length, *strides, CODES[x.dtype], rank, gain, energy)
