"""The operator on a GPU, k = 4: libasvp against the machine's copy bandwidth, Gram + eigh and the full SVD in torch.

Prints two markdown tables. "of copy" is the time that two reads and one write of the map take at the rate of a large
device copy, measured in the same run, over the time of the call. Everything is timed with CUDA events, the calls of one
row in turns; ours both as a call and as a replayed graph.

    python -m benchmarks.bench_operator_cuda [--noise] [--repeats 30]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from custom_ops.tests.test_native_cuda_gpu import Cuda
from tests.helpers.native import build, cuda_missing

SHAPES = [(64, 1024, 1024), (180, 512, 512), (64, 256, 256), (64, 128, 128), (256, 64, 64)]
TYPES = [torch.float32, torch.float16]
RANK, GAIN = 4, 1.1


def feature_map(c: int, length: int, dtype: torch.dtype, noise: bool) -> torch.Tensor:
    """Positive, the first component nearly all, as behind a ReLU; or plain noise, whose flat spectrum is hardest."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((1, c, length), dtype=np.float32)).cuda()
    if not noise:
        x = (0.2 * x + torch.from_numpy(rng.random((1, c, 1), dtype=np.float32)).cuda()).clamp_min(0)
    return x.to(dtype)


def gram_and_eigh(m: torch.Tensor) -> torch.Tensor:
    wide = m.float()
    basis = torch.linalg.eigh(torch.mm(wide, wide.T))[1][:, -RANK:].to(m.dtype)
    return torch.addmm(m, basis, torch.mm(basis.T, m), alpha=GAIN - 1)


def full_svd(m: torch.Tensor) -> torch.Tensor:
    left, values, right = torch.linalg.svd(m.float(), full_matrices=False)
    values[:RANK] *= GAIN
    return ((left * values) @ right).to(m.dtype)


def once(task) -> float:
    """Microseconds on the GPU, the host's own time hidden behind a spinning kernel."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(400_000)
    start.record()
    task()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def in_turns(tasks: dict, repeats: int) -> dict[str, float]:
    """Median microseconds of each task; the slow ones take fewer turns."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    slow = {}
    for name, task in tasks.items():
        once(task)
        slow[name] = once(task) > 1e4
    for turn in range(repeats):
        for name, task in tasks.items():
            if turn < 3 or not slow[name]:
                times[name].append(once(task))
    return {name: statistics.median(values) for name, values in times.items()}


def copy_rate(repeats: int) -> float:
    """Bytes a microsecond, read and written, of a copy of 1 GiB."""
    source = torch.zeros(1 << 28, device="cuda")
    copied = torch.empty_like(source)
    return 2 * 4 * source.numel() / in_turns({"copy": lambda: copied.copy_(source)}, repeats)["copy"]


def timed(native: Cuda, x: torch.Tensor, repeats: int) -> dict[str, float]:
    """Median microseconds of each implementation on a map [1, C, HW]."""
    y, m = torch.empty_like(x), x[0]
    problem = native.problem(x, RANK, GAIN)
    workspace = native.workspace(problem)

    def ours() -> None:
        native.call(problem, x, y, workspace)

    ours()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours()
    tasks = {"ours": ours, "graph": graph.replay, "eigh": lambda: gram_and_eigh(m), "svd": lambda: full_svd(m)}
    with torch.inference_mode():
        return in_turns(tasks, repeats)


def measured(native: Cuda, rate: float, noise: bool, repeats: int) -> list[dict[str, str | float]]:
    """Print the first table; its rows, with ratios in the place of times."""
    print("| C x H x W | type | ours | as a graph | two reads, one write | of copy | Gram + eigh | svd |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for (c, h, w), dtype in itertools.product(SHAPES, TYPES):
        x = feature_map(c, h * w, dtype, noise)
        t = timed(native, x, repeats)
        floor = 3 * x.numel() * x.element_size() / rate
        shape, kind = f"{c} x {h} x {w}", str(dtype).removeprefix("torch.")
        print(
            f"| {shape} | {kind} | {t['ours']:.1f} | {t['graph']:.1f} | {floor:.1f} | {floor / t['ours']:.0%} "
            f"| {t['eigh']:.0f} | {t['svd']:.0f} |",
            flush=True,
        )
        rows.append(
            {
                "C x H x W": shape,
                "type": kind,
                "ours us": round(t["ours"], 1),
                "as a graph us": round(t["graph"], 1),
                "of copy": round(floor / t["ours"], 3),
                "Gram + eigh / ours": round(t["eigh"] / t["ours"], 1),
                "svd / ours": round(t["svd"] / t["ours"], 1),
            }
        )
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--noise", action="store_true", help="maps of plain noise instead of positive ones")
    arguments.add_argument("--repeats", type=int, default=30)
    arguments.add_argument("--json", type=Path, help="keep the rows here too")
    chosen = arguments.parse_args()
    if reason := cuda_missing():
        print(f"Nothing to measure: {reason}.")
        return
    architecture = "{}{}-real".format(*torch.cuda.get_device_capability())
    folder = build("tests-gpu", "-DASVP_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", target="asvp")
    rate = copy_rate(chosen.repeats)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; a copy of 1 GiB moves {rate / 1e6:.2f} TB/s")
    print("Microseconds, medians\n")
    rows = measured(Cuda(folder / "libasvp.so"), rate, chosen.noise, chosen.repeats)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    print("\n| C x H x W | type | Gram + eigh / ours | svd / ours |")
    print("|---|---|---|---|")
    for row in rows:
        print(f"| {row['C x H x W']} | {row['type']} | {row['Gram + eigh / ours']:.1f} | {row['svd / ours']:.0f} |")


if __name__ == "__main__":
    main()
