"""One protected file in every runtime: its PSNR against PyTorch, and its latency beside the unprotected file's.

The teacher is lowlight with one rank-1 node behind the convolution after the body, the picture a degraded photograph.
The two files take turns, on two threads; medians. Runtimes that are not made to be fast (onnx's evaluator, WebGPU
emulated by the processor) get a smaller picture. A runtime that is not here gets a row that says why.

    python -m benchmarks.bench_runtimes [--side 256] [--rounds 15] [--only OpenVINO]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

import asvp_export
from asvp_export.errors import AsvpError
from asvp_export.images import photographs, read_image
from asvp_export.insertion.protected import to_onnx
from asvp_export.onnx_graph.inline import inline
from asvp_export.onnx_graph.passes import without_nodes
from asvp_export.operator import native
from asvp_export.parity.latency import in_turns
from asvp_export.runtime.session import run_model, session
from benchmarks._teachers import LAYER, teacher
from examples.degrade import degrade, generator
from tests.helpers import web

THREADS = 2
REST = 0.1  # seconds before each run, in which the threads of the one before go to sleep
SMALL = 64  # pixels
FEW = 3  # rounds

# The version, the protected file's output, and the milliseconds of the unprotected and of the protected file.
Measured = tuple[str, np.ndarray, list[float]]
Run = Callable[[Path], Callable[[np.ndarray], np.ndarray]]


def in_process(runtime: str, opened: Run, x: np.ndarray, files: tuple[Path, Path], rounds: int) -> Measured:
    """A runtime that Python calls; `opened` loads a file and gives what runs it."""
    plain, protected = map(opened, files)
    y = protected(x)
    return runtime, y, in_turns(rounds, lambda: plain(x), lambda: protected(x), rest=REST)


def by_onnxruntime(x, files, rounds, provider="cpu", library=False) -> Measured:
    if provider == "cuda" and library and (reason := native.cuda_unavailable()):
        raise AsvpError(reason)

    def opened(file: Path):
        loaded = session(file, provider, THREADS, library=library)
        return lambda x: run_model(loaded, x)[0]

    return in_process(ort.__version__, opened, x, files, rounds)


def by_openvino(x, files, rounds, **options: str) -> Measured:
    import openvino

    def opened(file: Path):
        compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": THREADS, **options})
        kinds.append(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        return lambda x: compiled([x])[0]

    kinds: list[str] = []
    _, y, times = in_process("", opened, x, files, rounds)
    return f"{version('openvino')}, {kinds[-1]}", y, times


def by_evaluator(x, files, rounds) -> Measured:
    from onnx.reference import ReferenceEvaluator

    def opened(file: Path):
        evaluator = ReferenceEvaluator(str(file))
        return lambda x: np.asarray(evaluator.run(None, {"input": x})[0])

    return in_process(f"onnx {onnx.__version__}", opened, x, files, rounds)


def by_browser(x, files, rounds, backend="wasm") -> Measured:
    if reason := web.missing():
        raise AsvpError(reason)
    flags = [*web.FLAGS, *(web.SOFTWARE_GPU if backend == "webgpu" else [])]
    with tempfile.NamedTemporaryFile(suffix=".bin") as input_file:
        x.tofile(input_file.name)
        served = {"/plain.onnx": files[0], "/protected.onnx": files[1], "/x.bin": Path(input_file.name)}
        with web.serving(served) as url:
            answer = web.drive(
                "bench.mjs",
                url=url,
                flags=flags,
                backend=backend,
                models=["/plain.onnx", "/protected.onnx"],
                input="/x.bin",
                dims=list(x.shape),
                rounds=rounds,
            )
    adapter = f", {answer['adapter']}" if backend == "webgpu" else ""
    runtime = f"{answer['version']}, Chromium {answer['browser']}{adapter}"
    return runtime, web.picture(answer["output"]), [statistics.median(times) for times in answer["times"]]


FULL, SLOW = "full", "slow"
RUNTIMES: list[tuple[str, str, str, Callable[..., Measured]]] = [
    ("onnxruntime, CPU, function body", "function", FULL, by_onnxruntime),
    ("onnxruntime, CPU, libasvp", "function", FULL, functools.partial(by_onnxruntime, library=True)),
    ("onnxruntime, CPU", "inline", FULL, by_onnxruntime),
    ("onnxruntime, CUDA, function body", "function", FULL, functools.partial(by_onnxruntime, provider="cuda")),
    ("onnxruntime, CUDA, libasvp", "function", FULL, functools.partial(by_onnxruntime, provider="cuda", library=True)),
    ("onnxruntime-web, wasm", "function", FULL, by_browser),
    ("onnxruntime-web, WebGPU", "function", SLOW, functools.partial(by_browser, backend="webgpu")),
    ("OpenVINO, CPU, f32", "inline", FULL, functools.partial(by_openvino, INFERENCE_PRECISION_HINT="f32")),
    ("OpenVINO, CPU, as it comes", "inline", FULL, by_openvino),
    ("onnx ReferenceEvaluator", "function", SLOW, by_evaluator),
    ("onnx ReferenceEvaluator", "inline", SLOW, by_evaluator),
]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--side", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--only", default="", help="runtimes whose name has this in it")
    chosen = arguments.parse_args()
    protected = asvp_export.protect(teacher("lowlight"), LAYER, gain=1.02)
    clean = read_image(photographs("verify") / "dogs_1.webp")
    picture = degrade("lowlight", clean, generator("lowlight", "dogs_1")).transpose(2, 0, 1)[None]
    print("| runtime | file | version | picture | PSNR against PyTorch | unprotected, ms | protected, ms | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.onnx" for kind in ("plain", "function", "inline")}
        model = to_onnx(protected)
        onnx.save(model, files["function"])
        onnx.save(without_nodes(model), files["plain"])
        inline(model)
        onnx.save(model, files["inline"])
        for name, kind, speed, measure in RUNTIMES:
            if chosen.only not in name:
                continue
            side, rounds = (chosen.side, chosen.rounds) if speed == FULL else (SMALL, FEW)
            x = np.ascontiguousarray(picture[:, :, :side, :side])
            with native.reference_only():
                expected = protected(torch.from_numpy(x)).numpy()
            try:
                runtime, y, (a, b) = measure(x, (files["plain"], files[kind]), rounds)
            except (AsvpError, ImportError) as error:
                print(f"| {name} | {kind} | not here: {error} | | | | | |", flush=True)
                continue
            psnr = 10 * np.log10(1 / np.mean((y.astype(np.float64) - expected) ** 2))
            shown = f"{x.shape[3]} x {x.shape[2]} | {psnr:.1f} dB | {a:.1f} | {b:.1f} | {b / a:.2f}"
            print(f"| {name} | {kind} | {runtime} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
