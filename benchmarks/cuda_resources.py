"""What each CUDA kernel takes of a multiprocessor, by the compiler's own report: no GPU needed.

Registers of a thread, the share of a multiprocessor's threads that can be resident by registers and threads alone, and
spilled bytes. Shared memory that is asked for at the launch is not in the compiler's report. A row for each kind of
kernel, a column for each architecture, the worse of the two layouts. Ends with 1 where a kernel spills more than
ACCEPTED, or less: then the figure there is to be lowered.

    python -m benchmarks.cuda_resources [--architectures 75 80 86 89 90 100 120] [--dry]

The table of docs/results/reliability.md is written where every architecture was compiled.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._pages import fill
from tests.helpers.native import NVCC, SOURCE

FILES = ("float32.cu", "half.cu", "float64.cu")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "reliability.md"
PLAN = SOURCE / "src" / "cuda" / "plan.h"
# By the CUDA C++ Programming Guide, technical specifications by compute capability.
THREADS_OF_A_MULTIPROCESSOR = {75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
SHARED = {key: size << 10 for key, size in {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}.items()}
"""Bytes that a block may ask for."""
REGISTERS, WARP = 65536, 32  # of a multiprocessor; threads
UNIT, PARTITIONS = 256, 4  # registers are handed out in such units to a warp; each warp is in one of the partitions
RELEASE = "13.0"
"""The nvcc by which ACCEPTED was counted: every release hands out registers in its own way."""
ACCEPTED: dict[str, dict[int, int]] = {
    "Apply, float32": {120: 16},
    "Gram, bfloat16, sums in float64": {100: 44},
    "Gram, float16, sums in float64": {100: 44},
    "Whole, bfloat16": {75: 288, 80: 326, 86: 374, 89: 374, 90: 372, 100: 292, 120: 424},
    "Whole, float16": {75: 288, 80: 326, 86: 374, 89: 374, 90: 372, 100: 334, 120: 354},
    "Whole, float32": {75: 212, 80: 228, 86: 228, 89: 228, 90: 712, 100: 320, 120: 440},
    "Whole, float64": {75: 952, 80: 1108, 86: 1108, 89: 1108, 90: 960, 100: 1044, 120: 1168},
}
"""Spilled bytes, stores and loads.

Whole: sequence.h says why they are the better trade. Apply and Gram: a few values, on one architecture alone; fewer
blocks at once would cost more.
"""
TYPES = {"Half": "float16", "Brain": "bfloat16", "double": "float64", "float": "float32"}
SUMS = {"0": "float32 chains", "1": "float64", "2": "two float64"}


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
        """The class that the kernel runs: Gram, Solve, Apply ..."""
        return self._parts[0]

    @property
    def title(self) -> str:
        """With the type of the map, and of its sums; the same for both layouts."""
        kind, *parts = self._parts
        sums = [SUMS[part] for part in parts if part in SUMS]
        return ", ".join(
            [kind, *(TYPES[part] for part in parts if part in TYPES), *(f"sums in {sum_type}" for sum_type in sums)]
        )

    @property
    def _parts(self) -> list[str]:
        match = re.search(r"entry<(.*)>", self.name)
        return re.findall(r"\w+", re.sub(r"\w+::", "", match[1] if match else self.name))

    def blocks(self, threads: int) -> int:
        """How many blocks of `threads` a multiprocessor holds at once."""
        of_a_warp = -(-self.registers * WARP // UNIT) * UNIT
        warps = REGISTERS // PARTITIONS // of_a_warp * PARTITIONS
        return min(THREADS_OF_A_MULTIPROCESSOR[self.architecture] // threads, warps * WARP // threads)

    def resident(self, threads: int) -> float:
        """The share of a multiprocessor's threads that can be there at once, in blocks of `threads`."""
        return self.blocks(threads) * threads / THREADS_OF_A_MULTIPROCESSOR[self.architecture]


def parsed(report: str) -> Iterator[Kernel]:
    """The kernels in what ptxas reports with -v. What a kernel calls and is not inlined counts as the kernel's."""
    for part in report.split("Compiling entry function ")[1:]:
        head = re.match(r"'(\w+)' for 'sm_(\d+)a?'", part)
        registers = re.search(r"Used (\d+) registers([^\n]*)", part)
        assert head and registers, part
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        spilled = sum(int(stores) + int(loads) for stores, loads in spills)
        shared = re.search(r"(\d+) bytes smem", registers[2])
        yield Kernel(head[1], int(head[2]), int(registers[1]), spilled, int(shared[1]) if shared else 0)


def compiled(architecture: int, file: str) -> list[Kernel]:
    """The kernels of a source file for an architecture."""
    command = [
        *(str(NVCC), "-std=c++17", "-O3", "-DNDEBUG", f"-I{SOURCE / 'include'}", f"-arch=sm_{architecture}"),
        *("-Xptxas=-v", "-cubin", "-o", "/dev/null", str(SOURCE / "src" / "cuda" / file)),
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    kernels = list(parsed(process.stderr + process.stdout))
    names = subprocess.run(
        ["c++filt", "-p"],
        input="\n".join(kernel.name for kernel in kernels),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [Kernel(name, *list(vars(kernel).values())[1:]) for kernel, name in zip(kernels, names, strict=True)]


def threads_of(kind: str) -> int:
    """Of a block, as plan.h has them; Whole has those of Gram, Peak the fewest."""
    constants = {name: int(value) for name, value in re.findall(r"k(\w+)Threads = (\d+)", PLAN.read_text())}
    return constants["Gram"] if kind == "Whole" else constants.get(kind, min(constants.values()))


def release() -> str:
    """Of nvcc, such as 13.0."""
    output = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", output)
    return match[1] if match else "unknown"


def worst(kernels: list[Kernel]) -> dict[str, Kernel]:
    """Of each title the kernel that spills most; with the most registers where several spill the same."""
    by_title: dict[str, Kernel] = {}
    for kernel in sorted(kernels, key=lambda kernel: (kernel.spilled, kernel.registers)):
        by_title[kernel.title] = kernel
    return by_title


def surprises(kernels: list[Kernel]) -> list[str]:
    """What spills other than accepted."""
    return [
        f"sm_{kernel.architecture}, {title}: {kernel.spilled} bytes spilled, {accepted} accepted"
        for title, kernel in worst(kernels).items()
        if kernel.spilled != (accepted := ACCEPTED.get(title, {}).get(kernel.architecture, 0))
    ]


def table(compiled_kernels: dict[int, list[Kernel]]) -> str:
    """A row for each title, a column for each architecture."""
    by_architecture = {architecture: worst(kernels) for architecture, kernels in compiled_kernels.items()}
    titles = list(dict.fromkeys(title for kernels in by_architecture.values() for title in kernels))
    lines = [
        "| kernel | " + " | ".join(f"sm_{architecture}" for architecture in compiled_kernels) + " |",
        "|---" * (len(compiled_kernels) + 1) + "|",
    ]
    for title in sorted(titles):
        cells = [_cell(kernels[title]) for kernels in by_architecture.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(kernel: Kernel) -> str:
    spilled = f", {kernel.spilled} B" if kernel.spilled else ""
    return f"{kernel.registers}, {kernel.resident(threads_of(kernel.kind)):.0%}{spilled}"


def main() -> int:
    """Compile, fill in the table, say what spills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", default=list(THREADS_OF_A_MULTIPROCESSOR))
    parser.add_argument("--dry", action="store_true", help="print the table, leave the page alone")
    arguments = parser.parse_args()
    if NVCC is None:
        print("Nothing was compiled: there is no nvcc.")
        return 1
    compiled_kernels: dict[int, list[Kernel]] = {}
    for architecture in arguments.architectures:
        compiled_kernels[architecture] = [kernel for file in FILES for kernel in compiled(architecture, file)]
        print(f"sm_{architecture}: {len(compiled_kernels[architecture])} kernels", file=sys.stderr, flush=True)
    text = f"nvcc {release()}.\n\n" + table(compiled_kernels)
    print(text)
    if not arguments.dry and set(compiled_kernels) == set(THREADS_OF_A_MULTIPROCESSOR):
        fill(PAGE, {"cuda resources": text})
    spills = [line for kernels in compiled_kernels.values() for line in surprises(kernels)]
    print(*spills, sep="\n")
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
