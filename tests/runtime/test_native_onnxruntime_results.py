"""libasvp in onnxruntime: results and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from asvp_export.operator import DOMAIN, OP_TYPE
from tests.helpers.criterion import REFERENCE32, check
from tests.helpers.native_sessions import (
    BFLOAT16,
    DOUBLE,
    FLOAT,
    FLOAT16,
    NAMED,
    NUMPY,
    RANK2,
    TOLERANCES,
    model,
    normal,
    perturb,
    run,
    session,
)
from tests.helpers.oracle import exact, steps_off, to_type, widened
from tests.helpers.spectra import feature_maps

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
