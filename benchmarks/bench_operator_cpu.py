"""The operator on the CPU, two threads, float32, k = 4: libasvp against the alternatives and the machine's own limits.

Prints two markdown tables. F is time(torch.mm(M, M.T)) + time(copy of M). R is what the machine allows: C (C + 1) L
operations at the rate of a large torch.mm, plus two reads and one write of the map at the rate of a large copy. What a
row compares is timed in turns in the same process.

    python -m benchmarks.bench_operator_cpu [--noise] [--seconds 4]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from asvp_export.operator import DOMAIN, OP_TYPE, VERSION, Perturbation, native
from asvp_export.operator.onnx_function import perturbation_function
from benchmarks._native import native_call

SHAPES = [(32, 256, 256), (64, 256, 256), (180, 128, 128), (64, 512, 512), (256, 64, 64)]
RANK, GAIN = 4, 1.1


def feature_map(c: int, length: int, noise: bool) -> np.ndarray:
    """Positive, the first component nearly all, as behind a ReLU; or plain noise, whose flat spectrum is hardest."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, c, length), dtype=np.float32)
    return x if noise else np.maximum(0.2 * x + rng.random((1, c, 1), dtype=np.float32), 0)


def function_body(c: int) -> ort.InferenceSession:
    node = Perturbation(RANK, GAIN)
    graph = helper.make_graph(
        [helper.make_node(OP_TYPE, ["X"], ["Y"], domain=DOMAIN, overload=node.overload, **node.attributes())],
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, (1, c, "l"))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, (1, c, "l"))],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=imports, functions=[perturbation_function(node, 18)])
    model.ir_version = 10
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def gram_and_eigh(m: torch.Tensor) -> torch.Tensor:
    basis = torch.linalg.eigh(torch.mm(m, m.T))[1][:, -RANK:]
    return torch.addmm(m, basis, torch.mm(basis.T, m), alpha=GAIN - 1)


def full_svd(m: torch.Tensor) -> torch.Tensor:
    left, values, right = torch.linalg.svd(m, full_matrices=False)
    values[:RANK] *= GAIN
    return (left * values) @ right


def low_rank(m: torch.Tensor) -> torch.Tensor:
    left = torch.svd_lowrank(m, RANK)[0]
    return torch.addmm(m, left, torch.mm(left.T, m), alpha=GAIN - 1)


def in_turns(tasks: dict, seconds: float) -> dict[str, float]:
    """Median seconds of each task. The slow ones sit out most rounds."""
    times = {name: [] for name in tasks}
    once = {}
    for name, task in tasks.items():
        task()
        start = time.perf_counter()
        task()
        once[name] = time.perf_counter() - start
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turn < 5:
        for name, task in tasks.items():
            if once[name] > 0.1 and turn % 8 != 1:
                continue
            time.sleep(0.02)  # threads of the one before (onnxruntime's above all) look for work a while
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
        turn += 1
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--noise", action="store_true", help="maps of plain noise instead of positive ones")
    arguments.add_argument("--seconds", type=float, default=4.0, help="for each shape")
    chosen = arguments.parse_args()
    torch.set_num_threads(THREADS)
    print(
        f"libasvp: {native.kernels()}; torch {torch.__version__}, onnxruntime {ort.__version__}; "
        "milliseconds, medians\n"
    )
    print("| C x H x W | ours | F | R | Gram + eigh | function body | svd_lowrank | svd | one thread |")
    print("|---|---|---|---|---|---|---|---|---|")
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    product = torch.empty(1536, 1536)
    source = torch.randn(1 << 24)
    copied = torch.empty_like(source)
    ratios = []
    for c, h, w in SHAPES:
        x = feature_map(c, h * w, chosen.noise)
        m = torch.from_numpy(x[0])
        m_copy, y, gram = torch.empty_like(m), torch.empty_like(m), torch.empty(c, c)
        session = function_body(c)
        with torch.inference_mode():
            t = in_turns(
                {
                    "ours": native_call(m[None], y[None], Perturbation(RANK, GAIN)),
                    "mm": lambda m=m, gram=gram: torch.mm(m, m.T, out=gram),
                    "copy": lambda m=m, m_copy=m_copy: m_copy.copy_(m),
                    "large mm": lambda: torch.mm(a, b, out=product),
                    "large copy": lambda: copied.copy_(source),
                    "one": native_call(m[None], y[None], Perturbation(RANK, GAIN), alone=True),
                    "eigh": lambda m=m: gram_and_eigh(m),
                    "body": lambda session=session, x=x: session.run(None, {"X": x}),
                    "lowrank": lambda m=m: low_rank(m),
                    "svd": lambda m=m: full_svd(m),
                },
                chosen.seconds,
            )
        floor = t["mm"] + t["copy"]
        limit = c * (c + 1) * h * w * t["large mm"] / (2 * 1536**3)
        limit += 3 * x.nbytes * t["large copy"] / (2 * 4 * source.numel())
        ratios.append([t["ours"] / floor, t["ours"] / limit, t["eigh"] / t["ours"], t["body"] / t["ours"]])
        ratios[-1] += [t["lowrank"] / t["ours"], t["svd"] / t["ours"]]
        cells = [t["ours"], floor, limit, t["eigh"], t["body"], t["lowrank"], t["svd"], t["one"]]
        print(f"| {c} x {h} x {w} | " + " | ".join(f"{1e3 * cell:.2f}" for cell in cells) + " |", flush=True)
    print(
        "\n| C x H x W | ours / F | ours / R | Gram + eigh / ours | function body / ours | svd_lowrank / ours "
        "| svd / ours |"
    )
    print("|---|---|---|---|---|---|---|")
    for (c, h, w), row in zip(SHAPES, ratios, strict=True):
        print(f"| {c} x {h} x {w} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    means = [math.exp(statistics.fmean(map(math.log, column))) for column in zip(*ratios, strict=True)]
    print("| geometric mean | " + " | ".join(f"{value:.2f}" for value in means) + " |")


if __name__ == "__main__":
    main()
