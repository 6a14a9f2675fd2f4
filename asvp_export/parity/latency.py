"""How long two models take, side by side."""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnxruntime as ort

from asvp_export.parity.session import run_model


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
