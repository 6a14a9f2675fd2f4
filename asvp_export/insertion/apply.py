"""Protecting a teacher as a plan that was kept says."""

from __future__ import annotations

import torch

from asvp_export.errors import InputError
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import Protected, insert
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.model import Teacher


def apply(teacher: Teacher, plan: Plan) -> Protected:
    """Protect a teacher as a plan says, without calibration.

    Raises:
        InputError: the plan was made for another model.
    """
    backend = open_backend(teacher)
    lost = [layer.name for layer in plan.layers if layer.name not in backend.names.sites]
    if lost:
        raise InputError(f"The plan does not fit: {teacher.source} has no layer {lost[0]}. Make a plan for this model.")
    theirs = backend.parameters()
    for name, weight in plan.weights.items():
        if name not in theirs or tuple(theirs[name].shape) != tuple(weight.shape):
            here = f"is {_shape(theirs[name])}" if name in theirs else "is not there"
            raise InputError(
                f"The plan does not fit: {name} {here} in {teacher.source}, the plan's is {_shape(weight)}. "
                "Make a plan for this model."
            )
    if plan.weights and plan.source_sha256 != teacher.sha256:
        raise InputError(
            f"The plan does not fit: its weights were solved for the model of sha256 {plan.source_sha256[:12]}..., "
            f"and {teacher.source} is {teacher.sha256[:12]}...: make a plan for this model."
        )
    return insert(teacher, plan.nodes, plan.weights, plan)


def _shape(weight: torch.Tensor) -> str:
    return "x".join(map(str, weight.shape))
