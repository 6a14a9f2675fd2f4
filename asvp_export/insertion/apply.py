"""Protecting a teacher as a plan that was kept says."""

from __future__ import annotations

from asvp_export.errors import InputError
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import Protected, insert
from asvp_export.selection.survey import survey_of
from asvp_export.signature import shape_text
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.model import Teacher


def apply(teacher: Teacher, plan: Plan) -> Protected:
    """Protect a teacher as a plan says, without calibration; two forwards.

    Raises:
        InputError: the plan was made for another model, or by somebody for none.
    """
    backend = open_backend(teacher)
    lost = [layer.name for layer in plan.layers if layer.name not in backend.names.sites]
    if lost:
        raise InputError(f"The plan does not fit: {teacher.source} has no layer {lost[0]}. Make a plan for this model.")
    parameters = backend.parameters()
    for name, weight in plan.weights.items():
        if name not in parameters or tuple(parameters[name].shape) != tuple(weight.shape):
            actual = f"has the shape {shape_text(parameters[name].shape)}" if name in parameters else "does not exist"
            raise InputError(
                f"The plan does not fit: {name} {actual} in {teacher.source}, and has the shape "
                f"{shape_text(weight.shape)} in the plan. Make a plan for this model."
            )
    if plan.weights and plan.source_sha256 != teacher.sha256:
        raise InputError(
            "The plan does not fit: its weights were solved for a model with the sha256 "
            f"{plan.source_sha256[:12]}..., and that of {teacher.source} is {teacher.sha256[:12]}... Make a plan for "
            "this model."
        )
    _check_nodes(teacher, plan)
    return insert(teacher, plan.nodes, plan.weights, plan)


def _check_nodes(teacher: Teacher, plan: Plan) -> None:
    """Refuse nodes that the layers cannot carry: a function body is as long as the rank says."""
    if not plan.layers:
        return
    survey = survey_of(teacher)
    for name, node in plan.nodes.items():
        if name not in survey.axes:
            reason = survey.reasons.get(name, "is not reached")
            raise InputError(f"The plan does not fit: {name} cannot carry the node: it {reason}. Make a new plan.")
        shape = survey.outputs[name].shapes[0]
        if not -len(shape) < node.axis < len(shape):
            raise InputError(
                f"The plan does not fit: the axis of {name} is {node.axis}, and the layer gives "
                f"{shape_text(shape)}. Make a plan for this model."
            )
        if node.rank > shape[node.axis]:
            raise InputError(
                f"The plan does not fit: the rank of {name} is {node.rank}, and the layer has {shape[node.axis]} "
                f"channels in {teacher.source}. Make a plan for this model."
            )
