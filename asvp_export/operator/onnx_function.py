"""The operator as an ONNX function: its body in standard ops, unrolled over the components."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from asvp_export.operator.schema import DOMAIN, OP_TYPE, Perturbation

# A component that lags the first by a relative gap g in s^2 keeps the weight exp(-g 2^(p+1)) after p squarings and
# costs g times that of the captured energy: ln(C) / 2^(p+1) at worst, 2e-7 for p = 24 and C = 512.
_SQUARINGS = 24

# What viewers show beside a node.
_ABOUT = """\
Adaptive Singular Value Perturbation: a defence against distillation from feature maps.

Each sample of X is a matrix M of channels (on `axis`) by positions, with the singular value decomposition U S V^T.
Y = M + (gain - 1) U_r U_r^T M: the r leading singular values are multiplied by `gain`, all else stays. r is `rank`, or
less where fewer hold the share `energy` of the squared singular values.

`asvp/LAYER` exposes the map of a layer under its name. `asvp/LAYER/inverse` has a gain below 1: it takes the
amplification back for the nodes that read the layer. Y has the type and the shape of X. The body is in standard ops.
"""

# Between two normalisations the largest entry may grow to C^(2^n): 2^88 and 2^176 for C = 2048.
_SQUARINGS_A_SCALE = {TensorProto.FLOAT: 3, TensorProto.DOUBLE: 4}


def perturbation_function(node: Perturbation, opset: int) -> onnx.FunctionProto:
    """The body for nodes with this rank and axis; gain and energy stay attributes of each node.

    The Gram matrix is squared until only its leading eigenvector is left, the eigenvector is taken out, and so on,
    `rank` times. Nothing loops or branches at run time, so that readers which need static ranks take it too.
    Rank 1 works in float32. From rank 2 on, the Gram matrix and what follows are in float64: float32 would lose the
    components with s_i under 3e-4 s_1.

    Args:
        node: rank and axis are baked into the body; the overload name says which.
        opset: of the default domain, 11 to 26; it must be the model's own, or onnx.checker refuses the file. Before 15
            there is no CastLike, and the body takes float32 alone.

    Returns:
        A function of domain `asvp` with one input X and one output Y of its type and shape.
    """
    body = _Body(opset)
    _emit(body, node)
    return helper.make_function(
        DOMAIN,
        OP_TYPE,
        ["X"],
        ["Y"],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=[],
        attribute_protos=[helper.make_attribute(k, v) for k, v in node.attributes().items()],
        overload=node.overload,
        doc_string=_ABOUT,
    )


class _Body:
    """Collects nodes and names their results, in the spelling of one opset."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, np.dtype[Any]], str] = {}

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        key = (str(value), np.dtype(dtype))
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))
        return self._constants[key]

    def attribute(self, name: str) -> str:
        """The value of a float attribute of the node that calls the function."""
        if self.opset < 12:  # a constant takes no reference there; the slope of a LeakyRelu does
            minus = self.op("LeakyRelu", self.constant(-1, np.float32))
            self._refer(self.nodes[-1], "alpha", name)
            return self.op("Neg", minus)
        value = self.op("Constant")
        self._refer(self.nodes[-1], "value_float", name)
        return value

    def _refer(self, node: onnx.NodeProto, attribute: str, name: str) -> None:
        node.attribute.append(onnx.AttributeProto(name=attribute, ref_attr_name=name, type=onnx.AttributeProto.FLOAT))

    def over(self, op_type: str, x: str, axes: list[int], **attributes: Any) -> str:
        """An op over axes, which are an input of newer opsets and an attribute of older ones."""
        since = 18 if op_type in ("ReduceMax", "ReduceMin") else 13
        if self.opset >= since:
            return self.op(op_type, x, self.constant(axes), **attributes)
        return self.op(op_type, x, axes=axes, **attributes)

    def shape(self, x: str, start: int, end: int | None = None) -> str:
        """Some of a tensor's sizes."""
        if self.opset >= 15:
            sizes = self.op("Shape", x, start=start)
            if end is not None:
                self.nodes[-1].attribute.append(helper.make_attribute("end", end))
            return sizes
        stop = np.iinfo(np.int64).max if end is None else end
        return self.op("Slice", self.op("Shape", x), self.constant([start]), self.constant([stop]))


def _emit(b: _Body, node: Perturbation) -> None:
    x = b.op("Cast", "X", to=TensorProto.FLOAT)
    matrix, restore = _to_matrices(b, x, node.axis)
    kind = TensorProto.FLOAT if node.rank == 1 else TensorProto.DOUBLE
    unit = _scaled(b, matrix) if kind == TensorProto.FLOAT else b.op("Cast", matrix, to=kind)
    gram = b.op("MatMul", unit, b.op("Transpose", unit, perm=[0, 2, 1]))
    basis = b.op("Cast", _leading_basis(b, gram, node.rank, kind), to=TensorProto.FLOAT)  # [N, C, k]
    excess = b.op("Sub", b.attribute("gain"), b.constant(1, np.float32))
    rows = b.op("MatMul", b.op("Transpose", basis, perm=[0, 2, 1]), matrix)
    leading = b.op("MatMul", b.op("Mul", basis, excess), rows)
    result = restore(b.op("Add", matrix, leading))
    b.op("CastLike", result, "X", output="Y") if b.opset >= 15 else b.op("Identity", result, output="Y")


def _to_matrices(b: _Body, x: str, axis: int) -> tuple[str, Any]:
    """X as [N, C, L], and how to bring such a tensor back to x's layout."""
    if axis == 1:
        return b.op("Reshape", x, b.constant([0, 0, -1])), lambda y: b.op("Reshape", y, b.op("Shape", x))
    if axis == -1:
        batch_and_positions, channels = b.constant([0, -1]), b.shape(x, -1)
        rows = b.op("Reshape", x, b.op("Concat", batch_and_positions, channels, axis=0))  # [N, L, C]
        flat = b.op("Transpose", rows, perm=[0, 2, 1])
        return flat, lambda y: b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1]), b.op("Shape", x))
    before = b.op("ReduceProd", b.shape(x, 1, axis), keepdims=1)
    channels = b.shape(x, axis, axis + 1)
    split = b.op("Reshape", x, b.op("Concat", b.constant([0]), before, channels, b.constant([-1]), axis=0))
    turned = b.op("Transpose", split, perm=[0, 2, 1, 3])  # [N, C, before, after]
    flat = b.op("Reshape", turned, b.constant([0, 0, -1]))

    def restore(y: str) -> str:
        back = b.op("Transpose", b.op("Reshape", y, b.op("Shape", turned)), perm=[0, 2, 1, 3])
        return b.op("Reshape", back, b.op("Shape", x))

    return flat, restore


def _scaled(b: _Body, matrix: str) -> str:
    """The matrix with each sample's largest magnitude at 1, so that float32 squares neither vanish nor overflow."""
    high = b.over("ReduceMax", matrix, [2])  # two reductions cost half of Abs and one
    low = b.op("Neg", b.over("ReduceMin", matrix, [2]))
    peak = b.over("ReduceMax", b.op("Max", high, low), [1])
    return b.op("Div", matrix, _or_one(b, peak, np.float32))


def _or_one(b: _Body, value: str, dtype: Any) -> str:
    """The value where it is positive, else 1: a divisor that is safe for a zero map."""
    return b.op("Where", b.op("Greater", value, b.constant(0, dtype)), value, b.constant(1, dtype))


def _leading_basis(b: _Body, gram: str, rank: int, kind: TensorProto.DataType) -> str:
    """The leading eigenvectors of the Gram matrix as columns [N, C, k]; those beyond the count are zero."""
    dtype = np.float32 if kind == TensorProto.FLOAT else np.float64
    index = b.op("Range", b.constant(0), b.op("Squeeze", b.shape(gram, 1, 2)), b.constant(1))
    column, row = b.over("Unsqueeze", index, [1]), b.over("Unsqueeze", index, [0])
    eye = b.op("Cast", b.op("Equal", column, row), to=kind)  # [C, C]
    if rank == 1:
        return _leading_vector(b, gram, eye, column, kind)
    total = b.over("ReduceSum", b.op("Mul", gram, eye), [1, 2])  # trace = sum of s^2, [N, 1, 1]
    energy = b.op("Cast", b.attribute("energy"), to=kind)
    always = b.op("Not", b.op("Less", energy, b.constant(1, dtype)))
    needed, noise = b.op("Mul", total, energy), b.op("Mul", total, b.constant(1e-13, dtype))
    basis = covered = ""
    for i in range(rank):
        vector = _leading_vector(b, gram, eye, column, kind)
        if basis:  # what is left of a nearly exhausted matrix is noise, and not orthogonal to what was taken
            overlap = b.op("MatMul", b.op("Transpose", basis, perm=[0, 2, 1]), vector)
            vector = _normalised(b, b.op("Sub", vector, b.op("MatMul", basis, overlap)), dtype)
        image = b.op("MatMul", gram, vector)
        turned = b.op("Transpose", vector, perm=[0, 2, 1])
        value = b.op("MatMul", turned, image)  # s_i^2, [N, 1, 1]
        if basis:  # the first is always taken
            short = b.op("Or", b.op("Less", covered, needed), always)
            amplified = b.op("Cast", b.op("And", short, b.op("Greater", value, noise)), to=kind)
            basis = b.op("Concat", basis, b.op("Mul", vector, amplified), axis=2)
        else:
            basis = vector
        if i + 1 < rank:
            covered = b.op("Add", covered, value) if covered else value
            gram = _deflated(b, gram, vector, turned, image, value)
    return basis


def _deflated(b: _Body, gram: str, vector: str, turned: str, image: str, value: str) -> str:
    """(I - u u^T) G (I - u u^T): taken out on both sides, so that u's rounding is not left behind in the next one."""
    cross = b.op("MatMul", vector, b.op("Transpose", image, perm=[0, 2, 1]))
    both = b.op("Add", cross, b.op("Transpose", cross, perm=[0, 2, 1]))
    square = b.op("Mul", b.op("MatMul", vector, turned), value)
    return b.op("Add", b.op("Sub", gram, both), square)


def _leading_vector(b: _Body, gram: str, eye: str, column: str, kind: TensorProto.DataType) -> str:
    """The leading eigenvector [N, C, 1] of a symmetric positive semidefinite matrix [N, C, C]."""
    dtype = np.float32 if kind == TensorProto.FLOAT else np.float64
    axes = [1, 2]
    peak = b.over("ReduceMax", b.op("Abs", gram), axes)
    power = start = b.op("Div", gram, _or_one(b, peak, dtype))
    zero = b.op("Cast", b.op("Equal", peak, b.constant(0, dtype)), to=kind)
    power = b.op("Add", power, b.op("Mul", zero, eye))  # a zero matrix would be divided by zero below
    for i in range(_SQUARINGS):
        if i % _SQUARINGS_A_SCALE[kind] == 0 and i:
            power = b.op("Div", power, b.over("ReduceMax", power, axes))  # the largest entry lies on the diagonal
        power = b.op("MatMul", power, power)
    diagonal = b.over("ReduceSum", b.op("Mul", power, eye), [2])
    largest = b.op("Equal", column, b.op("ArgMax", diagonal, axis=1))  # [N, C, 1], one of each sample
    vector = _normalised(b, b.op("MatMul", power, b.op("Cast", largest, to=kind)), dtype)
    return _normalised(b, b.op("MatMul", start, vector), dtype)  # wipes the rounding of the squarings


def _normalised(b: _Body, vector: str, dtype: Any) -> str:
    """Unit length [N, C, 1]; a zero vector stays zero."""
    largest = b.over("ReduceMax", b.op("Abs", vector), [1])
    unit = b.op("Div", vector, _or_one(b, largest, dtype))  # else the squares could vanish
    length = b.op("Sqrt", b.over("ReduceSum", b.op("Mul", unit, unit), [1]))
    return b.op("Div", unit, _or_one(b, length, dtype))
