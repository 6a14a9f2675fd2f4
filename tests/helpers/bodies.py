"""Models of the operator alone, with its ONNX function bodies, and stock sessions of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from asvp_export.operator import DOMAIN, OP_TYPE, VERSION, Perturbation
from asvp_export.operator.onnx_function import perturbation_function

TYPES = {
    np.float32: TensorProto.FLOAT,
    np.float16: TensorProto.FLOAT16,
    np.uint16: TensorProto.BFLOAT16,  # carried by its bits
    np.float64: TensorProto.DOUBLE,
}


def model(
    nodes: list[Perturbation], *, opset: int = 18, dtype=np.float32, dims=("n", "c", "h", "w")
) -> onnx.ModelProto:
    """X -> node -> node ... -> Y, with the bodies attached."""
    names = ["X", *(f"t{i}" for i in range(len(nodes) - 1)), "Y"]
    graph = helper.make_graph(
        [
            helper.make_node(OP_TYPE, [a], [b], domain=DOMAIN, overload=node.overload, **node.attributes())
            for a, b, node in zip(names, names[1:], nodes, strict=False)
        ],
        "graph",
        [helper.make_tensor_value_info("X", TYPES[dtype], dims)],
        [helper.make_tensor_value_info("Y", TYPES[dtype], dims)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    bodies = {node.overload: perturbation_function(node, opset) for node in nodes}
    model_proto = helper.make_model(graph, opset_imports=imports, functions=list(bodies.values()))
    model_proto.ir_version = max(10, helper.find_min_ir_version_for(imports[:1]))  # 10: the first with overloads
    return model_proto


def session(model_proto: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
