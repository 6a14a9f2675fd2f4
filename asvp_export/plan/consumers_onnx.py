"""Who reads a protected tensor of an ONNX graph: following it from node to node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx
from onnx import helper

from asvp_export.onnx_graph.contents import reads, stored_weights
from asvp_export.plan.linear import Consumer, Consumers, consumers_by_layer, not_linear, reaches, reads_others

# Fixed linear maps without weights. Linear in all that they read,
_SUMS = frozenset(("Add", "Sub", "Sum", "Mean", "Concat"))
# or in what they read first, by settings that do not depend on it.
_PASSES = frozenset(
    [
        "Neg",
        "Identity",
        "Cast",
        "Dropout",
        "BatchNormalization",
        "Pad",
        "DepthToSpace",
        "SpaceToDepth",
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Gather",
        "Expand",
        "Tile",
        "Resize",
        "Upsample",
        "AveragePool",
        "GlobalAveragePool",
        "ReduceMean",
        "ReduceSum",
    ]
)
_BLIND = frozenset(("Shape", "Size"))  # they look at nothing but the size of what they read
_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
)

_FLOATS = frozenset(getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"))
_SOLVED = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
_OUTPUT = -1  # the graph's outputs as a reader


@dataclass
class OnnxConsumers(Consumers):
    """What reads the protected tensors of a graph; `behind` stays empty, for a graph is not trained."""

    data: dict[str, list[str]] = field(default_factory=dict)
    """By the name of a consumer's weight: the tensors that it reads, call by call."""


def onnx_consumers(model: onnx.ModelProto, tensors: Mapping[str, str]) -> OnnxConsumers:
    """Follow protected tensors through the main graph.

    Args:
        model: its nodes in an order in which they can run; it is not changed, and tensors' data is not looked at.
        tensors: layer to the tensor that its node makes.

    Returns:
        For each layer its linear consumers, or the reason why it has a reader that is none.
    """
    walk = _Walk(model, tensors)
    for index, node in enumerate(model.graph.node):
        walk.follow(index, node)
    return walk.consumers()


def constants(model: onnx.ModelProto) -> set[str]:
    """The tensors of the main graph that are the same for every input."""
    graph = model.graph
    names = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        if node.op_type not in _RANDOM and reads(node) <= names:
            names |= set(node.output)
    return names - {""}


class _Walk:
    def __init__(self, model: onnx.ModelProto, tensors: Mapping[str, str]) -> None:
        self.graph = model.graph
        self.layers = {tensor: layer for layer, tensor in tensors.items()}
        self.stored = stored_weights(model)
        self.constants = constants(model)
        self.outputs = {value.name for value in model.graph.output}
        self.turned: dict[str, tuple[str, bool]] = {name: (name, False) for name in self.stored}
        """A weight under other names, and whether it is transposed there."""
        self.users: dict[str, set[int]] = {}  # indices of the nodes that read a tensor or a weight
        for index, node in enumerate(self.graph.node):
            if self._turn(node):
                continue
            for name in reads(node):
                self.users.setdefault(self.turned.get(name, (name,))[0], set()).add(index)
        for name in self.outputs:
            self.users.setdefault(self.turned.get(name, (name,))[0], set()).add(_OUTPUT)
        self.carried: dict[str, frozenset[str]] = {}  # linear in the tensors of these layers
        self.levels: dict[str, int] = {}
        self.linear: dict[str, tuple[Consumer, frozenset[str]]] = {}
        self.reasons: dict[str, str] = {}
        self.data: dict[str, list[str]] = {}
        self.used: dict[str, set[frozenset[str]]] = {}  # by whom each weight is used
        self.calls: dict[str, set[int]] = {}  # indices of the nodes that use a weight or a bias as what it is
        self.owners: dict[str, set[str]] = {}  # of each bias, by weight

    def _turn(self, node: onnx.NodeProto) -> bool:
        """Whether a node only gives a weight another name: an Identity, or the transpose of a matrix."""
        if node.domain or node.op_type not in ("Identity", "Transpose") or node.input[0] not in self.turned:
            return False
        base, turned = self.turned[node.input[0]]
        if node.op_type == "Transpose":
            if len(self.stored[base].dims) != 2 or _attributes(node).get("perm", [1, 0]) != [1, 0]:
                return False
            turned = not turned
        self.turned[node.output[0]] = (base, turned)
        return True

    def follow(self, index: int, node: onnx.NodeProto) -> None:
        """Take one node in, after all that it reads from."""
        if node.op_type in _BLIND and not node.domain:
            return
        needed = reads(node)
        carried = frozenset().union(*(self.carried.get(name, frozenset()) for name in needed))
        level = max((self.levels.get(name, 0) for name in needed), default=0)
        passed: frozenset[str] = frozenset()
        if carried:
            consumer = self._consumer(node, level)
            if isinstance(consumer, Consumer):
                level = self._add(index, node, consumer, carried) + 1
            elif consumer is None and self._passes(node):
                passed = carried
            else:
                self._refuse(carried, consumer or self._reason(node))
        for name in node.output:
            self.levels[name] = level
            self.carried[name] = passed
            if (layer := self.layers.get(name)) is not None:
                self._refuse(passed, reaches(f"the node behind {layer}"))
                self.carried[name] = frozenset({layer})

    def consumers(self) -> OnnxConsumers:
        """What reads the layers, once all nodes are taken in."""
        for name in self.outputs:
            self._refuse(self.carried.get(name, frozenset()), reaches("the output"))
        for name, (consumer, carried) in self.linear.items():
            if self.users[name] != self.calls[name] or len(self.used[name]) > 1:
                self._refuse(carried, reads_others(name))
            bias = consumer.bias
            if bias is not None and (self.owners[bias] != {name} or self.users[bias] != self.calls[bias]):
                # It stays as it is: whatever is added behind the product cancels out of the problem.
                self.linear[name] = (replace(consumer, bias=None), carried)
        by_layer = consumers_by_layer(self.linear, self.layers.values(), self.reasons)
        return OnnxConsumers(by_layer, self.reasons, data=self.data)

    def _refuse(self, layers: frozenset[str], reason: str) -> None:
        for layer in layers:
            self.reasons.setdefault(layer, reason)

    def _reason(self, node: onnx.NodeProto) -> str:
        captured = reads(node) - set(node.input)
        if any(self.carried.get(name) for name in captured):
            return f"a body of {node.op_type} reads it"
        return not_linear(node.op_type)

    def _add(self, index: int, node: onnx.NodeProto, consumer: Consumer, carried: frozenset[str]) -> int:
        """Keep a consumer; returns its level."""
        name = consumer.weight
        self.used.setdefault(name, set()).add(carried)
        self.calls.setdefault(name, set()).add(index)
        self.data.setdefault(name, []).append(node.input[0])
        if consumer.bias is not None:
            added = self._added(node)
            self.owners.setdefault(consumer.bias, set()).add(name)
            self.calls.setdefault(consumer.bias, set()).add(index if added is None else added)
        if before := self.linear.get(name):  # called again
            level = max(consumer.level, before[0].level)
            bias = consumer.bias if consumer.bias == before[0].bias else None
            consumer = replace(consumer, level=level, calls=before[0].calls + 1, bias=bias)
            carried |= before[1]
        self.linear[name] = (consumer, carried)
        return consumer.level

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Whether a node that reads a carried tensor is linear in it."""
        if node.domain not in ("", "ai.onnx") or any(self.carried.get(n) for n in reads(node) - set(node.input)):
            return False
        kind, settings = node.op_type, _attributes(node)
        other_inputs = [name for name in node.input[1:] if name]
        if kind in _SUMS:
            return True
        if kind == "Mul":
            return any(name in self.constants for name in node.input)
        if kind == "Div":
            return other_inputs[0] in self.constants
        if kind not in _PASSES or any(self.carried.get(name) for name in other_inputs):
            return False
        if kind == "Cast":
            return settings["to"] in _FLOATS
        if kind == "BatchNormalization":
            return not settings.get("training_mode") and len(node.output) == 1
        if kind == "Dropout":  # a third input, where there is one, says whether it acts
            return len(other_inputs) < 2
        return True

    def _consumer(self, node: onnx.NodeProto, level: int) -> Consumer | str | None:
        """The node as a linear consumer; or why it is not one, though a layer of that kind; or None."""
        kind = node.op_type
        if node.domain not in ("", "ai.onnx") or kind not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        data, weight, bias = [*node.input, "", ""][:3]
        if not self.carried.get(data) or self.carried.get(weight) or self.carried.get(bias):
            return None
        base, turned = self.turned.get(weight, ("", False))
        if not base:
            quantised = any(weight in n.output and n.op_type == "DequantizeLinear" for n in self.graph.node)
            return f"{kind} reads it, whose weight is {'quantised' if quantised else 'computed'}"
        if self.stored[base].data_type not in _SOLVED:
            return f"{kind} reads it, whose weight is {onnx.TensorProto.DataType.Name(self.stored[base].data_type)}"
        shape = tuple(self.stored[base].dims)
        settings = _attributes(node)
        if kind == "MatMul":
            if len(shape) != 2:
                return "MatMul reads it, whose weight is not a matrix"
            added = self._added(node)
            if added is not None:
                bias = next(name for name in self.graph.node[added].input if name in self.stored)
            return self._sized(Consumer(base, bias, "linear", shape, input_major=not turned, level=level))
        if kind == "Gemm":
            if settings.get("transA") or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
                return "Gemm reads it, with factors or a transposed input"
            turned ^= bool(settings.get("transB"))
            return self._sized(Consumer(base, bias, "linear", shape, input_major=not turned, level=level))
        return self._convolution(node, settings, base, bias, level)

    def _convolution(
        self, node: onnx.NodeProto, settings: Mapping[str, object], base: str, bias: str, level: int
    ) -> Consumer | str:
        shape = tuple(self.stored[base].dims)
        dims = len(shape) - 2
        if dims not in (1, 2):
            return f"{node.op_type} reads it, in {dims} dimensions"

        def setting(key: str, standard: int) -> tuple[int, ...]:
            values = settings.get(key)
            return tuple(map(int, values)) if isinstance(values, Sequence) and values else (standard,) * dims

        stride, dilation, output = setting("strides", 1), setting("dilations", 1), setting("output_padding", 0)
        reach = [d * (k - 1) for d, k in zip(dilation, shape[2:], strict=True)]
        kind, automatic = "conv" if node.op_type == "Conv" else "transposed", settings.get("auto_pad", b"NOTSET")
        if automatic == b"VALID":
            padding = (0,) * dims
        elif automatic == b"NOTSET":
            around = settings.get("pads")
            around = tuple(map(int, around)) if isinstance(around, Sequence) and around else (0,) * 2 * dims
            if around[:dims] != around[dims:]:
                return f"{node.op_type} reads it, with uneven padding"
            padding = around[:dims]
        elif kind == "conv" and set(stride) == {1} and not any(r % 2 for r in reach):
            padding = tuple(r // 2 for r in reach)
        else:
            return f"{node.op_type} reads it, with padding that its input's size decides"
        if settings.get("output_shape"):
            return f"{node.op_type} reads it, with a stated output size"
        groups = settings.get("group", 1)
        assert isinstance(groups, int)
        return self._sized(
            Consumer(base, bias, kind, shape, stride, padding, dilation, output, groups=groups, level=level)
        )

    def _sized(self, consumer: Consumer) -> Consumer:
        """With its bias if that is one value a channel; what else is added stays as it is, and cancels out."""
        bias = self.turned.get(consumer.bias or "", ("", False))[0]
        fits = bias and bias == consumer.bias and list(self.stored[bias].dims) == [consumer.outputs]
        fits = fits and self.stored[bias].data_type in _SOLVED
        return replace(consumer, bias=bias if fits else None)

    def _added(self, node: onnx.NodeProto) -> int | None:
        """The index of the Add that gives a MatMul its bias."""
        product = node.output[0]
        indices = self.users.get(product, set())
        if node.op_type != "MatMul" or len(indices) != 1 or product in self.layers:
            return None
        (index,) = indices
        if index == _OUTPUT:
            return None
        reader = self.graph.node[index]
        plain = reader.op_type == "Add" and not reader.domain
        return index if plain and any(name in self.stored for name in reader.input) else None


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
