"""The bench that fits a teacher."""

from __future__ import annotations

from collections.abc import Sequence

from asvp_export.plan.calibration import Inputs
from asvp_export.plan.runner_onnx import GraphBench
from asvp_export.plan.runner_torch import Bench, TorchBench
from asvp_export.teacher.backends import OnnxBackend, open_backend
from asvp_export.teacher.model import Teacher


def bench_for(teacher: Teacher, layers: Sequence[str], inputs: Sequence[Inputs]) -> Bench:
    """What runs a teacher for calibration: its module, or its graph."""
    return (GraphBench if isinstance(open_backend(teacher), OnnxBackend) else TorchBench)(teacher, layers, inputs)
