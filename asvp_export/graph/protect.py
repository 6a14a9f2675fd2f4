"""Inserting the operator behind the selected layers of a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph

from asvp_export.errors import InputError
from asvp_export.graph.surgery import check_carrier
from asvp_export.operator import Perturbation
from asvp_export.teacher.layers import graph_of, select
from asvp_export.teacher.model import Teacher
from asvp_export.teacher.onnx_graph import named_tensors

Observer = Callable[[str, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Protected:
    """A teacher with the defence in it: the module runs the defence in PyTorch, and is what is exported."""

    teacher: Teacher
    """The original, untouched."""

    module: torch.nn.Module
    """A copy of the teacher's module with a node behind each protected layer; a drop-in replacement."""

    nodes: dict[str, Perturbation]
    """Layer name to the attributes of its node, in the order in which the layers are first called."""

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


def protect(
    teacher: Teacher,
    layers: Sequence[str] | str,
    *,
    rank: int = 1,
    gain: float = 1.1,
    energy: float = 1.0,
    axis: int | None = None,
) -> Protected:
    """Insert one node behind each selected layer; a layer that is called several times gets it at each call.

    Args:
        teacher: from `asvp_export.load`; it is not changed.
        layers: names or globs of the modules (`*` stays inside one dotted part, `**` crosses dots); "none" or nothing:
            no node, for a verified export of the teacher as it is.
        rank: how many leading singular values are amplified (at most the layer's channels).
        gain: the factor on them.
        energy: share of the squared singular values after which the count stops.
        axis: the channel axis; by default what the layer's output shows.

    Returns:
        The protected teacher.

    Raises:
        InputError: an attribute out of range, an unknown layer, or one that cannot carry the node.
    """
    asked = Perturbation(rank, gain, energy, 1 if axis is None else axis)  # checked before the teacher runs
    if not _none(layers) and (graph := graph_of(teacher)) is not None:
        check_carrier(graph.model)
    chosen = {} if _none(layers) else select(teacher, [layers] if isinstance(layers, str) else layers)
    nodes = {}
    for name, site in chosen.items():
        channel_axis = _plain_axis(site.axis if axis is None else axis, name, site.shape)
        nodes[name] = replace(asked, axis=channel_axis, rank=min(rank, site.shape[channel_axis]))
    return insert(teacher, nodes)


def _none(layers: Sequence[str] | str) -> bool:
    return layers == "none" or len(layers) == 0 or list(layers) == ["none"]


def insert(teacher: Teacher, nodes: dict[str, Perturbation]) -> Protected:
    """Insert nodes with the given attributes behind the named layers of a copy of the teacher."""
    graph = graph_of(teacher)
    if graph is None:
        module = copied(teacher)
        modules = dict(module.named_modules())
    else:
        tensors, _ = named_tensors(graph.model)
        module = graph.with_cuts(tensors[name] for name in nodes)
        modules = dict(zip(nodes, module.sites, strict=True))
    for name, node in nodes.items():
        modules[name].register_forward_hook(_Node(name, node))
    return Protected(teacher, module, dict(nodes))


def copied(teacher: Teacher) -> torch.nn.Module:
    """A copy of the module; the fake tensors in the graphs of a .pt2 archive cannot be copied and are shared."""
    graphs = [graph for part in teacher.module.modules() if isinstance(graph := getattr(part, "graph", None), Graph)]
    shared = {id(node.meta): node.meta for graph in graphs for node in graph.nodes}
    try:
        return copy.deepcopy(teacher.module, shared)
    except Exception as error:  # a user's module may raise anything
        raise InputError(f"{teacher.source} cannot be copied ({error}); give a state dict and --arch.") from error


@contextmanager
def observed(protected: Protected, observer: Observer) -> Iterator[None]:
    """Within the block, `observer(layer, before, after)` is called at each node of the protected module."""
    hooks = [h for m in protected.module.modules() for h in m._forward_hooks.values() if isinstance(h, _Node)]
    for hook in hooks:
        hook.observer = observer
    try:
        yield
    finally:
        for hook in hooks:
            hook.observer = None


class _Node:
    """The forward hook that is the node; a class, so that it survives deepcopy and pickle with its module."""

    def __init__(self, layer: str, node: Perturbation) -> None:
        self.layer = layer
        self.node = node
        self.observer: Observer | None = None

    def __call__(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        after = torch.ops.asvp.perturb(output, **self.node.attributes())
        if self.observer:
            self.observer(self.layer, output, after)
        return after


def _plain_axis(axis: int, layer: str, shape: tuple[int, ...]) -> int:
    """1 or -1 where the axis is one of these, so that as few function bodies as possible are written."""
    if not -len(shape) < axis < len(shape):
        raise InputError(f"The axis {axis} was asked for; {layer} gives {len(shape)} dimensions, {shape}.")
    positive = axis % len(shape)
    return positive if positive == 1 else -1 if positive == len(shape) - 1 else positive
