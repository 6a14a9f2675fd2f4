"""The operator's body written into the graph, for readers that do not resolve model-local functions; and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx.inliner
from onnx import helper

from asvp_export.onnx_graph.contents import graphs
from asvp_export.onnx_graph.metadata import INLINE, read_provenance
from asvp_export.onnx_graph.names import PREFIX, read_name
from asvp_export.onnx_graph.passes import perturbation_nodes
from asvp_export.operator import DOMAIN, OP_TYPE, Perturbation


def inline(model: onnx.ModelProto) -> None:
    """Replace each ASVP node by its body, in place.

    The body's nodes, and the tensors between them, are named `asvp/<layer>/...`: by that, and by `asvp.portable` in the
    metadata, the protected layers of the file stay known. onnx.inliner inlines the other functions; it leaves nodes
    without names, and takes no model over 2 GiB.
    """
    bodies = {body.overload: body for body in model.functions if (body.domain, body.name) == (DOMAIN, OP_TYPE)}
    written = {node.name: _written_out(node, bodies[node.overload]) for node in perturbation_nodes(model)}
    _replace(model.graph, written)
    functions = [function for function in model.functions if function.domain != DOMAIN]
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.functions[:], model.opset_import[:]
    model.functions.extend(functions)
    model.opset_import.extend(imports)
    if functions:
        model.CopyFrom(onnx.inliner.inline_local_functions(model))


def _written_out(call: onnx.NodeProto, body: onnx.FunctionProto) -> list[onnx.NodeProto]:
    """The body's nodes with the tensors and the attributes of one call."""
    attributes = {attribute.name: attribute for attribute in call.attribute}
    outer = {body.input[0]: call.input[0], body.output[0]: call.output[0]}
    nodes = []
    for inner in body.node:
        node = onnx.NodeProto()
        node.CopyFrom(inner)
        node.name = f"{call.name}/{inner.output[0]}"
        node.input[:] = [outer.get(name, f"{call.name}/{name}") for name in inner.input]
        node.output[:] = [outer.get(name, f"{call.name}/{name}") for name in inner.output]
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                name = attribute.name
                attribute.CopyFrom(attributes[attribute.ref_attr_name])
                attribute.name = name
        nodes.append(node)
    return nodes


def _replace(graph: onnx.GraphProto, replacements: dict[str, list[onnx.NodeProto]]) -> None:
    """Put nodes in the place of the one of that name."""
    nodes = [new for node in graph.node for new in replacements.get(node.name, [node])]
    del graph.node[:]
    graph.node.extend(nodes)


@dataclass(frozen=True)
class Body:
    """One inlined body as it stands in a graph."""

    input: str
    """The tensor that goes in."""

    output: str
    """The tensor that comes out, and that something outside takes."""

    nodes: tuple[onnx.NodeProto, ...]


def inlined_bodies(model: onnx.ModelProto) -> dict[str, Body]:
    """The inlined bodies, by the name of the node that each stands for (`asvp_export.onnx_graph.names`).

    Only what is whole counts: one tensor goes in, one comes out and is used. What the body computes is not looked at.
    """
    parts: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if call := _call_of(node):
            parts[call].append(node)
    maker = {name: call for call, nodes in parts.items() for node in nodes for name in node.output}
    entering, leaving = defaultdict(set), defaultdict(set)
    uses = [(_call_of(node), name) for graph in graphs(model.graph) for node in graph.node for name in node.input]
    for user, name in [*uses, *(("", value.name) for value in model.graph.output)]:
        if name and user != maker.get(name, ""):
            entering[user].add(name)
            leaving[maker.get(name, "")].add(name)
    whole = {}
    for call, nodes in parts.items():
        if len(entering[call]) == len(leaving[call]) == 1:
            whole[call] = Body(entering[call].pop(), leaving[call].pop(), tuple(nodes))
    return whole


def _call_of(node: onnx.NodeProto) -> str:
    """The node that this one is a part of, "" for none."""
    call, _, _ = node.name.rpartition("/")
    return call if call.startswith(PREFIX) else ""


def named_node(layers: Mapping[str, Perturbation], name: str) -> Perturbation | None:
    """The attributes that the metadata's layers give to the node of a name; None where it is none of theirs."""
    node_name = read_name(name, layers)
    node = layers.get(node_name.layer) if node_name else None
    return node and (node.inverse if node_name and node_name.inverse else node)


def fold(model: onnx.ModelProto) -> None:
    """The inverse of `inline`, in place: a node, with the attributes that the metadata names, where a body was found.

    A file that was not inlined stays as it is.
    """
    provenance = read_provenance({p.key: p.value for p in model.metadata_props})
    if provenance is None or provenance.portable != INLINE:
        return
    bodies = inlined_bodies(model)
    replacements: dict[str, list[onnx.NodeProto]] = {}
    for call, body in bodies.items():
        node = named_node(provenance.layers, call)
        if node is None:
            continue
        proto = helper.make_node(OP_TYPE, [body.input], [body.output], call, domain=DOMAIN, overload=node.overload)
        proto.attribute.extend(helper.make_attribute(key, value) for key, value in node.attributes().items())
        replacements |= {part.name: [] for part in body.nodes[:-1]} | {body.nodes[-1].name: [proto]}
    _replace(model.graph, replacements)
