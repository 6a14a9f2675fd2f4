"""Inserting the operator behind the selected layers of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from asvp_export.errors import InputError
from asvp_export.insertion.plan import Plan
from asvp_export.operator import Perturbation
from asvp_export.selection.select import select
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.backends.base import TRACED, ExportSettings, Insertion
from asvp_export.teacher.model import Teacher

if TYPE_CHECKING:
    from asvp_export.parity.cases import Case
    from asvp_export.parity.expected import Expected

Observer = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor], None]
Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Protected:
    """A teacher with the defence in it: the module runs the defence in PyTorch, and is what is exported."""

    teacher: Teacher
    """The original, untouched."""

    module: torch.nn.Module
    """A copy of the teacher's module with a node, and its inverse, behind each protected layer; a drop-in replacement.

    A forward hook that is registered on a protected layer of it sees the residual map; `observed` shows the
    exposed one."""

    nodes: dict[str, Perturbation]
    """Layer name to the attributes of its node and its residual gain, in the order in which layers are called first."""

    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Compensated weights, by name, in the place of the teacher's own."""

    plan: Plan | None = None
    """How nodes and weights were found, where they were."""

    verify_images: tuple[Path, ...] = ()
    """Pictures that the plan was verified on; an export is, by default."""

    verified: tuple[tuple[Case, ...], Expected] | None = None
    """Inputs that original and protected module were run on already, and their outputs."""

    def __call__(self, image: torch.Tensor, *others: torch.Tensor) -> Any:
        """Restore an image batch with the defence running.

        Args:
            image: [N, C, H, W], or the first input.
            *others: the other inputs in order; by default those of the teacher's examples that fit the image.

        Returns:
            What the teacher's module returns.
        """
        with torch.inference_mode():
            return self.module(*((image, *others) if others else self.teacher.inputs(image)))


def nodes_for(
    teacher: Teacher, layers: Sequence[str] | str, perturbation: Perturbation, axis: int | None
) -> dict[str, Perturbation]:
    """The selected layers with the node that each would get: on its channel axis, of a rank that it has."""
    if no_layers(layers):
        return {}
    open_backend(teacher).check_insertable()
    nodes = {}
    for name, site in select(teacher, [layers] if isinstance(layers, str) else layers).items():
        channel_axis = _plain_axis(site.axis if axis is None else axis, name, site.shape)
        nodes[name] = replace(perturbation, axis=channel_axis, rank=min(perturbation.rank, site.shape[channel_axis]))
    return nodes


def no_layers(layers: Sequence[str] | str) -> bool:
    """Whether no layer is asked for: "none", or nothing."""
    return layers == "none" or len(layers) == 0 or list(layers) == ["none"]


def insert(
    teacher: Teacher,
    nodes: Mapping[str, Perturbation],
    weights: Mapping[str, torch.Tensor] | None = None,
    plan: Plan | None = None,
) -> Protected:
    """Insert nodes with the given attributes behind the named layers of a copy of the teacher.

    Args:
        teacher: it is not changed.
        nodes: layer name to attributes.
        weights: values that take the place of the copy's own, by name.
        plan: what they come from.
    """
    module, parts = open_backend(teacher).insert(nodes, weights)
    for name, node in nodes.items():
        parts[name].register_forward_hook(_Node(name, node))
    return Protected(teacher, module, dict(nodes), dict(weights or {}), plan)


def to_onnx(
    protected: Protected,
    *,
    opset: int | None = None,
    static: tuple[int, int] | None = None,
    data_folder: Path | None = None,
    traced_at: tuple[int, int] = TRACED,
) -> onnx.ModelProto:
    """Write the protected model as ONNX, with the operator's function body attached; see `Backend.export`."""
    backend = open_backend(protected.teacher, opset)
    settings = ExportSettings(opset, static, data_folder, traced_at)
    return backend.export(Insertion(protected.module, protected.nodes, protected.weights), settings)


@contextmanager
def observed(protected: Protected, observer: Observer) -> Iterator[None]:
    """Within the block, `observer(layer, clean, exposed, residual)` is called at each node of the protected module.

    The clean feature map is what the layer made, the exposed one what is behind the node, and the residual one what the
    layer's readers get: the exposed one too where there is no inverse.
    """
    hooks = _nodes(protected)
    for hook in hooks:
        hook.observer = observer
    try:
        yield
    finally:
        for hook in hooks:
            hook.observer = None


@contextmanager
def replaced(protected: Protected, transforms: Mapping[str, Transform]) -> Iterator[None]:
    """Within the block, these layers' readers get `transforms[layer](clean)`, in the place of node and inverse."""
    hooks = [hook for hook in _nodes(protected) if hook.layer in transforms]
    for hook in hooks:
        hook.instead = transforms[hook.layer]
    try:
        yield
    finally:
        for hook in hooks:
            hook.instead = None


def _nodes(protected: Protected) -> list[_Node]:
    return [h for m in protected.module.modules() for h in m._forward_hooks.values() if isinstance(h, _Node)]


class _Node:
    """The forward hook that is node and inverse; a class, so that it survives deepcopy and pickle with its module."""

    def __init__(self, layer: str, node: Perturbation) -> None:
        self.layer = layer
        self.node = node
        self.observer: Observer | None = None
        self.instead: Transform | None = None

    def __call__(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if self.instead:
            exposed = residual = self.instead(output)
        else:
            exposed, residual = exposed_and_residual(output, self.node)
        if self.observer:
            self.observer(self.layer, output, exposed, residual)
        return residual


def exposed_and_residual(clean: torch.Tensor, node: Perturbation) -> tuple[torch.Tensor, torch.Tensor]:
    """The map that a layer exposes, and the one that its readers get, [N, ...] like the clean one."""
    exposed = torch.ops.asvp.perturb(clean, **node.attributes())
    inverse = node.inverse
    return exposed, exposed if inverse is None else torch.ops.asvp.perturb(exposed, **inverse.attributes())


def _plain_axis(axis: int, layer: str, shape: tuple[int, ...]) -> int:
    """1 or -1 where the axis is one of these, so that as few function bodies as possible are written."""
    if not -len(shape) < axis < len(shape):
        raise InputError(
            f"The axis {axis} was asked for; the output of {layer} has {len(shape)} dimensions, {shape}. Choose "
            "another axis."
        )
    positive = axis % len(shape)
    return positive if positive == 1 else -1 if positive == len(shape) - 1 else positive
