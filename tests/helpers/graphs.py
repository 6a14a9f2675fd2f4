"""Graphs that somebody else wrote: one with a bit of everything, one of a single node, those of an old exporter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn

# `features` is read by nodes, by the bodies of Loop and If, and is an output of the graph as well; `few` is read by the
# If that takes its other branch for a dark image.
TEXT = """
<ir_version: 8, opset_import: ["" : 17, "them" : 1], producer_name: "them", doc_string: "a model of theirs">
restore (float[n, 3, h, w] x) => (float[n, 3, h, w] y, float[n, 8, h, w] features)
<int64 steps = {3}, int64[2] cut = {3, 5}>
{
   head = Conv <pads = [1, 1, 1, 1]> (x, first)
   few, many = Split <axis = 1> (head, cut)
   joined = Concat <axis = 1> (few, many)
   features = them.Soft (joined)
   mean = ReduceMean <axes = [2, 3], keepdims = 0> (features)
   size = Shape (features)
   unread = Neg (features)
   brightness = ReduceMean <keepdims = 0> (x)
   bright = Constant <value = float {0.4}> ()
   on = Greater (brightness, bright)
   always = Constant <value = bool {1}> ()
   turned = Loop (steps, always, features) <body = repeat (int64 i, bool go, float[n, 8, h, w] now)
        => (bool goes, float[n, 8, h, w] next) {
      goes = Identity (go)
      tenth = Constant <value = float {0.1}> ()
      part = Mul (features, tenth)
      next = Add (now, part)
   }>
   out = If (on) <then_branch = yes () => (float[n, 3, h, w] a) {
      sum = Add (turned, features)
      a = Conv <pads = [1, 1, 1, 1]> (sum, last)
   }, else_branch = no () => (float[n, 3, h, w] b) { b = Mul (few, few) }>
   y = Add (x, out)
}
<domain: "them", opset_import: ["" : 17], doc_string: "a function of theirs">
Soft (v) => (w) { s = Sigmoid (v)  w = Mul (v, s) }
"""


def their_graph() -> onnx.ModelProto:
    """Loop and If that capture tensors, a function, outputs that nothing reads, doc strings; nodes have no names."""
    model = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("first", (8, 3, 3, 3)), ("last", (3, 8, 3, 3))):
        values = (0.2 * rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


FREE = {name: {0: "n", 2: f"{name}_h", 3: f"{name}_w"} for name in ("x", "y")}
Axes = Mapping[str, dict[int, str]]


def legacy(
    path: Path,
    module: nn.Module,
    opset: int = 17,
    sample: Sequence[int] = (2, 3, 32, 48),
    free: Axes | None = FREE,
    outputs: Sequence[str] = ("y",),
) -> Path:
    """From x to y, or to other outputs, by PyTorch's older exporter, whose names are module paths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.rand(*sample),),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=list(outputs),
            dynamic_axes=free,
        )
    return path


def pointwise(path: Path, sizes: list[Any], first: str = "Sqrt", **attributes: Any) -> Path:
    """A graph of one node behind a product with a constant, which leaves the axes as they are."""
    inputs = ["scaled", "w"] if first == "Conv" else ["scaled"]
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["scaled"]),
        helper.make_node(first, inputs, ["made"], **attributes),
    ]
    if first == "Transpose":
        inverse = np.argsort(attributes["perm"]).tolist()
        nodes.append(helper.make_node("Transpose", ["made"], ["y"], perm=inverse))
    else:
        nodes.append(helper.make_node("Identity", ["made"], ["y"]))
    weights = [helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])]
    if first == "Conv":
        wide = sizes[1]
        weights.append(helper.make_tensor("w", TensorProto.FLOAT, [wide, wide, 1, 1], np.eye(wide).ravel()))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
