"""libasvp in onnxruntime: which of kernel and body runs, and what is refused.

The first part holds what the toolchain counts on in onnxruntime itself; when it fails, read it before the kernels.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from asvp_export.operator import OP_TYPE, Perturbation
from asvp_export.operator.onnx_function import perturbation_function
from tests.helpers.criterion import FUNCTION, REFERENCE32, check
from tests.helpers.native import onnxruntime_library
from tests.helpers.native_sessions import (
    BFLOAT16,
    DOUBLE,
    FLOAT,
    FLOAT16,
    LEVELS,
    NUMPY,
    RANK2,
    TOLERANCES,
    identity_function,
    model,
    normal,
    perturb,
    run,
    session,
)
from tests.helpers.oracle import to_type, widened


@pytest.mark.parametrize("level", LEVELS)
def test_a_body_alone_runs(level):
    x = normal(2, 6, 7, 9)
    y = run(session(model(RANK2, body=perturbation_function), level=level), x)
    check(x, y, 2, 3.0, 1.0, 1, FUNCTION)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("body", [identity_function, perturbation_function, None])
def test_the_kernel_runs_with_or_without_a_body(library, level, body, dtype):
    x = normal(2, 6, 7, 9).astype(NUMPY[dtype])
    y = run(session(model(RANK2, dtype=dtype, body=body), library, level=level), x)
    check(x, y, 2, 3.0, 1.0, 1, TOLERANCES[dtype])
    np.testing.assert_array_equal(y, perturb(library, x, **RANK2))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
@pytest.mark.parametrize("level", LEVELS)
def test_the_kernel_runs_with_a_body_in_half_types(library, level, dtype):
    x = to_type(normal(2, 6, 7, 9), NUMPY[dtype])
    ends = x if dtype == FLOAT16 else widened(x).astype(np.float32)
    y = run(session(model(RANK2, dtype=dtype, body=identity_function), library, level=level), ends)
    np.testing.assert_array_equal(to_type(y, x.dtype), perturb(library, x, **RANK2))
    assert (y != ends).any()


def test_neither_body_nor_library_is_an_error():
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail, match="is not a registered function/op"):
        session(model(RANK2))


def test_a_library_for_cuda_alone_does_not_fall_back_to_the_body(reduced):
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.NotImplemented, match=OP_TYPE):
        session(model(RANK2, body=perturbation_function), reduced("cuda"))


def test_a_library_without_the_type_does_not_fall_back_to_the_body(reduced):
    only = session(model(RANK2, body=perturbation_function), reduced("cpu"))
    assert (run(only, normal(1, 2, 3, 4)) == 42).all()
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidGraph, match=r"tensor\(double\)"):
        session(model(RANK2, body=perturbation_function, dtype=DOUBLE), reduced("cpu"))


@pytest.mark.parametrize("opset", range(18, 27))
@pytest.mark.parametrize("level", [LEVELS[0], LEVELS[-1]])
def test_the_kernel_takes_every_overload_of_one_model(library, opset, level):
    x = normal(2, 6, 7, 9)
    attributes = [{**RANK2, "rank": 4}, {**RANK2, "rank": 1}, {**RANK2, "rank": 2, "axis": -1}]
    made = model(*attributes, body=identity_function, opset=opset)
    made.ir_version = max(10, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    assert {f.overload for f in made.functions} == {"rank4", "rank1", "rank2_last"}
    wanted = functools.reduce(lambda value, a: perturb(library, value, **a), attributes, x)
    np.testing.assert_array_equal(run(session(made, library, level=level), x), wanted)


@pytest.mark.parametrize("ir", range(8, 14))
def test_the_kernel_is_taken_in_every_ir_version(library, ir):
    x = normal(2, 6, 7, 9)
    made = model(RANK2, body=identity_function, ir=ir, overload=ir >= 10)  # 8: the first with functions; 10: overloads
    np.testing.assert_array_equal(run(session(made, library), x), perturb(library, x, **RANK2))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "attributes, found, expected",
    [
        ({"rank": 0}, "rank is 0", "at least 1"),
        ({"rank": -3}, "rank is -3", "at least 1"),
        ({"gain": 0.0}, "gain is 0", "finite number above 0"),
        ({"gain": -1.5}, "gain is -1.5", "finite number above 0"),
        ({"gain": float("nan")}, "gain is nan", "finite number above 0"),
        ({"gain": float("inf")}, "gain is inf", "finite number above 0"),
        ({"energy": 0.0}, "energy is 0", "above 0 and at most 1"),
        ({"energy": 1.5}, "energy is 1.5", "above 0 and at most 1"),
        ({"energy": float("nan")}, "energy is nan", "above 0 and at most 1"),
        ({"axis": 0}, "axis is 0", "channel axis"),
        ({"axis": 4}, "axis 4", "4 dimensions"),
        ({"axis": -4}, "axis -4", "4 dimensions"),
        ({"gain": 2}, "gain has the wrong type", "a float"),
        ({"energy": "all"}, "energy has the wrong type", "a float"),
        ({"rank": 2.0}, "rank has the wrong type", "an integer"),
        ({"axis": "last"}, "axis has the wrong type", "an integer"),
        ({"gain": [2.0, 3.0]}, "gain has the wrong type", "a float"),
        ({"energy": [1]}, "energy has the wrong type", "a float"),
        ({"rank": [2]}, "rank has the wrong type", "an integer"),
        ({"axis": helper.make_tensor("t", FLOAT, [1], [1.0])}, "axis has the wrong type", "an integer"),
    ],
)
def test_a_bad_attribute_is_refused_by_the_session_and_the_node_named(library, attributes, found, expected):
    with pytest.raises(Exception, match="ONNXRuntimeError") as error:
        session(model(attributes, name="/body/guard"), library)
    for part in ("'/body/guard'", OP_TYPE, found, expected):
        assert part in str(error.value)


@pytest.mark.parametrize("dims", [(1, 2**40, 2**20, 2**20), (1, 2**40, 0, 2**40)])
def test_a_declared_map_beyond_all_addresses_is_refused(library, dims):
    with pytest.raises(Exception, match=rf"'the_node'.*{OP_TYPE}.*more elements than memory can address"):
        session(model({}, dims=dims), library)


@pytest.mark.parametrize("ndim", [0, 1])
def test_a_map_with_fewer_than_two_dimensions_is_refused(library, ndim):
    opened = session(model({}, dims=None), library)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match=rf"'the_node'.* {ndim} dimensions"):
        run(opened, np.zeros((2,) * ndim, np.float32))


def test_an_axis_that_the_map_lacks_is_refused_when_it_comes(library):
    opened = session(model({"axis": 3, "gain": 3.0}, dims=None), library)
    x = normal(1, 3, 4, 5)
    check(x, run(opened, x), 1, 3.0, 1.0, 3, REFERENCE32)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match=r"'the_node'.* axis 3 is not"):
        run(opened, normal(1, 3, 4))


def test_other_types_are_refused(library):
    for dtype in (TensorProto.INT32, TensorProto.STRING):
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidGraph, match="the_node"):
            session(model({}, dtype=dtype), library)


def test_missing_attributes_are_the_schema_s_defaults(library):
    x = normal(2, 6, 7, 9)
    np.testing.assert_array_equal(perturb(library, x), perturb(library, x, **Perturbation().attributes()))


def test_an_onnxruntime_that_is_too_old_is_told_so(library):
    """The runtime's own C API, behind a GetApi that knows versions up to 17 only."""
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    get_version = ctypes.CFUNCTYPE(ctypes.c_char_p)

    class Base(ctypes.Structure):
        _fields_ = [("get_api", get_api), ("get_version", get_version)]

    entry = ctypes.CDLL(onnxruntime_library()).OrtGetApiBase
    entry.restype = ctypes.POINTER(Base)
    true_base = entry().contents
    old = Base(get_api(lambda version: true_base.get_api(version) if version <= 17 else None), true_base.get_version)
    register = ctypes.CDLL(library).RegisterCustomOps
    register.restype = ctypes.c_void_p
    register.argtypes = [ctypes.c_void_p, ctypes.POINTER(Base)]
    status = register(None, ctypes.byref(old))
    assert status
    table = ctypes.cast(true_base.get_api(1), ctypes.POINTER(ctypes.c_void_p))
    message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(table[2])(status)  # GetErrorMessage
    assert message == f"libasvp needs onnxruntime 1.18 or later; this is {ort.__version__}.".encode()
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(table[93])(status)  # ReleaseStatus
