"""libasvp, the native library: where it is, whether it may be used, and the operator on PyTorch's tensors by it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from asvp_export.errors import MachineError
from asvp_export.operator.schema import Perturbation

_ABI = 1  # ASVP_ABI_VERSION of custom_ops/include/asvp.h
_FILE = Path(__file__).with_name("libasvp.dylib" if sys.platform == "darwin" else "libasvp.so")
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
_KEPT_SCRATCH = 64 << 20  # bytes that a thread keeps from call to call: fresh pages cost about as much as the operator

_thread_state = threading.local()


class Problem(ctypes.Structure):
    """asvp_problem of the C ABI."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "c", "l", "sample_stride", "channel_stride", "position_stride")),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int64),
        ("gain", ctypes.c_double),
        ("energy", ctypes.c_double),
    ]


class _OpenMP(ctypes.Structure):
    """asvp_openmp of the C ABI."""

    _fields_ = [("parallel", ctypes.c_void_p), ("threads", ctypes.c_uint)]


def library_path() -> str:
    """Path of the native library, for onnxruntime's `SessionOptions.register_custom_ops_library`.

    Raises:
        MachineError: there is none in this installation, it does not load, or ASVP_DISABLE_NATIVE=1 is set.
    """
    if reason := unavailable():
        raise MachineError(f"{reason} Without it every exported file runs by its function body.")
    return str(_FILE)


def unavailable() -> str | None:
    """Why the native library is not used, in one sentence; None when it is."""
    if os.environ.get("ASVP_DISABLE_NATIVE", "") not in ("", "0"):
        return "The native library is turned off by ASVP_DISABLE_NATIVE."
    return _load()[1]


def cuda_unavailable() -> str | None:
    """Why the library's CUDA kernels are not used, in one sentence; None when they are."""
    if reason := unavailable():
        return reason
    reason = _library().asvp_cuda_unavailable()
    return f"The native library does not use CUDA here: {reason.decode()}." if reason else None


def kernels() -> str | None:
    """Which kernels the library has for this machine: "avx512", "avx2" or "portable", and "cuda"; None without it."""
    if unavailable():
        return None
    return _library().asvp_cpu_kernels().decode() + ("" if cuda_unavailable() else ", cuda")


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Inside, this thread computes the operator by the PyTorch reference: an oracle must not be what it tests."""
    before = getattr(_thread_state, "reference_only", False)
    _thread_state.reference_only = True
    try:
        yield
    finally:
        _thread_state.reference_only = before


def takes(x: torch.Tensor) -> bool:
    """Whether the native kernels compute the operator on this tensor."""
    if x.dtype not in _DTYPES or x.ndim < 2 or x.numel() == 0 or getattr(_thread_state, "reference_only", False):
        return False
    return (x.device.type == "cpu" and not unavailable()) or (x.device.type == "cuda" and not cuda_unavailable())


def perturb(x: torch.Tensor, node: Perturbation) -> torch.Tensor:
    """The operator by the native kernel of x's device; see `asvp_export.operator.reference.reference`.

    Args:
        x: a feature map that `takes` accepts, of any strides.
        node: rank, gain, energy and axis, which is one of x.

    Returns:
        A tensor of x's shape, type and memory layout.

    Raises:
        MachineError: CUDA reported an error.
    """
    out = torch.empty_like(x)
    if (problem := _problem(out, node)) is None:  # channels between height and width, say: no one distance of positions
        channels_first = x.movedim(node.axis, 1).contiguous()
        out.copy_(perturb(channels_first, replace(node, axis=1)).movedim(1, node.axis))
    elif x.stride() == out.stride():
        _run(problem, x, out)
    else:  # a slice, or an expanded tensor
        _run(problem, out.copy_(x), out)
    return out


def _problem(x: torch.Tensor, node: Perturbation) -> Problem | None:
    """The C ABI's view of a dense tensor; None where its positions are not one regular run."""
    axis = node.axis % x.ndim
    # The order of positions is of no account, so any order of their dimensions will do that makes one run.
    dims = [(x.stride(d), x.shape[d]) for d in range(1, x.ndim) if d != axis and x.shape[d] > 1]
    dims.sort()
    length, step = 1, dims[0][0] if dims else 1
    for stride, size in dims:
        if stride != step * length:
            return None
        length *= size
    strides = (max(x.stride(0), 1), max(x.stride(axis), 1), step)
    return Problem(x.shape[0], x.shape[axis], length, *strides, _DTYPES[x.dtype], node.rank, node.gain, node.energy)


def _run(problem: Problem, x: torch.Tensor, out: torch.Tensor) -> None:
    library, at = _library(), ctypes.byref(problem)
    if x.device.type == "cuda":
        with torch.cuda.device(x.device):
            scratch = torch.empty(library.asvp_workspace_cuda(at), dtype=torch.uint8, device=x.device)
            stream = torch.cuda.current_stream().cuda_stream
            status = library.asvp_perturb_cuda(
                at, x.data_ptr(), out.data_ptr(), scratch.data_ptr(), scratch.numel(), stream
            )
    else:
        size = library.asvp_workspace_cpu(at)
        memory, (parallel, host) = _scratch(size + 64), _threads()
        start = memory.data_ptr() + -memory.data_ptr() % 64
        status = library.asvp_perturb_cpu(at, x.data_ptr(), out.data_ptr(), start, size, parallel, host)
    if status:
        wrong = library.asvp_check(at)
        raise MachineError(
            f"The native kernel refused a feature map of {'x'.join(map(str, x.shape))} on {x.device}: "
            f"{wrong.decode() if wrong else f'status {status}'}. ASVP_DISABLE_NATIVE=1 runs the reference instead."
        )


def _scratch(size: int) -> torch.Tensor:
    """At least `size` bytes that this thread may use until its next call."""
    memory = getattr(_thread_state, "scratch", None)
    if memory is None or memory.numel() < size:
        _thread_state.scratch = None  # the old one goes before the new one comes
        memory = torch.empty(size, dtype=torch.uint8)
        _thread_state.scratch = memory if size <= _KEPT_SCRATCH else None
    return memory


def _threads() -> tuple[int | None, ctypes._Pointer[_OpenMP] | None]:
    """PyTorch's own threads as an asvp_parallel_for; one thread where its OpenMP cannot be had."""
    threads, parallel = torch.get_num_threads(), _gomp_parallel()
    if threads < 2 or parallel is None:
        return None, None
    return _openmp_for(), ctypes.pointer(_OpenMP(parallel, threads))


@cache
def _openmp_for() -> int | None:
    return ctypes.cast(_library().asvp_openmp_for, ctypes.c_void_p).value


@cache
def _gomp_parallel() -> int | None:
    """GOMP_parallel as PyTorch's own library sees it: another OpenMP in the process would bring threads of its own."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        owner = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / f"libtorch_cpu.{suffix}"))
        return ctypes.cast(owner.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def _library() -> ctypes.CDLL:
    library, reason = _load()
    assert library is not None, reason
    return library


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if not _FILE.exists():
        return None, "This installation has no native library; pip builds it where there is a C++ compiler."
    try:
        library = ctypes.CDLL(str(_FILE))
        version = library.asvp_abi_version()
        if version == _ABI:
            _declare(library)
            return library, None
    except (OSError, AttributeError) as error:
        return None, f"The native library {_FILE.name} cannot be loaded ({error}); reinstall asvp-export."
    return None, f"The native library {_FILE.name} has ABI {version}, {_ABI} was expected; reinstall asvp-export."


def _declare(library: ctypes.CDLL) -> None:
    """Types of the C ABI. Raises AttributeError where a function is missing."""
    void, size, problem = ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(Problem)
    for name in ("asvp_cpu_kernels", "asvp_check", "asvp_cuda_unavailable"):
        getattr(library, name).restype = ctypes.c_char_p
    for name in ("asvp_workspace_cpu", "asvp_workspace_cuda"):
        getattr(library, name).restype = size
        getattr(library, name).argtypes = [problem]
    library.asvp_check.argtypes = [problem]
    library.asvp_perturb_cpu.argtypes = [problem, void, void, void, size, void, void]
    library.asvp_perturb_cuda.argtypes = [problem, void, void, void, size, void]
