"""Small passes over an ONNX model: naming nodes, attaching bodies, stripping traces, taking nodes out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from asvp_export.errors import AsvpError
from asvp_export.operator import DOMAIN, OP_TYPE, VERSION, Perturbation
from asvp_export.operator.onnx_function import perturbation_function
from asvp_export.teacher.onnx_graph import graphs, graphs_in, opset_of

_SCOPES = "pkg.torch.onnx.name_scopes"


def perturbation_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The ASVP nodes of the main graph, in topological order."""
    return [n for n in model.graph.node if n.domain == DOMAIN and n.op_type == OP_TYPE]


def attributes_of(node: onnx.NodeProto) -> Perturbation:
    """The attributes that stand on an ASVP node, defaults filled in."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        # Attributes are float32: 1.02 comes back as 1.0199999809..., its shortest form as 1.02.
        found[attribute.name] = float(str(np.float32(value))) if isinstance(value, float) else value
    return Perturbation(**{k: v for k, v in found.items() if k in Perturbation.__dataclass_fields__})


def name_nodes(model: onnx.ModelProto, nodes: dict[str, Perturbation], calls: Sequence[str]) -> None:
    """Give each ASVP node its layer's name and, written out in one order, the attributes asked for.

    Args:
        model: as the exporter wrote it.
        nodes: layer name to attributes.
        calls: the layers in the order in which one forward reaches their nodes, which is the order of the graph.

    Raises:
        AsvpError: a layer lost its node on the way through the exporter.
    """
    protos = perturbation_nodes(model)
    if len(protos) != len(calls):  # equal calls were merged, or unused ones dropped: read each node's module path
        calls = [_layer_of(proto, nodes) for proto in protos]
    lost = [layer for layer in nodes if layer not in calls]
    if lost:
        raise AsvpError(
            f"The exported graph has no node for {', '.join(lost)}: the exporter drops what the output does not depend on. "
            "Choose other layers."
        )
    count: Counter[str] = Counter()
    for proto, layer in zip(protos, calls, strict=True):
        count[layer] += 1
        proto.name = f"asvp/{layer}" + (f"#{count[layer]}" if count[layer] > 1 else "")
        proto.overload = nodes[layer].overload
        del proto.attribute[:]
        proto.attribute.extend(helper.make_attribute(k, v) for k, v in nodes[layer].attributes().items())


def _layer_of(proto: onnx.NodeProto, nodes: dict[str, Perturbation]) -> str:
    """The protected layer in whose module path the exporter made the node."""
    paths = next((p.value for p in proto.metadata_props if p.key == _SCOPES), "")
    for path in reversed(re.findall(r"'([^']*)'", paths)):
        if path in nodes:
            return path
    raise AsvpError(
        "The exporter merged or dropped some of the nodes and this opset keeps no record of which; use --opset 18."
    )


def name_by_module(model: onnx.ModelProto) -> None:
    """Name the other nodes of the main graph by module path and op type, /body/0/conv/Conv, where the exporter noted it."""
    count: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
        path = re.findall(r"'([^']*)'", scopes)[:-1]  # the last is the call itself
        if node.domain == DOMAIN or not path:
            continue
        name = "/".join(["", *path[-1].split("."), node.op_type]) if path[-1] else f"/{node.op_type}"
        count[name] += 1
        node.name = name + (f"_{count[name]}" if count[name] > 1 else "")


def attach_functions(model: onnx.ModelProto) -> None:
    """Add one function body for each overload in use, and the import of its domain."""
    opset = opset_of(model)
    bodies = {node.overload: node for node in map(attributes_of, perturbation_nodes(model))}
    model.functions.extend(perturbation_function(node, opset) for _, node in sorted(bodies.items()))
    if bodies and not any(o.domain == DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove all metadata and doc strings: exporters write stack traces with local paths there."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            item.doc_string = ""
            del item.metadata_props[:]


def without_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the ASVP nodes taken out: the graph of the unprotected teacher."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    before = {node.output[0]: node.input[0] for node in perturbation_nodes(bare)}

    def clean(name: str) -> str:
        while name in before:
            name = before[name]
        return name

    kept = [node for node in bare.graph.node if not (node.domain == DOMAIN and node.op_type == OP_TYPE)]
    for node in (*kept, *(inner for graph in graphs_in(kept) for inner in graph.node)):
        node.input[:] = [clean(name) for name in node.input]
    outputs = [value.name for value in bare.graph.output if value.name in before]
    kept += [helper.make_node("Identity", [clean(name)], [name]) for name in outputs]
    del bare.graph.node[:]
    bare.graph.node.extend(kept)
    theirs = [function for function in bare.functions if function.domain != DOMAIN]
    del bare.functions[:]
    bare.functions.extend(theirs)
    return bare
