"""libasvp in onnxruntime: which of kernel and body runs, results, shapes, errors, and sessions that come and go.

The first part holds what the toolchain counts on in onnxruntime itself; when it fails, read it before the kernels.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from asvp_export.operator import DOMAIN, OP_TYPE, VERSION, Perturbation
from asvp_export.operator.onnx_function import perturbation_function
from tests.helpers.criterion import FUNCTION, REFERENCE32, REFERENCE64, check
from tests.helpers.oracle import exact, steps_off, to_type, widened
from tests.helpers.spectra import feature_maps

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
    known = [Perturbation(**a) if body else None for a in attributes]
    nodes = [
        helper.make_node(OP_TYPE, [a], [b], name=name if b == "Y" else f"before_{b}", domain=DOMAIN, **written)
        for a, b, written in zip(values, values[1:], attributes, strict=False)
    ]
    for node, perturbation in zip(nodes, known, strict=True):
        node.overload = perturbation.overload if perturbation and overload else ""
    ends = dtype
    if dtype == BFLOAT16:
        ends, nodes[0].input[0], nodes[-1].output[0] = FLOAT, "narrow", "result"
        nodes = [
            helper.make_node("Cast", ["X"], ["narrow"], to=dtype),
            *nodes,
            helper.make_node("Cast", ["result"], ["Y"], to=ends),
        ]
    functions = {p.overload: body(p, opset) for p in known if p}
    for function in functions.values():
        function.overload = function.overload if overload else ""
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("X", ends, dims)],
            [helper.make_tensor_value_info("Y", ends, out)],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=list(functions.values()),
    )
    made.ir_version = ir
    return made


def options(*libraries: str, threads=1, level="ORT_ENABLE_ALL") -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.intra_op_num_threads = threads
    made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    made.log_severity_level = 4  # errors come as exceptions
    for library in libraries:
        made.register_custom_ops_library(library)
    return made


def session(made: onnx.ModelProto, *libraries: str, **settings) -> ort.InferenceSession:
    chosen = options(*libraries, **settings)
    return ort.InferenceSession(made.SerializeToString(), chosen, providers=["CPUExecutionProvider"])


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


def in_a_process(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


# ---------------------------------------------------------------- body, library, both, neither


RANK2 = {"rank": 2, "gain": 3.0, "energy": 1.0, "axis": 1}


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


# ---------------------------------------------------------------- results


ATTRIBUTES = st.sampled_from([(1, 3.0, 1.0), (2, 0.25, 1.0), (4, 10.0, 1.0), (3, 3.0, 0.9), (6, 1.5, 0.5)])


@pytest.mark.parametrize("dtype", TOLERANCES)
@settings(max_examples=100, deadline=None)
@given(mapped=feature_maps(), attributes=ATTRIBUTES, threads=st.sampled_from([1, 2]))
def test_small_maps_of_every_spectrum_layout_and_scale(library, dtype, mapped, attributes, threads):
    (x, axis), (rank, gain, energy) = mapped, attributes
    x = x.astype(NUMPY[dtype])
    y = perturb(library, x, threads, rank=rank, gain=gain, energy=energy, axis=axis)
    assert y.dtype == x.dtype
    # A float attribute is a float32: 0.9 is not, and the threshold is where the node says.
    check(x, y, rank, gain, float(np.float32(energy)), axis, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
@settings(max_examples=60, deadline=None)
@given(mapped=feature_maps(), attributes=st.sampled_from([(1, 3.0), (2, 0.25), (4, 10.0)]))
def test_half_types_are_the_float64_result_rounded_once(library, dtype, mapped, attributes):
    (x, axis), (rank, gain) = mapped, attributes
    half = to_type(x / (np.abs(x).max() or 1.0) * 100, NUMPY[dtype])
    wide, clear = exact(widened(half), rank, gain, axis)
    steps = steps_off(widened(perturb(library, half, rank=rank, gain=gain, axis=axis)), wide, NUMPY[dtype])
    assert steps[clear].size == 0 or steps[clear].max() <= 2


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (1, 3, 1, 4), (2, 3, 4, 5, 6), (3, 40, 33, 50)])
def test_every_axis_is_the_first_one_with_the_axes_moved(library, dtype, shape):
    x = to_type(normal(*shape), NUMPY[dtype])
    for axis in range(1, len(shape)):
        moved = np.ascontiguousarray(np.moveaxis(x, axis, 1))
        wanted = np.moveaxis(perturb(library, moved, rank=2, gain=3.0, axis=1), 1, axis)
        for same in (axis, axis - len(shape)):
            y = perturb(library, x, 2, rank=2, gain=3.0, axis=same)
            np.testing.assert_array_equal(y, wanted)


def test_every_axis_is_right(library):
    x = normal(2, 5, 6, 7)
    for axis in (1, 2, 3, -1, -2, -3):
        check(x, perturb(library, x, rank=2, gain=3.0, axis=axis), 2, 3.0, 1.0, axis, REFERENCE32)


def test_a_map_without_positions_has_one(library):
    x = normal(3, 5)
    for axis in (1, -1):  # one column: it is the leading component
        np.testing.assert_allclose(perturb(library, x, rank=2, gain=3.0, axis=axis), 3 * x, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_empty_maps_give_empty_maps(library, shape, axis):
    assert perturb(library, np.zeros(shape, np.float32), axis=axis).shape == shape


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_a_poisoned_sample_is_nan_and_leaves_the_others_alone(library, dtype, poison, axis):
    x = normal(3, 4, 5, 6)
    clean = perturb(library, to_type(x, NUMPY[dtype]), rank=2, gain=3.0, axis=axis)
    x[1, 2, 3, 4] = poison
    y = perturb(library, to_type(x, NUMPY[dtype]), rank=2, gain=3.0, axis=axis)
    assert np.isnan(widened(y)[1]).all()
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def test_a_batch_gives_the_bits_of_its_samples(library):
    x = normal(5, 12, 40, 50)
    y = perturb(library, x, 2, rank=3, gain=3.0)
    for i in range(5):
        np.testing.assert_array_equal(y[i : i + 1], perturb(library, x[i : i + 1], rank=3, gain=3.0))


def test_one_session_takes_maps_of_every_size(library):
    for shape in [(1, 4, 5, 6), (3, 16, 64, 64), (1, 1, 1, 1), (2, 100, 3, 7), (1, 4, 5, 6)]:
        x = normal(*shape)
        check(x, perturb(library, x, 2, rank=2, gain=3.0), 2, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("shape", [(1, 32, 200, 200), (3, 48, 60, 60), (90, 5, 7, 10)])
def test_bits_do_not_depend_on_threads(library, dtype, shape):
    x = to_type(normal(*shape), NUMPY[dtype])
    wanted = perturb(library, x, 1, rank=4, gain=3.0)
    for threads in (2, 3):
        np.testing.assert_array_equal(perturb(library, x, threads, rank=4, gain=3.0), wanted)


def test_the_output_may_take_the_input_s_place_but_not_before_others_have_read_it(library):
    nodes = [
        helper.make_node("Relu", ["X"], ["a"]),
        helper.make_node(OP_TYPE, ["a"], ["b"], domain=DOMAIN, rank=2, gain=3.0),  # a is read again
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node(OP_TYPE, ["c"], ["d"], domain=DOMAIN, rank=2, gain=3.0),  # c is not
        helper.make_node("Neg", ["d"], ["Y"]),
    ]
    made = model(RANK2)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    x = normal(2, 8, 30, 30)
    before = x.copy()
    y = run(session(made, library), x)
    a = np.maximum(x, 0)
    c = a + perturb(library, a, rank=2, gain=3.0)
    np.testing.assert_array_equal(y, -perturb(library, c, rank=2, gain=3.0))
    np.testing.assert_array_equal(x, before)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    "dims, wanted",
    [
        (NAMED, list(NAMED)),
        ((1, 3, 5, 7), [1, 3, 5, 7]),
        (("n", 3, "n", 7), ["n", 3, "n", 7]),
        ((None, 3, "h", 7), []),  # onnxruntime's context has no way to hand on a dimension without a name
        (None, []),
    ],
)
@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16, DOUBLE])
def test_the_output_has_the_input_s_type_and_shape(library, dims, wanted, dtype):
    made = model(RANK2, RANK2, dtype=dtype, dims=dims)
    made.graph.output[0].type.Clear()
    output = session(made, library).get_outputs()[0]
    assert (output.shape, output.type) == (wanted, session(made, library).get_inputs()[0].type)


def test_declared_shapes_stand(library):
    for dims in [(None, 3, "h", 7), (None, None, None, None), None]:
        output = session(model(RANK2, dims=dims, out=("a", 3, None, 7)), library).get_outputs()[0]
        assert output.shape == ["a", 3, None, 7]


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
    ],
)
def test_a_bad_attribute_is_refused_by_the_session_and_the_node_named(library, attributes, found, expected):
    with pytest.raises(Exception, match="ONNXRuntimeError") as error:
        session(model(attributes, name="/body/guard"), library)
    for part in ("'/body/guard'", OP_TYPE, found, expected):
        assert part in str(error.value)


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
    runtime = next(Path(ort.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    if not runtime:  # as on some platforms, where the runtime is linked into the Python module, which exports no C API
        pytest.skip("this onnxruntime has no shared library of its own")
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    get_version = ctypes.CFUNCTYPE(ctypes.c_char_p)

    class Base(ctypes.Structure):
        _fields_ = [("get_api", get_api), ("get_version", get_version)]

    entry = ctypes.CDLL(str(runtime)).OrtGetApiBase
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


# ---------------------------------------------------------------- sessions that come, run at once, and go


def test_registering_twice_does_no_harm(library):
    twice = options(library, library)
    content = model(RANK2).SerializeToString()
    x = normal(1, 6, 7, 9)
    wanted = perturb(library, x, **RANK2)
    for chosen in (twice, twice, options(library)):
        opened = ort.InferenceSession(content, chosen, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(run(opened, x), wanted)


@pytest.mark.parametrize("sessions", [1, 4])
def test_four_threads_run_at_once(library, sessions):
    made = model(RANK2, {**RANK2, "axis": 2})
    opened = [session(made, library, threads=2) for _ in range(sessions)]
    maps = [normal(1 + i % 3, 16, 40 + i, 50, seed=i) for i in range(12)]
    wanted = [run(opened[0], x) for x in maps]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            got = pool.map(lambda i: run(opened[i % sessions], maps[i]), range(12))
            for y, expected in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(y, expected)


LOOP = """
    import ctypes, gc, sys
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    import numpy as np, onnxruntime as ort
    library, content = sys.argv[1], Path(sys.argv[2]).read_bytes()
    x = np.random.default_rng(0).standard_normal((1, 16, 64, 64)).astype(np.float32)
    def opened():
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(library)
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    def mapped():
        return library in Path("/proc/self/maps").read_text()
    class Heap(ctypes.Structure):
        _fields_ = [(str(i), ctypes.c_size_t) for i in range(10)]
    def held():
        gc.collect()
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = Heap
        heap = mallinfo()
        return getattr(heap, "7") + getattr(heap, "4")  # bytes in use, in the heap and mapped
"""


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(model(*[RANK2, {**RANK2, "axis": 2}] * 10), path)
    return str(path)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 to tell what is allocated")
@pytest.mark.parametrize("kept", [False, True], ids=["unloaded each time", "kept loaded"])
def test_hundreds_of_sessions_leave_nothing_behind(library, saved, kept):
    code = """
    keep = opened() if KEPT else None
    def once():
        opened().run(None, {"X": x})
        gc.collect()
        assert mapped() == KEPT
    for _ in range(50):
        once()
    before = held()
    for _ in range(400):
        once()
    print(held() - before)
    """
    grown = int(in_a_process(LOOP + code.replace("KEPT", str(kept)), library, saved))
    # onnxruntime itself keeps 10 to 50 KB in 400 sessions, with any model. A kernel that is not freed would be 56 bytes, 20 times a
    # session: 450 KB; the scratch memory of one node 100 MB.
    assert grown < 200_000


def test_threads_may_register_first_at_once(library, saved):
    code = """
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda _: opened(), range(8)))
    results = [s.run(None, {"X": x})[0] for s in sessions]
    assert all((y == results[0]).all() for y in results)
    """
    for _ in range(5):
        in_a_process(LOOP + code, library, saved)


@pytest.mark.parametrize("loaded_first", [False, True])
def test_a_process_may_end_with_sessions_open(library, saved, loaded_first):
    code = "import ctypes, sys\nctypes.CDLL(sys.argv[1])\n" if loaded_first else ""
    in_a_process(
        code + textwrap.dedent(LOOP) + "import builtins\nbuiltins.alive = s = opened()\ns.run(None, {'X': x})\n",
        library,
        saved,
    )
