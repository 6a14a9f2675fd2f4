"""Reading an ONNX graph: what lies in it, what a node's bodies capture, which part of it some outputs need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import onnx

from asvp_export.errors import InputError

_Nodes = Iterable[onnx.NodeProto]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply a tensor by weights, or by another tensor."""

_FLOATS = tuple(getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"))


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that are attributes of a node (the branches of an If, the body of a Loop)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside its nodes."""
    yield graph
    yield from graphs_in(graph.node)


def graphs_in(nodes: _Nodes) -> Iterator[onnx.GraphProto]:
    """All graphs inside nodes, at any depth."""
    for node in nodes:
        for body in bodies(node):
            yield from graphs(body)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of the main graph, of the graphs inside them, and of the model's functions."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        yield from nodes
        for graph in graphs_in(nodes):
            yield from graph.node


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and attributes, in subgraphs and functions too."""
    yield from model.graph.initializer
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for graph in graphs_in(nodes):
            yield from graph.initializer
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def stored_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The tensors stored in the main graph, by the names under which nodes read them: initializers and Constants."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and not node.domain and node.attribute and node.attribute[0].name == "value":
            weights[node.output[0]] = node.attribute[0].t
    return weights


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's data lies in a file of its own."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def external_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files that hold tensors' data, as the model says them."""
    return {
        entry.value for t in tensors(model) if is_external(t) for entry in t.external_data if entry.key == "location"
    }


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes of data a tensor has, in the model or in a file of its own."""
    if not is_external(tensor):
        return len(tensor.raw_data)
    length = next((entry.value for entry in tensor.external_data if entry.key == "length"), None)
    if length is not None:
        return int(length)
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def data_bytes(model: onnx.ModelProto) -> int:
    """How many bytes of data a model's tensors have."""
    return sum(map(stored_bytes, tensors(model)))


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Sort the nodes so that each comes after those that it reads from, otherwise in the order in which they stand.

    The standard asks for it; onnxruntime does not mind, and its float16 converter leaves them unsorted.

    Returns:
        Whether they stood so already.

    Raises:
        InputError: nodes need each other's results, so that there is no such order.
    """
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    behind = [[maker[name] for name in sorted(reads(node)) if name in maker] for node in graph.node]
    if all(before < index for index, makers in enumerate(behind) for before in makers):
        return True
    nodes, order = list(graph.node), dict[int, None]()
    for start in range(len(nodes)):
        waiting = {} if start in order else {start: None}  # each waits for the next one
        while waiting:
            index = next(reversed(waiting))
            missing = next((before for before in behind[index] if before not in order), None)
            if missing is None:
                order[index] = waiting.pop(index)
            elif missing in waiting:
                name = nodes[missing].name or nodes[missing].op_type
                raise InputError(
                    f"The graph is not valid: its node {name} depends on its own result, directly or through other "
                    "nodes."
                )
            else:
                waiting[missing] = None
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)
    return False


def is_half(model: onnx.ModelProto) -> bool:
    """Whether weights of the model are float16: a tenth of the stored floating values or more, wherever they lie."""
    counts: Counter[int] = Counter()
    for tensor in tensors(model):
        counts[tensor.data_type] += math.prod(tensor.dims)
    return counts[onnx.TensorProto.FLOAT16] * 10 >= max(1, sum(counts[kind] for kind in _FLOATS))


def reads(node: onnx.NodeProto) -> set[str]:
    """The tensors of its own graph that a node needs: its inputs, and what its bodies capture."""
    needed = set(node.input)
    for body in bodies(node):
        local = {value.name for value in (*body.input, *body.initializer)}
        local |= {sparse.values.name for sparse in body.sparse_initializer}
        for inner in body.node:
            needed |= reads(inner) - local
            local |= set(inner.output)
        needed |= {value.name for value in body.output} - local
    return needed - {""}


def rename_reads(nodes: _Nodes, names: Mapping[str, str]) -> None:
    """Let nodes, and the graphs inside them, read other tensors of their own graph; what they make keeps its names.

    Args:
        nodes: changed in place.
        names: of tensors that are read now, to those that are read from now on.
    """
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        for body in bodies(node):
            local = {value.name for value in (*body.input, *body.initializer)}
            local |= {name for inner in body.node for name in inner.output}
            captured = {old: new for old, new in names.items() if old not in local}
            rename_reads(body.node, captured)
            for value in body.output:
                value.name = captured.get(value.name, value.name)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default domain, under either of its names."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What a caller has to hand in: before IR version 4 the initializers stand among the inputs as well."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def named_tensors(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, str]]:
    """The layers of a graph: what its nodes return, under the node's name where that says which tensor is meant.

    Args:
        model: its main graph is looked at.

    Returns:
        Layer name to tensor, in the order of the graph; and every name under which a layer can be asked for (the
        node's, the tensor's) to the layer's name.
    """
    nodes = model.graph.node
    produced = {name for node in nodes for name in node.output if name}
    count = Counter(node.name for node in nodes)
    layers: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for node in nodes:
        outputs = [name for name in node.output if name]
        for tensor in outputs:
            plain = node.name and count[node.name] == len(outputs) == 1 and node.name not in produced - {tensor}
            name = node.name if plain else tensor
            layers[name] = tensor
            aliases[tensor] = aliases[name] = name
    return layers, aliases


def pruned(
    model: onnx.ModelProto, extra_inputs: Sequence[onnx.ValueInfoProto], outputs: Collection[str]
) -> onnx.ModelProto:
    """The part of a model that computes some tensors, with others handed in instead of computed.

    Args:
        model: it is left as it is.
        extra_inputs: tensors of the main graph that become inputs beside the model's own.
        outputs: tensors of the main graph that become the outputs, in this order; onnxruntime finds out their types.

    Returns:
        A model with the nodes, the initializers and the inputs that are needed, and all of the functions.
    """
    replaced = {value.name for value in extra_inputs}
    needed = set(outputs)
    nodes: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed & (set(node.output) - replaced - {""}):
            nodes.append(node)
            needed |= reads(node)
    graph = model.graph
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = graph.name
    part.graph.node.extend(reversed(nodes))
    for node in part.graph.node:  # one of several outputs of a node may be handed in, and the others be computed
        node.output[:] = [f"{name}/computed" if name in replaced else name for name in node.output]
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    part.graph.sparse_initializer.extend(s for s in graph.sparse_initializer if s.values.name in needed)
    part.graph.input.extend(value for value in (*graph.input, *extra_inputs) if value.name in needed)
    declared = {value.name: value for value in graph.output}
    part.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in outputs)
    return part


def next_weighted(model: onnx.ModelProto, tensor: str) -> str | None:
    """The output of the first layer with weights that reads a tensor, or what follows from it; nodes are sorted."""
    initializers = {initializer.name for initializer in model.graph.initializer}
    # What does not follow from an input is a weight, whatever it is cast or shaped by.
    from_input = {value.name for value in model.graph.input} - initializers
    downstream = {tensor}
    for node in model.graph.node:
        names = reads(node)
        if (
            downstream & names
            and node.op_type in PRODUCTS
            and any(name not in from_input for name in node.input if name)
        ):
            return node.output[0]
        if downstream & names:
            downstream |= set(node.output)
        if from_input & names:
            from_input |= set(node.output)
    return None
