"""Every launch that a plan can ask for stays inside what GPUs take.

C is 1 to 8192, L 1 to 2^27, N 1 to 64, with every type and layout, and ranks from 1 to C. A launch is the same for a
node and its inverse: no plan depends on the gain.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.cuda_resources import SHARED, THREADS_OF_A_MULTIPROCESSOR

UNASKED = 48 << 10  # bytes of shared memory that every GPU gives a block
STATIC = 256  # of them, at most, that a kernel has beside those of the launch (test_native_cuda_resources.py holds it)


class Launch(NamedTuple):
    kernel: str
    threads: int
    wanted: int
    """Blocks that a multiprocessor is to hold: registers are given out by it."""
    grid: int
    shared: dict[int, int]
    """Of a block at most, bytes, by architecture."""


@pytest.fixture(scope="module")
def launches(folder: Path) -> list[Launch]:
    limits = [str(SHARED[one]) for one in SHARED]
    done = subprocess.run([folder / "asvp_cuda_launches", *limits], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout or f"an overflow: ended by signal {-done.returncode}"
    found = []
    for line in done.stdout.splitlines():
        kernel, threads, wanted, grid, *shared = line.split("\t")
        by_architecture = dict(zip(SHARED, map(int, shared), strict=True))
        found.append(Launch(kernel, int(threads), int(wanted), int(grid), by_architecture))
    return found


def test_every_kernel_is_launched_somewhere(launches):
    kinds = {one.kernel.partition("<")[0].rpartition("::")[2] for one in launches}
    assert kinds == {"Gram", "Peak", "Solve", "Apply", "Whole"}
    assert len(launches) == 26  # with types, sums and layouts


@pytest.mark.parametrize("architecture", SHARED)
def test_every_launch_stays_inside_the_limits(launches, architecture):
    for one in launches:
        assert one.threads <= 1024 and one.threads % 32 == 0, one
        assert one.wanted * one.threads <= THREADS_OF_A_MULTIPROCESSOR[architecture], one
        assert one.grid < 1 << 31, one
        asks = one.shared[architecture] > UNASKED - STATIC
        assert one.shared[architecture] <= (SHARED[architecture] if asks else UNASKED - STATIC), one
        assert not asks or "Solve" in one.kernel, one  # the others promise to run without asking
