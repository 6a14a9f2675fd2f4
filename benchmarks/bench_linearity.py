"""Time of the native operator over the number of positions L, 4 thousand to 4 million: a table and a plot.

Float32, k = 4, two threads. The slope of log time over log L is 1 where the time is linear in L.

    python -m benchmarks.bench_linearity [--plot docs/results/linearity.png]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from asvp_export.operator import Perturbation
from asvp_export.parity.latency import in_turns
from benchmarks._native import native_call
from benchmarks._teachers import ROOT

CHANNELS = (16, 64)
LENGTHS = [4096 * 2**i for i in range(11)]  # to 4.2 million


def milliseconds(c: int) -> list[float]:
    """Milliseconds of each length; all lengths take turns, so that a slow moment of the machine meets all of them."""
    node, generator = Perturbation(4, 1.1), torch.Generator().manual_seed(0)
    maps = [torch.randn(1, c, length, generator=generator).add_(1).relu_() for length in LENGTHS]
    return in_turns(9, *(native_call(x, torch.empty_like(x), node) for x in maps), rest=0.004)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--plot", type=Path, default=ROOT / "docs" / "results" / "linearity.png")
    chosen = arguments.parse_args()
    torch.set_num_threads(2)
    times = {c: milliseconds(c) for c in CHANNELS}
    print("| L | " + " | ".join(f"C = {c}, ms | ns a position" for c in CHANNELS) + " |")
    print("|---|" + "---|---|" * len(CHANNELS))
    for i, length in enumerate(LENGTHS):
        cells = [f"{column[i]:.2f} | {1e6 * column[i] / length:.1f}" for column in times.values()]
        print(f"| {length} | " + " | ".join(cells) + " |")
    slopes = [math.log(column[-1] / column[0]) / math.log(LENGTHS[-1] / LENGTHS[0]) for column in times.values()]
    print("\nslope over all lengths: " + ", ".join(f"{slope:.2f}" for slope in slopes))
    plot(times, chosen.plot)
    print(f"plot: {chosen.plot.name}")


def plot(times: dict[int, list[float]], path: Path) -> None:
    """Draw milliseconds over positions, a line a number of channels."""
    from matplotlib.figure import Figure  # `make bench` installs it; nothing else of the project needs it

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for c, column in times.items():
        axes.loglog(LENGTHS, column, marker="o", markersize=4, label=f"C = {c}")
        axes.loglog(
            LENGTHS, [column[-1] * length / LENGTHS[-1] for length in LENGTHS], color="0.7", linewidth=0.8, zorder=0
        )
    axes.set(xlabel="positions L", ylabel="milliseconds", title="libasvp on the CPU, float32, k = 4, two threads")
    axes.legend(title="grey: linear in L", frameon=False)
    axes.grid(True, which="major", linewidth=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
