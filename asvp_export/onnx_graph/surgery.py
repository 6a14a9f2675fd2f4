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
class Insertion:
    """One node that goes into a graph."""

    layer: str
    """The layer's name, which the node carries."""

    tensor: str
    """The tensor of the main graph that is perturbed."""

    node: Perturbation
    """The attributes of the node, and the residual gain."""


def insert_nodes(model: onnx.ModelProto, insertions: list[Insertion]) -> onnx.ModelProto:
    """A copy of a model with a node behind each of some tensors, its inverse, and the function bodies that they need.

    The producer's output is renamed and the node makes the tensor of the old name, which so is the exposed one. Without
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
    done = onnx.ModelProto()
    done.CopyFrom(model)
    if insertions:
        _rewire(done.graph, insertions)
        done.ir_version = max(done.ir_version, _OVERLOADS)
        attach_functions(done)
    _check_after(model, done, insertions)
    return done


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
    done = onnx.ModelProto()
    done.CopyFrom(model)
    stored = stored_weights(done)
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
    return done


def check_carrier(model: onnx.ModelProto) -> None:
    """Refuse a model that cannot take any node.

    Raises:
        InputError: it has ASVP nodes already, or there is no function body for its opset.
    """
    found = [node for node in all_nodes(model) if node.domain == DOMAIN and node.op_type == OP_TYPE]
    if found:
        raise InputError(f"The file carries {len(found)} ASVP node(s) already; give the unprotected original.")
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
    other = [name for name, kind in types.items() if kind != "tensor(float)"]
    if opset_of(model) < CAST_LIKE and other:
        raise InputError(
            f"The file has opset {opset_of(model)}, and the tensor {other[0]} is not float32; from opset {CAST_LIKE} "
            "on it can carry the node. Convert it with onnx's version_converter, or export it again."
        )


def _check_before(model: onnx.ModelProto, insertions: list[Insertion]) -> None:
    if insertions:
        check_carrier(model)
    made = {name for node in model.graph.node for name in node.output}
    asked = [one.tensor for one in insertions]
    missing = [name for name in asked if not name or name not in made]
    if missing:
        raise InputError(f"No node of the main graph makes the tensor {missing[0]!r}, so no ASVP node can follow it.")
    if len(set(asked)) < len(asked):
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

    def made_by(self, inverse: bool) -> tuple[str, str]:
        """Input and output of the node, or of its inverse."""
        return (self.exposed, self.residual) if inverse else (self.clean, self.exposed)


def _tensors_of(graph: onnx.GraphProto, insertions: list[Insertion]) -> dict[str, _Tensors]:
    """By layer; the names are not in use yet."""
    taken, outputs = _names(graph), {value.name for value in graph.output}
    found = {}
    for one in insertions:
        clean = _unused(f"{one.tensor}/clean", taken)
        if one.node.inverse is None:
            found[one.layer] = _Tensors(clean, one.tensor, one.tensor)
        elif one.tensor in outputs:
            found[one.layer] = _Tensors(clean, _unused(f"{one.tensor}/exposed", taken), one.tensor)
        else:
            found[one.layer] = _Tensors(clean, one.tensor, _unused(f"{one.tensor}/residual", taken))
    return found


def _rewire(graph: onnx.GraphProto, insertions: list[Insertion]) -> None:
    """The pass itself, by graphsurgeon, over the wiring alone.

    Graphsurgeon rewrites all that it reads, and loses some of it (doc strings, metadata) or fails on it (2 GB); so it
    is given nothing but who reads and makes which tensor, and its answer is carried over to the nodes as they are.
    """
    wiring, tensors = _wiring(graph)
    order = list(wiring.nodes)
    named = _tensors_of(graph, insertions)
    added: dict[str, onnx.NodeProto] = {}
    for one in insertions:
        names, tensor = named[one.layer], tensors[one.tensor]
        (producer,) = tensor.inputs
        clean = gs.Variable(names.clean)
        producer.outputs[[id(output) for output in producer.outputs].index(id(tensor))] = clean
        place = next(i for i, node in enumerate(order) if node is producer)
        for inverse, node in ((False, one.node), (True, one.node.inverse)):
            if node is not None:
                read, made = names.made_by(inverse)
                proto = helper.make_node(OP_TYPE, [read], [made], domain=DOMAIN)
                write_node(proto, NodeName(one.layer, inverse=inverse), node)
                added[proto.name] = proto
                order.insert(place + 1 + inverse, gs.Node(OP_TYPE, proto.name, domain=DOMAIN))
    nodes = []
    for wired in order:
        place = wired.attrs.get("place")
        if isinstance(place, int):
            node = graph.node[place]
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
            attrs={"place": place},
            inputs=[variable(name) for name in sorted(reads(node))],
            outputs=[variable(name) for name in node.output],
        )
        for place, node in enumerate(graph.node)
    ]
    return gs.Graph(
        nodes, [variable(value.name) for value in graph.input], [variable(value.name) for value in graph.output]
    ), tensors


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a tensor, in subgraphs too."""
    found: set[str] = set()
    for inner in graphs(graph):
        found |= {value.name for value in (*inner.input, *inner.output, *inner.initializer, *inner.value_info)}
        for node in inner.node:
            found |= {*node.input, *node.output}
    return found


def _unused(name: str, taken: set[str]) -> str:
    number, found = 2, name
    while found in taken:
        found, number = f"{name}{number}", number + 1
    taken.add(found)
    return found


def _check_after(before: onnx.ModelProto, after: onnx.ModelProto, insertions: list[Insertion]) -> None:
    """Take the nodes out again and compare: what is left has to be the model as it was, fields and order.

    That the file is valid is checked on its very bytes, by onnx's full checker, when it is written.
    """
    named = _tensors_of(before.graph, insertions)
    ours = {
        str(NodeName(one.layer, inverse=inverse)): (node, named[one.layer].made_by(inverse))
        for one in insertions
        for inverse, node in ((False, one.node), (True, one.node.inverse))
        if node is not None
    }
    known = {value.name for value in (*after.graph.input, *after.graph.initializer)} | {""}
    known |= {sparse.values.name for sparse in after.graph.sparse_initializer}
    wrong: list[str] = []
    left: list[onnx.NodeProto] = []
    for node in after.graph.node:
        wrong += reads(node) - known  # made by no node before this one
        known |= set(node.output)
        if node.domain == DOMAIN and node.op_type == OP_TYPE:
            asked, wires = ours.pop(node.name, (None, None))
            wrong += [] if asked and (*node.input, *node.output) == wires else [node.name]
        else:
            left.append(onnx.NodeProto())
            left[-1].CopyFrom(node)
    clean = {named[one.layer].clean: one.tensor for one in insertions}
    rename_reads(left, {named[one.layer].residual: one.tensor for one in insertions})
    for node in left:
        node.output[:] = [clean.get(name, name) for name in node.output]
    wrong += [*ours, *(node.name for node, old in zip(left, before.graph.node, strict=False) if node != old)]
    if wrong or len(left) != len(before.graph.node) or not _same_beside_nodes(before, after):
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
        kept = [(p.key, p.value) for p in item.metadata_props if not p.key.startswith(_TRACE_KEYS)]
        if len(kept) < len(item.metadata_props):
            del item.metadata_props[:]
            helper.set_model_props(item, dict(kept))
        if _TRACE_LINE.search(item.doc_string):
            item.ClearField("doc_string")


def _described(model: onnx.ModelProto) -> Iterator[Any]:
    """Everything in a model that can carry metadata and a doc string."""
    yield from (model, *model.functions, *all_nodes(model))
    for function in model.functions:
        yield from function.value_info
    for graph in (model.graph, *graphs_in(all_nodes(model))):
        yield from (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
