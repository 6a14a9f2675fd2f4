"""Time of the native operator over the number of positions L, 4 thousand to 4 million: a table and a plot.

Float32, k = 4, two threads. The slope of log time over log L is 1 where the time is linear in L.

    python benchmarks/bench_linearity.py [--plot docs/linearity.png]
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "custom_ops" / "tests"))
from native import Native, build, problem_of

from asvp_export.parity.latency import in_turns

CHANNELS = (16, 32, 64)
LENGTHS = [4096 * 2**i for i in range(11)]  # to 4.2 million
THREADS = 2


def measured(native: Native, c: int) -> list[float]:
    """Milliseconds of each length; all lengths take turns, so that a slow moment of the machine meets all of them."""
    tasks = []
    for length in LENGTHS:
        x = np.maximum(np.random.default_rng(0).standard_normal((1, c, length), dtype=np.float32) + 1, 0)
        y, problem = np.empty_like(x), problem_of(x, 4, 1.1)
        memory = native.workspace(problem)

        def call(problem=problem, x=x, y=y, memory=memory) -> None:
            native.call(problem, x.ctypes.data, y.ctypes.data, memory, THREADS)

        tasks.append(call)
    return in_turns(9, *tasks, rest=0.004)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--plot", type=Path, default=ROOT / "docs" / "linearity.png")
    chosen = arguments.parse_args()
    native = Native(build("tests"))
    times = {c: measured(native, c) for c in CHANNELS}
    print("| L | " + " | ".join(f"C = {c}, ms | ns a position" for c in CHANNELS) + " |")
    print("|---|" + "---|---|" * len(CHANNELS))
    for i, length in enumerate(LENGTHS):
        cells = [f"{column[i]:.2f} | {1e6 * column[i] / length:.1f}" for column in times.values()]
        print(f"| {length} | " + " | ".join(cells) + " |")
    slopes = [math.log(column[-1] / column[0]) / math.log(LENGTHS[-1] / LENGTHS[0]) for column in times.values()]
    print("\nslope over all lengths: " + ", ".join(f"{slope:.2f}" for slope in slopes))
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for c, column in times.items():
        axes.loglog(LENGTHS, column, marker="o", markersize=4, label=f"C = {c}")
        axes.loglog(
            LENGTHS, [column[-1] * length / LENGTHS[-1] for length in LENGTHS], color="0.7", linewidth=0.8, zorder=0
        )
    axes.set(xlabel="positions L", ylabel="milliseconds", title="libasvp on the CPU, float32, k = 4, two threads")
    axes.legend(title="grey: linear in L", frameon=False)
    axes.grid(True, which="major", linewidth=0.3)
    figure.savefig(chosen.plot, dpi=120, metadata={"Software": None})
    print(f"plot: {chosen.plot.name}")


if __name__ == "__main__":
    main()
