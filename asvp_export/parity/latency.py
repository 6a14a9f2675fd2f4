"""How long two models take, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from asvp_export.onnx_graph import publish
from asvp_export.onnx_graph.contents import data_bytes, is_half
from asvp_export.onnx_graph.inline import fold
from asvp_export.onnx_graph.passes import without_nodes
from asvp_export.runtime.session import run_model, session

_RUNS = 60e9  # multiply-adds that timing may take


def affordable(multiply_adds: int) -> int:
    """How many runs are timed of a model that takes so many multiply-adds a run: 3 to 10."""
    return int(min(max(_RUNS / max(2 * multiply_adds, 1), 3), 10))


def in_turns(repeats: int, *tasks: Callable[[], object], rest: float = 0.0) -> list[float]:
    """Median milliseconds of each task.

    The tasks take turns, so that a machine that slows down or is shared slows all alike; two rounds go uncounted.

    Args:
        repeats: how many rounds are counted.
        *tasks: what is timed.
        rest: seconds before each task, in which threads of the one before, still looking for work, go to sleep.
    """
    rounds = []
    for _ in range(repeats + 2):
        times = []
        for task in tasks:
            time.sleep(rest)
            start = time.perf_counter()
            task()
            times.append(1000 * (time.perf_counter() - start))
        rounds.append(times)
    return [statistics.median(column) for column in zip(*rounds[2:], strict=True)]


def latency(
    first: ort.InferenceSession, second: ort.InferenceSession, inputs: Sequence[np.ndarray], repeats: int = 10
) -> tuple[float, float]:
    """The median milliseconds of a run of each model.

    Args:
        first: a session.
        second: another one, with the same number of threads.
        inputs: of both, in order.
        repeats: how many runs of each are timed.
    """
    a, b = in_turns(repeats, lambda: run_model(first, *inputs), lambda: run_model(second, *inputs))
    return a, b


def median_ms(opened: ort.InferenceSession, inputs: Sequence[np.ndarray], repeats: int = 10) -> float:
    """The median milliseconds of a run of one model, for which memory has no second one beside it."""
    return in_turns(repeats, lambda: run_model(opened, *inputs))[0]


def file_latency(
    path: Path, original: Path | None, inputs: Sequence[np.ndarray], provider: str, repeats: int = 10
) -> tuple[float, float]:
    """Milliseconds of the original and of the protected file at `path`: side by side, or large ones alone.

    Args:
        path: the protected file.
        original: an ONNX file; None: the protected graph without its nodes.
        inputs: of both, in order.
        provider: of onnxruntime, "cpu" or "cuda".
        repeats: how many runs of each are timed.

    Returns:
        Both; where the weights are over 2 GiB in float32 one is measured after the other, since memory may not hold
        both.
    """
    model = onnx.load(path, load_external_data=False)
    float32_bytes = data_bytes(model) * (2 if is_half(model) else 1)  # onnxruntime keeps float32 copies on the CPU
    bare: Path | bytes | None = original
    if bare is None:
        fold(model)  # an inlined body is taken out like a node
        bare = without_nodes(model).SerializeToString()
    files = [(bare, None if original else path.parent), (path, None)]
    if float32_bytes > publish.EXTERNAL_LIMIT:
        times = [median_ms(session(file, provider, data_folder=folder), inputs, repeats) for file, folder in files]
        return times[0], times[1]
    before, after = (session(file, provider, data_folder=folder) for file, folder in files)
    return latency(before, after, inputs, repeats)
