"""The runner that fits a teacher."""

from __future__ import annotations

from collections.abc import Sequence

from asvp_export.plan.calibration import Inputs
from asvp_export.plan.runner import CalibrationRunner
from asvp_export.plan.runner_onnx import OnnxRunner
from asvp_export.plan.runner_torch import TorchRunner
from asvp_export.teacher.backends import OnnxBackend, open_backend
from asvp_export.teacher.model import Teacher


def open_runner(teacher: Teacher, layers: Sequence[str], inputs: Sequence[Inputs]) -> CalibrationRunner:
    """What runs a teacher for calibration: a runner for each backend, chosen here alone."""
    backend = open_backend(teacher)
    if isinstance(backend, OnnxBackend):
        return OnnxRunner(backend.graph, layers, inputs)
    return TorchRunner(teacher, layers, inputs)
