"""The protected layers of a graph: each node with its inverse, and whether they are what the metadata names."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from asvp_export.errors import InputError
from asvp_export.onnx_graph.contents import reads
from asvp_export.onnx_graph.names import NodeName, read_name
from asvp_export.onnx_graph.passes import attributes_of, perturbation_nodes
from asvp_export.operator import Perturbation


@dataclass(frozen=True, eq=False)
class Pair:
    """One call of a protected layer."""

    name: NodeName
    """Of the node; that of an inverse which does not read its own node's map, where somebody changed the graph."""

    node: onnx.NodeProto
    """The node that exposes the map."""

    inverse: onnx.NodeProto | None = None
    """The node in front of the layer's readers, None where these read the exposed map."""

    @property
    def readers(self) -> str:
        """The tensor that the layer's readers get."""
        return (self.inverse or self.node).output[0]

    @property
    def residual_gain(self) -> float:
        """The residual gain, in float32 as it stands on the nodes."""
        gain = attributes_of(self.node).gain
        if self.inverse is None:
            return gain
        return float(str(np.float32(gain * attributes_of(self.inverse).gain)))

    def perturbation(self) -> Perturbation:
        """What the layer gets.

        Raises:
            InputError: the attributes are out of range, or the two gains do not go together.
        """
        residual = self.residual_gain
        residual = 1.0 if math.isclose(residual, 1, rel_tol=1e-6) else residual
        return replace(attributes_of(self.node), residual=residual if self.inverse else None)


def pairs(model: onnx.ModelProto, layers: Collection[str] = ()) -> list[Pair]:
    """The nodes of the main graph with their inverses, in the order of the graph.

    Args:
        model: whose nodes are read; inlined bodies are no nodes (`asvp_export.onnx_graph.inline.fold`).
        layers: those that are known to be protected.
    """
    by_name: dict[NodeName, Pair] = {}
    for node in perturbation_nodes(model):
        name = read_name(node.name, layers) or NodeName(node.name)
        before = by_name.get(name.exposing) if name.inverse else None
        if before and before.inverse is None and node.input[0] == before.node.output[0]:
            by_name[before.name] = replace(before, inverse=node)
        else:
            by_name[name] = Pair(name, node)
    return list(by_name.values())


def differing(model: onnx.ModelProto, named: Mapping[str, Perturbation]) -> list[str]:
    """Layers whose nodes are not what was named: missing, changed, without inverse or readers, or not named."""
    wrong = set(named)
    read = {value.name for value in model.graph.output}.union(*map(reads, model.graph.node))
    checked: set[str] = set()
    for pair in pairs(model, named):
        layer, node = pair.name.layer, named.get(pair.name.layer)
        good = node is not None and not pair.name.inverse and pair.readers in read and same_node(_as_made(pair), node)
        if good and layer not in checked:
            wrong.discard(layer)
        elif not good:
            wrong.add(layer)
        checked.add(layer)
    return sorted(wrong)


def same_node(a: Perturbation | None, b: Perturbation | None) -> bool:
    """Equal up to the float32 in which the attributes stand on nodes."""
    if a is None or b is None or (a.rank, a.axis) != (b.rank, b.axis):
        return False
    numbers = ((a.gain, b.gain), (a.energy, b.energy), (a.residual_gain, b.residual_gain))
    return all(math.isclose(ours, theirs, rel_tol=1e-6) for ours, theirs in numbers)


def _as_made(pair: Pair) -> Perturbation | None:
    """The pair as one value; None where node and inverse do not go together."""
    exposing = attributes_of(pair.node)
    if pair.inverse is None:
        return exposing
    inverse = attributes_of(pair.inverse)
    if (inverse.rank, inverse.energy, inverse.axis) != (exposing.rank, 1.0, exposing.axis):
        return None
    try:
        return pair.perturbation()
    except InputError:
        return None
