"""The largest picture that a given memory holds: peak memory of a protected teacher over the number of pixels.

    python -m benchmarks.bench_largest DAT_light_x2.pth --layers layers.0.blocks.9

Every run is a process of its own with a cap on its address space, so that a picture that is too large fails by itself.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch

import asvp_export
from asvp_export.insertion.protected import to_onnx
from asvp_export.runtime.session import run_model, session
from tests.helpers.zoo import import_spandrel

_GIB = 2**30


def run(file: Path, side: int, cap: float) -> None:
    """What a child does: one picture, by onnxruntime or by PyTorch, within its cap; prints its peak in GiB."""
    resource.setrlimit(resource.RLIMIT_AS, (int(cap * _GIB), int(cap * _GIB)))
    picture = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    if file.suffix == ".onnx":
        run_model(session(file), picture)
    else:
        import_spandrel()
        with torch.inference_mode():
            torch.load(file, weights_only=False)(torch.from_numpy(picture))
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent held when it forked
    print(int(status.partition("VmHWM:")[2].split()[0]) / 2**20)


def peak_of(file: Path, side: int, cap: float) -> float | None:
    """The peak of a process that restores a square picture, in GiB; None where that fails."""
    start = time.perf_counter()
    child = [sys.executable, "-m", "benchmarks.bench_largest", str(file), "--run", str(side), "--cap", str(cap)]
    process = subprocess.run(child, capture_output=True, text=True)
    seconds, peak = time.perf_counter() - start, None
    if process.returncode:
        outcome = f"fails: {(process.stderr.strip().splitlines() or ['killed'])[-1][:150]}"
    else:
        peak = float(process.stdout)
        outcome = f"peak {peak:.2f} GiB, {seconds:.0f} s"
    print(f"{file.suffix[1:]} {side} x {side}: {outcome}", flush=True)
    return peak


def line(peaks: dict[int, float | None], memory: float) -> None:
    """Print what the runs that did not fail say of a larger memory."""
    by_pixels = {side**2: peak for side, peak in peaks.items() if peak}
    if len(by_pixels) < 2:
        return
    slope, base = np.polyfit(list(by_pixels), list(by_pixels.values()), 1)
    side = int(math.sqrt((memory - 2 - base) / slope)) // 32 * 32
    print(
        f"{base:.2f} GiB and {slope * 2**20:.1f} KiB a pixel: {memory:g} GiB with 2 left to the system hold "
        f"{side} x {side}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--layers", default="layers.0.blocks.9")
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 192, 256, 320, 864, 992, 1088])
    parser.add_argument("--onnx", type=int, nargs="*", default=[256, 384, 512, 672], help="sides of files")
    parser.add_argument("--memory", type=float, default=24, help="GiB asked about; 2 are left to the system")
    parser.add_argument("--cap", type=float, default=12, help="GiB that a run may take here")
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.model, arguments.run, arguments.cap)
        return
    import_spandrel()
    teacher = asvp_export.load(arguments.model)
    protected = asvp_export.protect(teacher, arguments.layers, gain=1.05, rank=1)
    with tempfile.TemporaryDirectory() as name:
        module = Path(name, "module.pt")
        torch.save(protected.module, module)
        line({side: peak_of(module, side, arguments.cap) for side in arguments.sides}, arguments.memory)
        peaks = {}
        for side in arguments.onnx:
            start = time.perf_counter()
            file = Path(name, f"{side}.onnx")
            onnx.save(to_onnx(protected, static=(side, side)), file)
            print(f"{side} x {side}: traced in {time.perf_counter() - start:.0f} s")
            peaks[side] = peak_of(file, side, arguments.cap)
        line(peaks, arguments.memory)


if __name__ == "__main__":
    main()
