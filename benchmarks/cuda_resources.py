"""What each CUDA kernel takes of a multiprocessor, by the compiler's own report: no GPU needed.

Registers, spills (none are wanted), static shared memory, and how many of a multiprocessor's threads can be resident by
registers and threads alone. Shared memory that is asked for at the launch is not in the compiler's report. One Markdown
table, a row for each kind of kernel and architecture: the worst of its variants. Ends with 1 when a kernel spills.

    python -m benchmarks.cuda_resources [--architectures 75 80 86 89 90 100 120]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tests.helpers.native import NVCC, SOURCE

FILES = ("float32.cu", "half.cu", "float64.cu")
PLAN = SOURCE / "src" / "cuda" / "plan.h"
THREADS_OF_A_MULTIPROCESSOR = {75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
REGISTERS, WARP, UNIT = 65536, 32, 256  # of a multiprocessor; threads; registers are handed out in such units to a warp


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel."""

    name: str
    """Demangled."""

    architecture: int
    registers: int
    """Of a thread."""

    spilled: int
    """Bytes, stores and loads together."""

    shared: int
    """Static shared memory, bytes."""

    @property
    def kind(self) -> str:
        """Gram, Solve, Apply ...: the class that the kernel runs."""
        found = re.search(r"entry<(?:\w+::)*(\w+)", self.name)
        return found[1] if found else self.name

    def resident(self, threads: int) -> float:
        """The share of a multiprocessor's threads that can be there at once, in blocks of `threads`."""
        most = THREADS_OF_A_MULTIPROCESSOR[self.architecture]
        of_a_warp = -(-self.registers * WARP // UNIT) * UNIT
        warps = threads // WARP
        blocks = min(most // threads, REGISTERS // (of_a_warp * warps))
        return blocks * threads / most


def parsed(report: str) -> Iterator[Kernel]:
    """The kernels in what ptxas reports with -v."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)a?'.*?"
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    for one in pattern.finditer(report):
        shared = re.search(r"(\d+) bytes smem", one["rest"])
        spilled = int(one["stores"]) + int(one["loads"])
        static = int(shared[1]) if shared else 0
        yield Kernel(one["name"], int(one["architecture"]), int(one["registers"]), spilled, static)


def compiled(architecture: int, file: str) -> list[Kernel]:
    """The kernels of a source file for an architecture."""
    command = [
        *(str(NVCC), "-std=c++17", "-O3", "-DNDEBUG", f"-I{SOURCE / 'include'}", f"-arch=sm_{architecture}"),
        *("-Xptxas=-v", "-cubin", "-o", "/dev/null", str(SOURCE / "src" / "cuda" / file)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kernels = list(parsed(done.stderr + done.stdout))
    names = subprocess.run(
        ["c++filt", "-p"], input="\n".join(one.name for one in kernels), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [Kernel(name, *list(vars(one).values())[1:]) for one, name in zip(kernels, names, strict=True)]


def threads_of(kind: str) -> int:
    """Of a block, as plan.h has them; those of the smallest kind where it has none of that name."""
    constants = {name: int(value) for name, value in re.findall(r"k(\w+)Threads = (\d+)", PLAN.read_text())}
    return next((value for name, value in constants.items() if kind.startswith(name)), min(constants.values()))


def main() -> int:
    """Compile, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", default=list(THREADS_OF_A_MULTIPROCESSOR))
    asked = parser.parse_args()
    if NVCC is None:
        print("Nothing was compiled: there is no nvcc.")
        return 1
    print("| architecture | kernel | variants | registers | spilled bytes | static shared memory | resident threads |")
    print("|---|---|---|---|---|---|---|")
    spilled = 0
    for architecture in asked.architectures:
        kinds: dict[str, list[Kernel]] = defaultdict(list)
        for file in FILES:
            for kernel in compiled(architecture, file):
                kinds[kernel.kind].append(kernel)
        for kind, kernels in kinds.items():
            worst = max(kernel.registers for kernel in kernels)
            lost, shared = max(kernel.spilled for kernel in kernels), max(kernel.shared for kernel in kernels)
            resident = min(kernel.resident(threads_of(kind)) for kernel in kernels)
            print(
                f"| sm_{architecture} | {kind} | {len(kernels)} | {worst} | {lost} | {shared} | {resident:.0%} |",
                flush=True,
            )
            spilled += lost
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
