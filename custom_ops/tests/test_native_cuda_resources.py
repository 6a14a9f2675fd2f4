"""What the compiler gives the CUDA kernels: no spills but those that were accepted, and room for a block at least.

One file is compiled for one architecture; the slow tests compile all of them for one.
"""

from __future__ import annotations

import pytest

from benchmarks.cuda_resources import (
    FILES,
    NVCC,
    RELEASE,
    Kernel,
    compiled,
    parsed,
    release,
    surprises,
    threads_of,
)

STATIC = 256  # bytes of shared memory, at most, beside those of a launch: plan.h leaves so much

needs_nvcc = pytest.mark.skipif(
    NVCC is None or release() != RELEASE, reason=f"no nvcc {RELEASE}: each release hands out registers in its own way"
)


def hold(kernels: list[Kernel]) -> None:
    assert not surprises(kernels)
    for kernel in kernels:
        assert kernel.blocks(threads_of(kernel.kind)) >= 1, kernel
        # The solve asks for all that a GPU has.
        assert kernel.shared <= (0 if kernel.kind == "Solve" else STATIC), kernel


@needs_nvcc
def test_float32_kernels_spill_nothing_new():
    hold(compiled(80, "float32.cu"))


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("architecture", [120])  # the benchmark compiles for all: 10 minutes
def test_no_kernel_spills_anything_new(architecture, file):
    hold(compiled(architecture, file))


def test_a_spill_of_a_function_that_is_called_counts_as_the_kernels():
    """The report of a compiler, shortened."""
    report = """ptxas info    : Compiling entry function '_Z5entryv' for 'sm_80'
ptxas info    : Function properties for _Z5entryv
    8 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 16 bytes smem
ptxas info    : Function properties for jacobi
    0 bytes stack frame, 0 bytes spill stores, 24 bytes spill loads
ptxas info    : Compiling entry function '_Z4nextv' for 'sm_80'
ptxas info    : Function properties for _Z4nextv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
"""
    assert list(parsed(report)) == [Kernel("_Z5entryv", 80, 96, 36, 16), Kernel("_Z4nextv", 80, 40, 0, 0)]
    kernel = next(parsed(report))
    assert kernel.blocks(288) == 2  # 18 warps of the 20 that fit: five in each partition
    assert surprises([kernel])
