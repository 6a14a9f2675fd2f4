"""Which sizes a traced graph takes: a number that a forward computes from a size in Python is frozen by the trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from asvp_export.assumptions import Assumption
from asvp_export.errors import AsvpError, InputError
from asvp_export.insertion.protected import Protected
from asvp_export.parity.metrics import as_images, peak_of, psnr
from asvp_export.parity.result import FIDELITY_DB
from asvp_export.signature import SizeRule
from asvp_export.teacher.backends.tracing import TRACED
from asvp_export.teacher.model import Teacher, named_outputs
from asvp_export.teacher.onnx_model import OnnxModule

_OTHER = (104, 72)  # leaves other remainders than TRACED, by 2 as by 3 or 7
_FALL_DB = 20.0  # how far a graph that is frozen falls behind itself at the traced size

# Sizes that leave no remainder for the multiples that forwards pad to, and these multiples, the smallest first.
_ALIGNED = ((192, 384), (168, 336))
_MULTIPLES = (2, 3, 4, 6, 7, 8, 12, 14, 16, 24, 28, 32, 48, 64)

Trace = Callable[[tuple[int, int]], onnx.ModelProto]


def checked_at_other_sizes(
    model: onnx.ModelProto, protected: Protected, trace: Trace, folder: Path | None
) -> tuple[onnx.ModelProto, Protected]:
    """Hold a graph against its module at a size that was not traced; where it fails, find the sizes that it takes.

    Padding that a forward computes as a Python number is right for sizes that need as much of it as the traced one did.
    Traced at a size that needs none, the graph is right for the multiples of what is padded to.

    Args:
        model: traced at TRACED, its sizes free.
        protected: what was traced.
        trace: traces again, at a height and width.
        folder: where the graph's external data lies.

    Returns:
        The graph, or the one of the second trace, and `protected` with the sizes that it takes in its teacher.

    Raises:
        InputError: the graph is right at the traced size or batch alone.
    """
    teacher = protected.teacher
    traced = _TracedGraph(model, protected, folder)
    untraced_db = traced.worst(*_OTHER)
    if untraced_db >= FIDELITY_DB["fp32"]:
        return model, protected
    enough = min(FIDELITY_DB["fp32"], traced.worst(*TRACED, batch=2) - _FALL_DB)
    if not untraced_db < enough:
        return model, protected  # it is wrong everywhere, or inexact: verification says so
    if traced.worst(*_OTHER, batch=2) >= enough:
        raise InputError(
            f"The graph of {teacher.source} is right for 2 images at a time, as it was traced, and wrong for one: its "
            "forward computes a Python number from the batch, which the trace freezes. Export it with --static-batch."
        )
    for aligned in _ALIGNED:
        try:
            again = trace(aligned)
        except AsvpError:
            continue
        if rule := _rule(_TracedGraph(again, protected, folder), teacher.size, aligned, enough):
            return again, replace(protected, teacher=_narrowed(teacher, rule))
    raise InputError(
        f"The graph of {teacher.source} is right at the size that was traced and wrong at {_OTHER[0]}x{_OTHER[1]}: its "
        "forward computes a Python number from the image's size, which the trace freezes. Export it with --static "
        "--size HxW, or compute that number without int(), round() and numpy."
    )


class _TracedGraph:
    """A graph beside the module that it was traced from."""

    def __init__(self, model: onnx.ModelProto, protected: Protected, folder: Path | None) -> None:
        self._graph, self._protected = OnnxModule(model, folder), protected

    def worst(self, height: int, width: int, batch: int = 1) -> float:
        """The worst output's dB at a size, minus infinity where the graph does not run or gives another shape."""
        teacher = self._protected.teacher
        image = teacher.example(height, width, batch)
        inputs = teacher.inputs(image)
        expected = named_outputs(self._protected(image))
        try:
            tested = named_outputs(self._graph(*inputs))
        except RuntimeError:
            return -math.inf
        pairs = [(a.cpu().numpy(), b.cpu().numpy()) for a, b in zip(expected.values(), tested.values(), strict=True)]
        return min(_decibel(a, b, teacher.data_range.peak) for a, b in pairs)


def _decibel(expected: np.ndarray, tested: np.ndarray, peak: float) -> float:
    if expected.shape != tested.shape or not expected.size:
        return -math.inf
    decibels = psnr(as_images(expected), as_images(tested), peak_of(expected, peak))
    return -math.inf if math.isnan(decibels) else decibels


def _rule(graph: _TracedGraph, teacher_size: SizeRule, aligned: tuple[int, int], enough: float) -> SizeRule | None:
    """The smallest multiple at which a graph reaches `enough` dB, if there is one."""
    for multiple in _MULTIPLES:
        rule = teacher_size.stricter(SizeRule(multiple, multiple))
        if rule.multiple == teacher_size.multiple or any(side % multiple for side in aligned):
            continue
        if all(graph.worst(*size) >= enough for size in _odd_multiples(rule.multiple)):
            return rule
    return None


def _odd_multiples(multiple: int) -> Iterator[tuple[int, int]]:
    """Two sizes of some 80 pixels that no larger multiple of the powers of two fits."""
    count = max(1, 80 // multiple) | 1
    yield multiple * count, multiple * (count + 2)
    yield multiple * (count + 2), multiple * (count + 1)


def _narrowed(teacher: Teacher, rule: SizeRule) -> Teacher:
    assumption = Assumption(
        "sizes",
        f"the file takes multiples of {rule.multiple}",
        "the model's forward computes a Python number from the image's size, which a trace freezes",
        True,
        "--static --size HxW",
    )
    return replace(teacher, size=rule, assumptions=(*teacher.assumptions, assumption))
