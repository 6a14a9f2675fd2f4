"""Timing two things in turns, so that a machine that is shared slows both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def in_turns(repeats: int, *tasks: Callable[[], object]) -> list[float]:
    """Median seconds of each task; every round runs each of them once, after one round that is not counted."""
    rounds = []
    for _ in range(repeats + 1):
        times = []
        for task in tasks:
            start = time.perf_counter()
            task()
            times.append(time.perf_counter() - start)
        rounds.append(times)
    return [statistics.median(column) for column in zip(*rounds[1:], strict=True)]
