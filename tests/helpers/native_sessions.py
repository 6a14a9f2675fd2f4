"""Models of the operator alone and sessions of onnxruntime with libasvp in them."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from asvp_export.operator import DOMAIN, OP_TYPE, VERSION, Perturbation
from tests.helpers.criterion import REFERENCE32, REFERENCE64
from tests.helpers.oracle import to_type, widened

FLOAT, FLOAT16, BFLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
TOLERANCES = {FLOAT: REFERENCE32, DOUBLE: REFERENCE64}
NUMPY = {FLOAT: np.float32, FLOAT16: np.float16, BFLOAT16: np.uint16, DOUBLE: np.float64}  # uint16: bits of bfloat16
LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
NAMED = ("n", "c", "h", "w")  # dimensions


def identity_function(node: Perturbation, opset: int) -> onnx.FunctionProto:
    """A body that is plainly wrong: who gets a right answer has not run it."""
    return helper.make_function(
        DOMAIN,
        OP_TYPE,
        ["X"],
        ["Y"],
        [helper.make_node("Identity", ["X"], ["Y"])],
        [helper.make_opsetid("", opset)],
        attribute_protos=[helper.make_attribute(k, v) for k, v in node.attributes().items()],
        overload=node.overload,
    )


def model(
    *attributes: dict, dtype=FLOAT, dims=NAMED, out=None, body=None, opset=18, ir=10, overload=True, name="the_node"
) -> onnx.ModelProto:
    """X -> node -> node ... -> Y; bfloat16 between casts from and to float32, for want of such a numpy array."""
    values = ["X", *(f"t{i}" for i in range(len(attributes) - 1)), "Y"]
    perturbations = [Perturbation(**a) if body else None for a in attributes]
    nodes = [
        helper.make_node(OP_TYPE, [a], [b], name=name if b == "Y" else f"before_{b}", domain=DOMAIN, **written)
        for a, b, written in zip(values, values[1:], attributes, strict=False)
    ]
    for node, perturbation in zip(nodes, perturbations, strict=True):
        node.overload = perturbation.overload if perturbation and overload else ""
    ends = dtype
    if dtype == BFLOAT16:
        ends, nodes[0].input[0], nodes[-1].output[0] = FLOAT, "narrow", "result"
        nodes = [
            helper.make_node("Cast", ["X"], ["narrow"], to=dtype),
            *nodes,
            helper.make_node("Cast", ["result"], ["Y"], to=ends),
        ]
    functions = {p.overload: body(p, opset) for p in perturbations if p}
    for function in functions.values():
        function.overload = function.overload if overload else ""
    model_proto = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("X", ends, dims)],
            [helper.make_tensor_value_info("Y", ends, out)],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=list(functions.values()),
    )
    model_proto.ir_version = ir
    return model_proto


def options(*libraries: str, threads=1, level="ORT_ENABLE_ALL") -> ort.SessionOptions:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session_options.log_severity_level = 4  # errors come as exceptions
    for library in libraries:
        session_options.register_custom_ops_library(library)
    return session_options


def session(model_proto: onnx.ModelProto, *libraries: str, **settings) -> ort.InferenceSession:
    session_options = options(*libraries, **settings)
    return ort.InferenceSession(model_proto.SerializeToString(), session_options, providers=["CPUExecutionProvider"])


def run(opened: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    return np.asarray(opened.run(None, {"X": x})[0])


@functools.cache
def _runner(library: str, dtype: int, ndim: int, threads: int, attributes: tuple) -> ort.InferenceSession:
    dims = tuple(f"d{i}" for i in range(ndim))
    return session(model(dict(attributes), dtype=dtype, dims=dims), library, threads=threads)


def perturb(library: str, x: np.ndarray, threads: int = 1, **attributes) -> np.ndarray:
    """The kernel's answer in x's type, uint16 meaning bfloat16."""
    dtype = next(k for k, v in NUMPY.items() if v == x.dtype)
    opened = _runner(library, dtype, x.ndim, threads, tuple(attributes.items()))
    if dtype != BFLOAT16:
        return run(opened, x)
    return to_type(run(opened, widened(x).astype(np.float32)), np.uint16)  # exact: every bfloat16 is a float32


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


RANK2 = {"rank": 2, "gain": 3.0, "energy": 1.0, "axis": 1}
