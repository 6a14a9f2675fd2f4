"""How long two models take, side by side."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from asvp_export.graph.passes import without_nodes
from asvp_export.parity.session import run_model, session


def latency(
    first: ort.InferenceSession, second: ort.InferenceSession, x: np.ndarray, repeats: int = 10
) -> tuple[float, float]:
    """The median time of a run of each model.

    The runs take turns, so that a machine that slows down or is shared slows both alike; two runs of each go
    before.

    Args:
        first: a session.
        second: another one, with the same number of threads.
        x: N, C, H, W.
        repeats: how many runs of each are timed.

    Returns:
        Milliseconds of the first and of the second.
    """
    for _ in range(2):
        run_model(first, x)
        run_model(second, x)
    turns = [(_milliseconds(first, x), _milliseconds(second, x)) for _ in range(repeats)]
    return statistics.median(a for a, _ in turns), statistics.median(b for _, b in turns)


def _milliseconds(opened: ort.InferenceSession, x: np.ndarray) -> float:
    start = time.perf_counter()
    run_model(opened, x)
    return 1000 * (time.perf_counter() - start)


def file_latency(path: Path, original: Path | None, x: np.ndarray, provider: str) -> tuple[float, float]:
    """Milliseconds of the original and of the protected file at `path`, side by side.

    Args:
        path: the protected file.
        original: an ONNX file; None: the protected graph without its nodes.
        x: N, C, H, W.
        provider: of onnxruntime, "cpu" or "cuda".
    """
    protected = session(path, provider)
    if original is not None:
        return latency(session(original, provider), protected, x)
    bare = without_nodes(onnx.load(path, load_external_data=False)).SerializeToString()
    return latency(session(bare, provider, data_folder=path.parent), protected, x)
