"""The operator's ONNX function body, run by a stock onnxruntime and by onnx's own evaluator."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from asvp_export.operator import Perturbation
from asvp_export.operator.onnx_function import perturbation_function
from tests.helpers.bodies import model, session
from tests.helpers.criterion import FUNCTION, as_matrices, check
from tests.helpers.spectra import feature_maps, matrix

OPSETS = range(18, 27)


@functools.cache
def runner(node: Perturbation, ndim: int, dtype=np.float32) -> ort.InferenceSession:
    return session(model([node], dims=tuple(f"d{i}" for i in range(ndim)), dtype=dtype))


def run(node: Perturbation, x: np.ndarray) -> np.ndarray:
    return np.asarray(runner(node, x.ndim, x.dtype.type).run(None, {"X": x})[0])


# A body is unrolled and slow to load: a few attribute sets, many maps.
NODES = st.sampled_from([(1, 3.0, 1.0), (1, 10.0, 1.0), (2, 0.25, 1.0), (3, 3.0, 0.9), (4, 10.0, 1.0), (4, 2.0, 0.5)])


@settings(max_examples=300, deadline=None)
@given(feature_maps(), NODES)
def test_function_is_correct_in_float32(mapped, attributes):
    x, axis = mapped
    x = x.astype(np.float32)
    node = Perturbation(*attributes, axis)
    check(x, run(node, x), *attributes, axis, FUNCTION)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("kind", ["flat", "clustered", "noise"])
@pytest.mark.parametrize("c, length", [(64, 4096), (180, 2500)])
def test_function_converges_on_large_clustered_and_flat_spectra(rank, kind, c, length):
    x = matrix(kind, c, length, np.random.default_rng(rank)).astype(np.float32).reshape(1, c, length, 1)
    check(x, run(Perturbation(rank, 3.0), x), rank, 3.0, 1.0, 1, FUNCTION)


@pytest.mark.parametrize("gap", [3e-7, 1e-6, 1e-5, 1e-4])
def test_the_worst_gap_for_the_squarings_is_captured(gap):
    """One value a hair above a cluster of all the others: what is left of the cluster counts most here."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 128)))[0] for n in (128, 512))
    values = np.r_[1.0, np.full(127, 1 - gap)]
    x = ((left * values) @ right.T).astype(np.float32).reshape(1, 128, 512, 1)
    check(x, run(Perturbation(1, 3.0), x), 1, 3.0, 1.0, 1, FUNCTION)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_opset_and_type_passes_the_checker_and_runs(opset, dtype):
    node = Perturbation(2, 3.0)
    made = model([node], opset=opset, dtype=dtype)
    onnx.checker.check_model(made, full_check=True)
    x = np.random.default_rng(opset).standard_normal((2, 6, 5, 7)).astype(dtype)
    y = np.asarray(session(made).run(None, {"X": x})[0])
    assert y.dtype == dtype
    if dtype == np.float32:
        check(x, y, 2, 3.0, 1.0, 1, FUNCTION)
    else:
        assert steps_off(x, y, 2, 3.0) <= 2


@pytest.mark.parametrize("opset", range(11, 18))
@pytest.mark.parametrize("rank, axis", [(1, 1), (2, -1), (3, 2)])
def test_models_of_older_opsets_have_a_body_too(opset, rank, axis):
    made = model([Perturbation(rank, 3.0, 0.9, axis)], opset=opset)
    onnx.checker.check_model(made, full_check=True)
    x = np.random.default_rng(opset).standard_normal((2, 6, 5, 7)).astype(np.float32)
    check(x, np.asarray(session(made).run(None, {"X": x})[0]), rank, 3.0, 0.9, axis, FUNCTION)


def steps_off(x: np.ndarray, y: np.ndarray, rank: int, gain: float) -> float:
    """Largest distance to the exact result, in units in the last place of float16."""
    exact = np.stack([amplified(m, rank, gain) for m in as_matrices(x, 1)]).reshape(x.shape)
    return float((np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)).max())


def amplified(m: np.ndarray, rank: int, gain: float) -> np.ndarray:
    left, values, right = np.linalg.svd(m, full_matrices=False)
    values[:rank] *= gain
    return (left * values) @ right


@pytest.mark.parametrize("dims", [("n", "c", "h", "w"), (2, 6, 5, 7), ("n", 6, "h", "w")])
def test_static_and_dynamic_shapes(dims):
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 7)).astype(np.float32)
    made = model([Perturbation(2, 3.0)], dims=dims)
    onnx.checker.check_model(made, full_check=True)
    check(x, np.asarray(session(made).run(None, {"X": x})[0]), 2, 3.0, 1.0, 1, FUNCTION)


@pytest.mark.parametrize("shape, axis", [((2, 3, 4, 5, 6), 2), ((2, 3, 4, 5, 6), -1), ((2, 3, 4, 5), 2), ((3, 6), 1)])
def test_any_channel_axis(shape, axis):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    check(x, run(Perturbation(2, 3.0, 1.0, axis), x), 2, 3.0, 1.0, axis, FUNCTION)


def test_float64_models_run_as_float32():
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 7))
    y = run(Perturbation(2, 3.0), x)
    assert y.dtype == np.float64
    check(x, y, 2, 3.0, 1.0, 1, FUNCTION)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_sample_is_nan_and_leaves_the_others_alone(rank, poison):
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 5)).astype(np.float32)
    clean = run(Perturbation(rank, 3.0), x)
    x[1, 2, 3, 3] = poison
    y = run(Perturbation(rank, 3.0), x)
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def test_ranks_of_one_model_do_not_mix():
    x = np.random.default_rng(0).standard_normal((1, 8, 9, 9)).astype(np.float32)
    nodes = [Perturbation(1, 3.0), Perturbation(4, 2.0), Perturbation(1, 2.0)]
    both = np.asarray(session(model(nodes)).run(None, {"X": x})[0])
    one_by_one = functools.reduce(lambda value, node: run(node, value), nodes, x)
    np.testing.assert_allclose(both, one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 4])
def test_onnx_reference_evaluator_agrees(rank):
    x = np.random.default_rng(0).standard_normal((2, 8, 9, 9)).astype(np.float32)
    y = np.asarray(ReferenceEvaluator(model([Perturbation(rank, 3.0)])).run(None, {"X": x})[0])
    check(x, y, rank, 3.0, 1.0, 1, FUNCTION)


def test_the_body_uses_nothing_but_standard_ops_and_no_control_flow():
    for rank, axis in [(1, 1), (4, -1), (2, 2)]:
        body = perturbation_function(Perturbation(rank, axis=axis), 18)
        assert {node.domain for node in body.node} == {""}
        assert not {node.op_type for node in body.node} & {"Loop", "If", "Scan", "SVD"}


def test_the_function_explains_itself_to_viewers():
    body = perturbation_function(Perturbation(4, axis=-1), 18)
    assert "defence against distillation" in body.doc_string
    assert all(f"`{name}`" in body.doc_string for name in body.attribute) and all(
        f"`{one.name}`" in body.doc_string for one in body.attribute_proto
    )
