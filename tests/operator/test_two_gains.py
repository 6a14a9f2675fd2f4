"""Two gains: a node exposes an amplified map, and its inverse gives the layer's readers the map that they had.

How near the pair comes. Let M be the clean map, P the projector of rank r that the node applied, E = M + (h - 1) P M
the exposed map and T = M + (g - 1) P M = E - (1 - g/h) P E what the readers are to get; norms are Frobenius norms.

Rounding leaves E + D in the place of E. The inverse takes (1 - g/h) of the best approximation of rank r out of that.
So it is off by D - (1 - g/h) ((E + D)_r - E_r), and to first order

    ||(E + D)_r - E_r|| <= ||D|| / (1 - q),  q = s_{r+1} / (h s_r) <= 1/h

(entry by entry (s_i^2 a + s_i s_j b) / (s_i^2 - s_j^2), i <= r < j). As (1 - g/h) / (1 - 1/h) <= 1, that is 2 ||D|| at
most. Ties of M (s_r = s_{r+1}) do no harm: q <= 1/h all the same. Nor do s_r = 0 or less than D: E is then of lower
rank, up to D. The inverse's own rounding is of D's size, and ||D|| <= c u ||E|| <= c u h ||M||, u = 2^-24, c about 1
to 2 (projector, product and sum in float32; C in the worst case). Tests hold the sum to 8 u h ||M|| = 4 h eps ||M||;
the most that was seen is 6.3 u h ||M||.

Free of h is what P itself is off by. It need not be leading, since E carries what it took, but it has to commute with
M M^T: ||(I - P) M M^T P|| <= e s_1^2 (e: 1e-15 in float64, 1e-7 for the body of rank 1) adds e s_1^2 / s_r.
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asvp_export
from asvp_export.insertion.protected import exposed_and_residual
from asvp_export.operator import Perturbation, native, reference
from tests.helpers.bodies import model, session
from tests.helpers.criterion import Tolerance, as_matrices, check
from tests.helpers.spectra import feature_maps, matrix
from tests.helpers.teachers import Recurrent, recurrent
from tests.helpers.two_gains import decibels, maps_of, tokens

EPS = float(np.finfo(np.float32).eps)
RANKS = st.integers(1, 4)
GAINS = st.sampled_from([1.5, 2.0, 10.0, 100.0, 1000.0])
IMPLEMENTATIONS = ["reference", "native", "body"]


def bound(node: Perturbation, eps: float = EPS) -> float:
    """How far the readers' map may be off, relative to the clean one, in Frobenius norms."""
    return 4 * node.gain * eps


@functools.cache
def _body(node: Perturbation, ndim: int) -> ort.InferenceSession:
    assert node.inverse
    return session(model([node, node.inverse], dims=tuple(f"d{i}" for i in range(ndim))))


def through(implementation: str, x: np.ndarray, node: Perturbation) -> np.ndarray:
    """What the layer's readers get of a map."""
    if implementation == "body":
        return np.asarray(_body(node, x.ndim).run(None, {"X": x})[0])
    if implementation == "native":
        assert native.takes(torch.from_numpy(x))
        return exposed_and_residual(torch.from_numpy(x), node)[1].numpy()
    with native.reference_only():
        return exposed_and_residual(torch.from_numpy(x), node)[1].numpy()


def assert_near(got: np.ndarray, wanted: np.ndarray, clean: np.ndarray, axis: int, allowed: float) -> None:
    """Sample by sample, relative to the clean map; a map of zeros has to stay so."""
    for sample, maps in enumerate(zip(*(as_matrices(x, axis) for x in (got, wanted, clean)), strict=True)):
        scale = np.abs(maps[2]).max() or 1.0  # squares of 1e-18 vanish in no float64, but let it be said
        ours, theirs, before = (one / scale for one in maps)
        off, size = np.linalg.norm(ours - theirs), np.linalg.norm(before)
        assert off <= allowed * size, f"sample {sample}: {off / size:.2e} of the map, {allowed:.2e} allowed"


# The operator and its inverse


@pytest.mark.parametrize("implementation", ["reference", "native"])
@settings(max_examples=120, deadline=None)
@given(feature_maps(), RANKS, GAINS)
def test_the_pair_gives_the_map_back(implementation, mapped, rank, gain):
    x, axis = mapped
    x, node = x.astype(np.float32), Perturbation(rank, gain, 1.0, axis, 1.0)
    assert_near(through(implementation, x, node), x, x, axis, bound(node))


# A body is slow to load: a few attribute sets, many maps.
BODIES = st.sampled_from([(1, 10.0), (1, 1000.0), (2, 100.0), (4, 1000.0)])


@settings(max_examples=150, deadline=None)
@given(feature_maps(), BODIES)
def test_the_body_of_the_pair_gives_the_map_back(mapped, attributes):
    x, axis = mapped
    rank, gain = attributes
    x, node = x.astype(np.float32), Perturbation(rank, gain, 1.0, axis, 1.0)
    assert_near(through("body", x, node), x, x, axis, bound(node))


def test_up_to_a_gain_of_1000_the_bound_is_under_a_thousandth():
    assert bound(Perturbation(1, 1000.0)) < 1e-3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind, c, length", [("image", 64, 16384), ("image", 180, 2500), ("flat", 180, 2500)])
def test_large_maps_come_back_too(implementation, kind, c, length):
    x = matrix(kind, c, length, np.random.default_rng(0)).astype(np.float32).reshape(1, c, length, 1)
    node = Perturbation(1, 1000.0, residual=1.0)
    assert_near(through(implementation, x, node), x, x, 1, bound(node))


def odd_maps() -> dict[str, np.ndarray]:
    """Maps at the edge of what a subspace is, [N, C, H, W]."""
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    return {
        "all values equal": turned.reshape(1, 6, 6, 1),
        "the values at r and r + 1 equal": (turned * [3, 2, 2, 2, 1, 1]).reshape(1, 6, 6, 1),
        "fewer values than the rank": matrix("deficient", 4, 30, rng).reshape(1, 4, 5, 6),
        "one value, and rounding": np.outer(rng.random(8), rng.random(48)).reshape(1, 8, 6, 8),
        "zero": np.zeros((2, 5, 4, 3)),
        "one channel": rng.standard_normal((2, 1, 5, 7)),
        "one position": rng.standard_normal((2, 6, 1, 1)),
        "values of 1 and 4e-7": (turned * [1, 4e-7, 0, 0, 0, 0]).reshape(1, 6, 6, 1),
    }


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", odd_maps())
@pytest.mark.parametrize("rank, gain", [(1, 1000.0), (2, 100.0), (4, 1000.0)])
def test_ties_gaps_and_missing_values_do_no_harm(implementation, name, rank, gain):
    x, node = odd_maps()[name].astype(np.float32), Perturbation(rank, gain, residual=1.0)
    assert_near(through(implementation, x, node), x, x, 1, bound(node))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_sample_with_nan_leaves_the_others_of_its_batch_alone(implementation):
    x = np.random.default_rng(0).standard_normal((3, 6, 5, 4)).astype(np.float32)
    x[1, 2, 3, 3] = np.nan
    node = Perturbation(1, 1000.0, residual=1.0)
    got = through(implementation, x, node)
    assert np.isnan(got[1]).all()
    assert_near(got[[0, 2]], x[[0, 2]], x[[0, 2]], 1, bound(node))


@settings(max_examples=40, deadline=None)
@given(feature_maps(), RANKS, st.sampled_from([1.5, 10.0, 100.0]))
def test_in_float16_the_map_comes_back_to_that_types_rounding(mapped, rank, gain):
    """The exposed map is rounded once, u h of it, and so is the other: 2 u h + u, with u = 2^-11 (docstring above)."""
    x, axis = mapped
    half = torch.from_numpy(x / (np.abs(x).max() or 1.0)).half()
    node = Perturbation(rank, gain, 1.0, axis, 1.0)
    got = exposed_and_residual(half, node)[1]
    assert got.dtype == torch.float16
    u = 2.0**-11
    for sample, clean in zip(got.double(), half.double(), strict=True):
        rounded = 2.0**-24 * clean.numel() ** 0.5 * gain  # of numbers that are subnormal in float16
        assert (sample - clean).norm() <= (2 * gain + 1) * u * clean.norm() + rounded


@pytest.mark.parametrize("implementation", ["reference", "native"])
@settings(max_examples=60, deadline=None)
@given(feature_maps(), RANKS, st.sampled_from([(10.0, 2.0), (100.0, 2.0), (100.0, 5.0), (1000.0, 100.0)]))
def test_a_residual_gain_is_what_one_node_of_that_gain_gives(implementation, mapped, rank, gains):
    x, axis = mapped
    x, node = x.astype(np.float32), Perturbation(rank, gains[0], 1.0, axis, gains[1])
    got = through(implementation, x, node)
    check(x, got, rank, gains[1], 1.0, axis, Tolerance(50 * bound(node), bound(node)))


@settings(max_examples=60, deadline=None)
@given(feature_maps(), RANKS, st.sampled_from([(10.0, 1.2), (1000.0, 3.0)]))
def test_a_residual_gain_keeps_the_subspace_that_was_exposed_ties_or_not(mapped, rank, gains):
    x, axis = mapped
    clean, node = torch.from_numpy(x.astype(np.float32)), Perturbation(rank, gains[0], 1.0, axis, gains[1])
    exposed, residual = (one.double() for one in exposed_and_residual(clean, node))
    leading = (exposed - clean) / (node.gain - 1)
    wanted = clean + (gains[1] - 1) * leading
    assert_near(residual.numpy(), wanted.numpy(), clean.numpy(), axis, bound(node))


# Modules


NETS = {"recurrent": (recurrent, "head,block.0,block"), "tokens": (tokens, "embed,tokens,grid")}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_outputs_of_a_protected_module_are_the_originals(name, batch, kernels):
    """Layers that are called three times, several one behind the other and at one place, on every axis."""
    make, layers = NETS[name]
    protected = asvp_export.protect(asvp_export.load(make()), layers, gain=100.0)
    image = torch.rand(batch, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    assert decibels(protected(image), protected.teacher.module(image).detach()) >= 100


@pytest.mark.parametrize("name, axes", [("recurrent", {1}), ("tokens", {1, -1})])
@pytest.mark.parametrize("residual", [1.0, 3.0])
def test_an_observer_sees_the_clean_the_exposed_and_the_residual_map(name, axes, residual):
    make, layers = NETS[name]
    protected = asvp_export.protect(asvp_export.load(make()), layers, rank=2, gain=30.0, residual=residual)
    assert {node.axis for node in protected.nodes.values()} == axes
    seen = maps_of(protected, protected.teacher.example(batch=2))
    assert {layer for layer, *_ in seen} == set(protected.nodes)
    for layer, clean, exposed, left in seen:
        node = protected.nodes[layer]
        torch.testing.assert_close(exposed, reference(clean, 2, 30.0, axis=node.axis), rtol=1e-4, atol=1e-4)
        wanted = clean if residual == 1 else reference(clean, 2, residual, axis=node.axis)
        assert_near(left.numpy(), wanted.numpy(), clean.numpy(), node.axis, bound(node))
        assert (exposed - clean).norm() > 5 * clean.norm()


def test_every_call_of_a_layer_has_its_own_pair_of_maps():
    protected = asvp_export.protect(asvp_export.load(recurrent()), "block", gain=100.0)
    seen = maps_of(protected, protected.teacher.example())
    assert [layer for layer, *_ in seen] == ["block"] * 3
    assert not torch.equal(seen[0][2], seen[1][2])


def test_a_hook_on_a_protected_layer_sees_what_its_readers_get():
    protected = asvp_export.protect(asvp_export.load(recurrent()), "head", gain=100.0)
    passed: list[torch.Tensor] = []
    assert isinstance(protected.module, Recurrent)
    protected.module.head.register_forward_hook(lambda module, inputs, output: passed.append(output))
    ((_, clean, _, residual),) = maps_of(protected, protected.teacher.example())
    assert torch.equal(passed[0], residual) and not torch.equal(residual, clean)


def test_a_residual_of_gain_leaves_no_inverse():
    protected = asvp_export.protect(asvp_export.load(recurrent()), "head", gain=3.0, residual="gain")
    assert protected.nodes["head"].residual_gain == 3.0 and protected.nodes["head"].inverse is None
    ((_, _, exposed, residual),) = maps_of(protected, protected.teacher.example())
    assert torch.equal(exposed, residual)
