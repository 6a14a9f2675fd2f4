"""Putting the nodes into an ONNX graph that somebody else wrote, and changing nothing else in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from onnx import helper, numpy_helper

from asvp_export.errors import AsvpError, InputError
from asvp_export.onnx_graph.contents import all_nodes, graphs, graphs_in, opset_of, reads, rename_reads, stored_weights
from asvp_export.onnx_graph.names import NodeName
from asvp_export.onnx_graph.passes import attach_functions, write_node
from asvp_export.operator import DOMAIN, OP_TYPE, Perturbation

OPSETS = range(11, 27)

_OVERLOADS = 10  # the IR version that came with overloads of functions
CAST_LIKE = 15  # the opset that came with it: before, the function body takes float32 alone


@dataclass(frozen=True)
class InsertedNode:
    """One node that goes into a graph."""

    layer: str
    """The layer's name, which the node carries."""

    tensor: str
    """The tensor of the main graph that is perturbed."""

    node: Perturbation
    """The attributes of the node, and the residual gain."""


def insert_nodes(model: onnx.ModelProto, insertions: list[InsertedNode]) -> onnx.ModelProto:
    """A copy of a model with a node behind each of some tensors, its inverse, and the function bodies that they need.

    The producer's output is renamed and the node makes the tensor of the old name: that is the exposed map. Without
    an inverse whatever reads it (nodes, bodies of If and Loop, the graph's outputs) keeps every name; with one, nodes
    and bodies read `<tensor>/residual` instead. An output of the graph keeps its name and is the residual map.

    Args:
        model: as read from a file; tensors' data may be elsewhere, it is not looked at. It is left as it is.
        insertions: at most one a tensor.

    Returns:
        The new model. Initializers, subgraphs, functions, metadata and doc strings are those of the model; its IR
        version is 10 at least, from which on functions have overloads.

    Raises:
        InputError: a pre-condition does not hold: the model has such nodes already, its opset has no function body, or
            a tensor is not made by a node of the main graph.
        AsvpError: a post-condition does not hold, which is a fault of this tool.
    """
    _check_before(model, insertions)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if insertions:
        _rewire(result.graph, insertions)
        result.ir_version = max(result.ir_version, _OVERLOADS)
        attach_functions(result)
    _check_after(model, result, insertions)
    return result


def with_weights(model: onnx.ModelProto, weights: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    """A copy of a model with other values in some of its weights; the model itself where there are none.

    Args:
        model: it is left as it is; tensors' data may be elsewhere.
        weights: by the names under which the main graph's nodes read them, in their shapes; they are stored in the type
            that was there, inside the model.

    Raises:
        InputError: the model has no such weight, or one of another shape.
    """
    if not weights:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    stored = stored_weights(result)
    for name, value in weights.items():
        if name not in stored or list(stored[name].dims) != list(value.shape):
            raise InputError(
                f"The weight {name} of shape {'x'.join(map(str, value.shape))} was to be replaced, and the graph has "
                "no such weight; compensated weights fit only the graph and the opset for which they were solved."
            )
        old = stored[name]
        kind = helper.tensor_dtype_to_np_dtype(old.data_type)
        new = numpy_helper.from_array(np.ascontiguousarray(value.detach().cpu().numpy().astype(kind)), old.name)
        new.doc_string = old.doc_string
        new.metadata_props.extend(old.metadata_props)
        old.CopyFrom(new)
    return result


def check_carrier(model: onnx.ModelProto) -> None:
    """Refuse a model that cannot take any node.

    Raises:
        InputError: it has ASVP nodes already, or there is no function body for its opset.
    """
    nodes = [node for node in all_nodes(model) if node.domain == DOMAIN and node.op_type == OP_TYPE]
    if nodes:
        raise InputError(f"The file carries {len(nodes)} ASVP node(s) already; give the unprotected original.")
    if opset_of(model) not in OPSETS:
        raise InputError(
            f"The file has opset {opset_of(model)}; opsets {OPSETS[0]} to {OPSETS[-1]} can carry the node. Convert it "
            "with onnx's version_converter, or export it again."
        )


def check_types(model: onnx.ModelProto, types: Mapping[str, str]) -> None:
    """Refuse tensors for which the function body of the model's opset is not made.

    Args:
        model: whose opset counts.
        types: tensor to type, as onnxruntime writes it ("tensor(float)").

    Raises:
        InputError: one is not float32, and the opset is older than 15.
    """
    unsuitable = [name for name, kind in types.items() if kind != "tensor(float)"]
    if opset_of(model) < CAST_LIKE and unsuitable:
        raise InputError(
            f"The file has opset {opset_of(model)}, and the tensor {unsuitable[0]} is not float32; from opset "
            f"{CAST_LIKE} on it can carry the node. Convert it with onnx's version_converter, or export it again."
        )


def _check_before(model: onnx.ModelProto, insertions: list[InsertedNode]) -> None:
    if insertions:
        check_carrier(model)
    produced = {name for node in model.graph.node for name in node.output}
    tensors = [insertion.tensor for insertion in insertions]
    missing = [name for name in tensors if not name or name not in produced]
    if missing:
        raise InputError(f"No node of the main graph makes the tensor {missing[0]!r}, so no ASVP node can follow it.")
    if len(set(tensors)) < len(tensors):
        raise AsvpError("Two nodes were to be put behind one tensor.")


@dataclass(frozen=True)
class _Tensors:
    """The names around the nodes of one insertion."""

    clean: str
    """What the producer makes now."""

    exposed: str
    """What the node makes: it keeps the tensor's name, unless that is a graph output and there is an inverse."""

    residual: str
    """What the readers get: the exposed one where there is no inverse."""

    def ends(self, inverse: bool) -> tuple[str, str]:
        """Input and output of the node, or of its inverse."""
        return (self.exposed, self.residual) if inverse else (self.clean, self.exposed)


def _tensors_of(graph: onnx.GraphProto, insertions: list[InsertedNode]) -> dict[str, _Tensors]:
    """By layer; the names are not in use yet."""
    in_use, outputs = _names(graph), {value.name for value in graph.output}
    by_layer = {}
    for insertion in insertions:
        layer, tensor = insertion.layer, insertion.tensor
        clean = _unused(f"{tensor}/clean", in_use)
        if insertion.node.inverse is None:
            by_layer[layer] = _Tensors(clean, tensor, tensor)
        elif tensor in outputs:
            by_layer[layer] = _Tensors(clean, _unused(f"{tensor}/exposed", in_use), tensor)
        else:
            by_layer[layer] = _Tensors(clean, tensor, _unused(f"{tensor}/residual", in_use))
    return by_layer


def _rewire(graph: onnx.GraphProto, insertions: list[InsertedNode]) -> None:
    """The pass itself, by graphsurgeon, over the wiring alone.

    Graphsurgeon rewrites all that it reads, and loses some of it (doc strings, metadata) or fails on it (2 GB); so it
    is given nothing but who reads and makes which tensor, and its answer is carried over to the nodes as they are.
    """
    wiring, tensors = _wiring(graph)
    order = list(wiring.nodes)
    named = _tensors_of(graph, insertions)
    added: dict[str, onnx.NodeProto] = {}
    for insertion in insertions:
        names, tensor = named[insertion.layer], tensors[insertion.tensor]
        (producer,) = tensor.inputs
        clean = gs.Variable(names.clean)
        producer.outputs[[id(output) for output in producer.outputs].index(id(tensor))] = clean
        index = next(i for i, node in enumerate(order) if node is producer)
        for inverse, node in ((False, insertion.node), (True, insertion.node.inverse)):
            if node is not None:
                input_name, output_name = names.ends(inverse)
                proto = helper.make_node(OP_TYPE, [input_name], [output_name], domain=DOMAIN)
                write_node(proto, NodeName(insertion.layer, inverse=inverse), node)
                added[proto.name] = proto
                order.insert(index + 1 + inverse, gs.Node(OP_TYPE, proto.name, domain=DOMAIN))
    nodes = []
    for wired in order:
        index = wired.attrs.get("index")
        if isinstance(index, int):
            node = graph.node[index]
            node.output[:] = [tensor.name for tensor in wired.outputs]
            rename_reads([node], {names.exposed: names.residual for names in named.values()})
        else:
            node = added[wired.name]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _wiring(graph: onnx.GraphProto) -> tuple[gs.Graph, dict[str, gs.Variable]]:
    """The main graph for graphsurgeon: nodes that know their index, with what their bodies capture as inputs."""
    tensors: dict[str, gs.Variable] = {}

    def variable(name: str) -> gs.Variable:
        return tensors.setdefault(name, gs.Variable(name)) if name else gs.Variable.empty()

    nodes = [
        gs.Node(
            node.op_type,
            attrs={"index": index},
            inputs=[variable(name) for name in sorted(reads(node))],
            outputs=[variable(name) for name in node.output],
        )
        for index, node in enumerate(graph.node)
    ]
    return gs.Graph(
        nodes, [variable(value.name) for value in graph.input], [variable(value.name) for value in graph.output]
    ), tensors


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a tensor, in subgraphs too."""
    names: set[str] = set()
    for inner in graphs(graph):
        names |= {value.name for value in (*inner.input, *inner.output, *inner.initializer, *inner.value_info)}
        for node in inner.node:
            names |= {*node.input, *node.output}
    return names


def _unused(name: str, in_use: set[str]) -> str:
    number, candidate = 2, name
    while candidate in in_use:
        candidate, number = f"{name}{number}", number + 1
    in_use.add(candidate)
    return candidate


def _check_after(before: onnx.ModelProto, after: onnx.ModelProto, insertions: list[InsertedNode]) -> None:
    """Take the nodes out again and compare: what is left has to be the model as it was, fields and order.

    That the file is valid is checked on its very bytes, by onnx's full checker, when it is written.
    """
    named = _tensors_of(before.graph, insertions)
    inserted = {
        str(NodeName(insertion.layer, inverse=inverse)): (node, named[insertion.layer].ends(inverse))
        for insertion in insertions
        for inverse, node in ((False, insertion.node), (True, insertion.node.inverse))
        if node is not None
    }
    defined = {value.name for value in (*after.graph.input, *after.graph.initializer)} | {""}
    defined |= {sparse.values.name for sparse in after.graph.sparse_initializer}
    wrong: list[str] = []
    remaining: list[onnx.NodeProto] = []
    for node in after.graph.node:
        wrong += reads(node) - defined  # made by no node before this one
        defined |= set(node.output)
        if node.domain == DOMAIN and node.op_type == OP_TYPE:
            perturbation, wires = inserted.pop(node.name, (None, None))
            wrong += [] if perturbation and (*node.input, *node.output) == wires else [node.name]
        else:
            remaining.append(onnx.NodeProto())
            remaining[-1].CopyFrom(node)
    clean = {named[insertion.layer].clean: insertion.tensor for insertion in insertions}
    rename_reads(remaining, {named[insertion.layer].residual: insertion.tensor for insertion in insertions})
    for node in remaining:
        node.output[:] = [clean.get(name, name) for name in node.output]
    wrong += [*inserted, *(node.name for node, old in zip(remaining, before.graph.node, strict=False) if node != old)]
    if wrong or len(remaining) != len(before.graph.node) or not _same_beside_nodes(before, after):
        raise AsvpError(
            "Inserting the nodes changed other parts of the graph too "
            f"({', '.join(sorted(wrong)[:3]) or 'beside its nodes'}). This is a bug of asvp-export; please report it "
            "with the file."
        )


def _same_beside_nodes(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    grown = ("opset_import", "functions")
    models = [f.name for f in onnx.ModelProto.DESCRIPTOR.fields if f.name not in ("graph", "ir_version", *grown)]
    graph = [f.name for f in onnx.GraphProto.DESCRIPTOR.fields if f.name != "node"]
    return (
        all(getattr(before, name) == getattr(after, name) for name in models)
        and all(getattr(before.graph, name) == getattr(after.graph, name) for name in graph)
        and all(
            list(getattr(after, name))[: len(getattr(before, name))] == list(getattr(before, name)) for name in grown
        )
    )


_TRACE_KEYS = "pkg.torch."
_TRACE_LINE = re.compile(r"^\s*(File \"[^\"]+\", line \d+|\S+\.py\(\d+\): |# \S+\.py:\d+)", re.MULTILINE)


def remove_author(model: onnx.ModelProto) -> None:
    """Remove what PyTorch's exporters wrote of the author's machine: stack traces, with the paths of their files.

    Everything else that is metadata or doc strings stays.
    """
    for item in _described(model):
        properties = [(p.key, p.value) for p in item.metadata_props if not p.key.startswith(_TRACE_KEYS)]
        if len(properties) < len(item.metadata_props):
            del item.metadata_props[:]
            helper.set_model_props(item, dict(properties))
        if _TRACE_LINE.search(item.doc_string):
            item.ClearField("doc_string")


def _described(model: onnx.ModelProto) -> Iterator[Any]:
    """Everything in a model that can carry metadata and a doc string."""
    yield from (model, *model.functions, *all_nodes(model))
    for function in model.functions:
        yield from function.value_info
    for graph in (model.graph, *graphs_in(all_nodes(model))):
        yield from (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
