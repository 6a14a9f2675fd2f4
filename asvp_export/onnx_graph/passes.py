"""Small passes over an ONNX model: naming nodes, attaching bodies, removing stack traces, taking nodes out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from asvp_export.errors import AsvpError
from asvp_export.onnx_graph.contents import all_nodes, graphs, opset_of, rename_reads
from asvp_export.onnx_graph.names import PREFIX, NodeName
from asvp_export.operator import DOMAIN, OP_TYPE, VERSION, Perturbation
from asvp_export.operator.onnx_function import perturbation_function

_SCOPES = "pkg.torch.onnx.name_scopes"


def perturbation_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The ASVP nodes of the main graph, in topological order."""
    return [n for n in model.graph.node if n.domain == DOMAIN and n.op_type == OP_TYPE]


def attributes_of(node: onnx.NodeProto) -> Perturbation:
    """The attributes that stand on an ASVP node, defaults filled in."""
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        # Attributes are float32: 1.02 comes back as 1.0199999809..., its shortest form as 1.02.
        values[attribute.name] = float(str(np.float32(value))) if isinstance(value, float) else value
    return Perturbation(**{k: v for k, v in values.items() if k in Perturbation.__dataclass_fields__})


def name_nodes(model: onnx.ModelProto, nodes: Mapping[str, Perturbation], calls: Sequence[str]) -> None:
    """Give each ASVP node its layer's name and, written out in one order, the attributes asked for.

    The exposed tensor gets the layer's name, so that whoever looks for the layer finds it; what an inverse makes for
    the layer's readers is `<layer>/residual`.

    Args:
        model: as the exporter wrote it.
        nodes: layer name to attributes.
        calls: the layers in the order in which one forward reaches their nodes, which is the order of the graph.

    Raises:
        AsvpError: a layer lost its node on the way through the exporter.
    """
    protos = perturbation_nodes(model)
    names = _in_order(nodes, calls)
    if len(protos) != len(names):  # equal calls were merged, or unused ones dropped: read each node's module path
        names = _by_scope(protos, nodes)
    present = {(name.layer, name.inverse) for name in names}
    required = [
        (layer, inverse) for layer, node in nodes.items() for inverse in (False, True)[: 2 if node.inverse else 1]
    ]
    lost = [layer for layer, inverse in required if (layer, inverse) not in present]
    if lost:
        raise AsvpError(
            f"The exported graph has no node for {', '.join(dict.fromkeys(lost))}: the exporter drops what the output "
            "does not depend on. Choose other layers."
        )
    for proto, name in zip(protos, names, strict=True):
        node = nodes[name.layer].inverse if name.inverse else nodes[name.layer]
        assert node is not None
        write_node(proto, name, node)
    _name_tensors(model, zip(protos, names, strict=True))


def write_node(proto: onnx.NodeProto, name: NodeName, node: Perturbation) -> None:
    """Name a node and write its attributes out, in one order."""
    proto.name, proto.overload = str(name), node.overload
    del proto.attribute[:]
    proto.attribute.extend(helper.make_attribute(key, value) for key, value in node.attributes().items())


def _in_order(nodes: Mapping[str, Perturbation], calls: Sequence[str]) -> list[NodeName]:
    """The nodes of each call of a layer, one behind the other."""
    count: Counter[str] = Counter()
    names = []
    for layer in calls:
        count[layer] += 1
        exposing = NodeName(layer, count[layer])
        names += [exposing, replace(exposing, inverse=True)] if nodes[layer].inverse else [exposing]
    return names


def _by_scope(protos: Sequence[onnx.NodeProto], nodes: Mapping[str, Perturbation]) -> list[NodeName]:
    """The name of each node. Its scope gives the layer; what reads the output of that layer's node is the inverse."""
    count: Counter[str] = Counter()
    by_output: dict[str, NodeName] = {}
    for proto in protos:
        layer = _layer_of(proto, nodes)
        before = by_output.get(proto.input[0])
        if before and before.layer == layer and not before.inverse:
            by_output[proto.output[0]] = replace(before, inverse=True)
        else:
            count[layer] += 1
            by_output[proto.output[0]] = NodeName(layer, count[layer])
    return list(by_output.values())


def _name_tensors(model: onnx.ModelProto, named: Iterable[tuple[onnx.NodeProto, NodeName]]) -> None:
    in_use = {name for node in all_nodes(model) for name in (*node.input, *node.output)}
    in_use |= {
        value.name for graph in graphs(model.graph) for value in (*graph.input, *graph.output, *graph.initializer)
    }
    names = {}
    for proto, name in named:
        tensor = str(name.exposing).removeprefix(PREFIX) + ("/residual" if name.inverse else "")
        if tensor not in in_use and proto.output[0] not in {value.name for value in model.graph.output}:
            names[proto.output[0]] = tensor
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in model.graph.value_info:
        value.name = names.get(value.name, value.name)
    rename_reads(model.graph.node, names)


def _layer_of(proto: onnx.NodeProto, nodes: Mapping[str, Perturbation]) -> str:
    """The protected layer in whose module path the exporter made the node."""
    paths = next((p.value for p in proto.metadata_props if p.key == _SCOPES), "")
    for path in reversed(re.findall(r"'([^']*)'", paths)):
        if path in nodes:
            return path
    raise AsvpError(
        "The exporter merged or dropped some of the nodes, and this opset does not record which; use --opset 18."
    )


def name_by_module(model: onnx.ModelProto) -> None:
    """Name the other nodes of the main graph by module path and op type, /body/0/conv/Conv, where these are noted."""
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


def remove_traces(model: onnx.ModelProto) -> None:
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
    sources = {node.output[0]: node.input[0] for node in perturbation_nodes(bare)}

    def clean(name: str) -> str:
        while name in sources:
            name = sources[name]
        return name

    nodes = [node for node in bare.graph.node if not (node.domain == DOMAIN and node.op_type == OP_TYPE)]
    rename_reads(nodes, {name: clean(name) for name in sources})
    outputs = [value.name for value in bare.graph.output if value.name in sources]
    nodes += [helper.make_node("Identity", [clean(name)], [name]) for name in outputs]
    del bare.graph.node[:]
    bare.graph.node.extend(nodes)
    functions = [function for function in bare.functions if function.domain != DOMAIN]
    del bare.functions[:]
    bare.functions.extend(functions)
    return bare
