"""The PyTorch reference and torch.ops.asvp.perturb: what docs/concepts/operator.md promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asvp_export
from asvp_export import reference
from tests.helpers.criterion import REFERENCE32, REFERENCE64, as_matrices, check
from tests.helpers.spectra import ENERGIES, GAINS, feature_maps


@settings(max_examples=150, deadline=None)
@given(feature_maps(), st.integers(1, 6), GAINS, ENERGIES)
def test_reference_is_correct_in_float32(mapped, rank, gain, energy):
    x, axis = mapped
    x = x.astype(np.float32)
    y = reference(torch.from_numpy(x), rank, gain, energy, axis).numpy()
    check(x, y, rank, gain, energy, axis, REFERENCE32)


@settings(max_examples=150, deadline=None)
@given(feature_maps(), st.integers(1, 6), GAINS, ENERGIES)
def test_reference_is_correct_in_float64(mapped, rank, gain, energy):
    x, axis = mapped
    y = reference(torch.from_numpy(x), rank, gain, energy, axis).numpy()
    check(x, y, rank, gain, energy, axis, REFERENCE64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@settings(max_examples=60, deadline=None)
@given(feature_maps(), st.integers(1, 4))
def test_half_types_are_the_float64_result_rounded_once(dtype, mapped, rank):
    x, axis = mapped
    peak = np.abs(x).max() or 1.0
    half = torch.from_numpy(x / peak * 100).to(dtype)
    wide = reference(half.double(), rank, 1.5, 1.0, axis)
    # Where s_r = s_{r+1} both are right and need not agree: hold the half type against its own criterion there.
    y = reference(half, rank, 1.5, 1.0, axis)
    assert y.dtype == dtype
    values = np.linalg.svd(as_matrices(half.double().numpy(), axis), compute_uv=False)
    r = min(rank, values.shape[1])
    following = values[:, r] if r < values.shape[1] else np.zeros(len(values))
    clear = torch.from_numpy(values[:, r - 1] - following > 1e-6 * values[:, 0])
    # An entry that cancels has no digits of its own: there the float64 result is known to its own bound alone.
    known = 1e-12 * np.abs(half.double().numpy()).max()
    steps = ((y.double() - wide).abs() - known).clamp_min(0) / ulp(wide, dtype)
    assert steps[clear].numel() == 0 or steps[clear].max() <= 2


def test_an_entry_that_cancels_is_held_to_the_float64_bound():
    """Two channels, rank 2: the gain alone would leave the zeros zero, the projection leaves 1e-15 of 150 there."""
    x = torch.tensor([[[90.0, 84.0, 100.0, 89.0, 76.0, 94.5], [29.9, 22.6, 0.0, 0.0, 0.0, 4.25]]], dtype=torch.bfloat16)
    for y in (reference(x, 2, 1.5, 1.0, 1), reference(x.double(), 2, 1.5, 1.0, 1)):
        assert y.double()[x == 0].abs().max() <= 1e-12 * 100


def ulp(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(value.abs().clamp_min(info.tiny)))
    return 2**exponent * info.eps


def test_float16_does_not_overflow_inside():
    x = torch.full((1, 64, 128, 128), 200.0, dtype=torch.float16)  # s_1^2 = 4e10, far over 65504
    torch.testing.assert_close(reference(x, 1, 2.0), torch.full_like(x, 400.0), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_tiny_and_huge_maps(scale):
    x = (np.random.default_rng(0).standard_normal((2, 8, 9, 11)) * scale).astype(np.float32)
    check(x, reference(torch.from_numpy(x), 2, 3.0).numpy(), 2, 3.0, 1.0, 1, REFERENCE32)


@pytest.mark.parametrize("shape", [(1, 1, 5, 7), (2, 6, 1, 1), (1, 40, 2, 3), (3, 5), (2, 3, 4, 5, 6)])
def test_unusual_shapes(shape):
    x = np.random.default_rng(1).standard_normal(shape)
    check(x, reference(torch.from_numpy(x), 2, 3.0).numpy(), 2, 3.0, 1.0, 1, REFERENCE64)


def test_the_channel_axis_may_be_any_but_the_batch():
    x = np.random.default_rng(2).standard_normal((2, 3, 4, 5, 6))  # N, T, C, H, W
    check(x, reference(torch.from_numpy(x), 2, 3.0, axis=2).numpy(), 2, 3.0, 1.0, 2, REFERENCE64)


def test_empty_batches_pass_through():
    assert reference(torch.empty(0, 4, 8, 8)).shape == (0, 4, 8, 8)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_poisoned_sample_is_nan_and_leaves_the_others_alone(poison):
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    clean = reference(x, 2, 2.0)
    x[1, 2, 3, 3] = poison
    y = reference(x, 2, 2.0)
    assert y[1].isnan().all()
    torch.testing.assert_close(y[[0, 2]], clean[[0, 2]], rtol=0, atol=0)


def test_a_batch_gives_what_its_samples_give_alone():
    x = torch.randn(4, 6, 7, 9, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([reference(sample[None], 2, 3.0, 0.9) for sample in x])
    torch.testing.assert_close(reference(x, 2, 3.0, 0.9), alone, rtol=1e-6, atol=1e-6)


def test_memory_layout_is_kept():
    x = torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last)
    assert reference(x).stride() == x.stride()


def test_autocast_does_not_reach_inside(kernels):
    x = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.ops.asvp.perturb(x, 2, 3.0, 1.0, 1)
        plain = reference(x, 2, 3.0)
    check(x.numpy(), y.numpy(), 2, 3.0, 1.0, 1, REFERENCE32)
    check(x.numpy(), plain.numpy(), 2, 3.0, 1.0, 1, REFERENCE32)


def test_gain_one_changes_nothing():
    x = torch.randn(2, 8, 6, 5)
    assert torch.equal(reference(x, 3, 1.0), x)


@pytest.mark.parametrize(
    "attributes",
    [
        {"rank": 0},
        {"rank": -1},
        {"gain": 0.0},
        {"gain": -2.0},
        {"gain": float("nan")},
        {"gain": float("inf")},
        {"energy": 0.0},
        {"energy": 1.5},
        {"energy": float("nan")},
        {"axis": 0},
        {"axis": 4},
    ],
)
def test_attributes_out_of_range_are_refused_by_name(attributes):
    (name,) = attributes
    with pytest.raises(asvp_export.InputError, match=name):
        reference(torch.randn(1, 3, 4, 4), **attributes)


def test_integer_maps_are_refused():
    with pytest.raises(asvp_export.InputError, match="int64"):
        reference(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


def samples() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    map4 = torch.randn(2, 4, 3, 3, generator=generator)
    return [map4, map4.double(), map4.to(memory_format=torch.channels_last), map4.half(), map4.bfloat16()]


@pytest.mark.parametrize("x", samples(), ids=["float32", "float64", "channels_last", "float16", "bfloat16"])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(x, grad, kernels):
    torch.library.opcheck(torch.ops.asvp.perturb.default, (x.clone().requires_grad_(grad), 2, 1.7, 0.9, 1))


@pytest.mark.parametrize(
    "shape, rank, gain, energy, axis",
    [
        ((2, 4, 3, 3), 2, 1.7, 1.0, 1),
        ((1, 6, 2, 1), 4, 2.0, 1.0, 1),
        ((2, 5, 3), 1, 0.5, 1.0, -1),
        ((1, 3, 3, 4), 3, 10.0, 0.8, -1),
        ((1, 3, 4, 4), 3, 2.0, 1.0, 1),
    ],
)
def test_gradcheck(shape, rank, gain, energy, axis, kernels):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: torch.ops.asvp.perturb(t, rank, gain, energy, axis), (x,))


def degenerate() -> dict[str, torch.Tensor]:
    dead = torch.randn(1, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    dead[:, 2:4] = 0
    repeated = torch.eye(6).reshape(1, 6, 6, 1)
    return {
        "zero": torch.zeros(1, 6, 4, 4),
        "dead channels": dead,
        "repeated": repeated,
        "ones": torch.ones(1, 6, 4, 4),
    }


@pytest.mark.parametrize("name", degenerate())
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_gradients_are_finite_on_degenerate_maps(name, rank, kernels):
    x = degenerate()[name].requires_grad_()
    torch.ops.asvp.perturb(x, rank, 3.0, 1.0, 1).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_gradient_of_a_batch_with_nan_stays_in_its_sample():
    x = torch.randn(2, 4, 3, 3)
    x[0, 0, 0, 0] = float("nan")
    x.requires_grad_()
    torch.ops.asvp.perturb(x, 1, 3.0, 1.0, 1)[1].sum().backward()
    assert x.grad is not None and x.grad[1].isfinite().all()


def test_compile_and_export_keep_the_operator_whole(kernels):
    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.ops.asvp.perturb(x * 2, 2, 1.5, 1.0, 1) + 1

    x = torch.randn(1, 4, 8, 8)
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), Net()(x))
    program = torch.export.export(Net(), (x,))
    assert "asvp.perturb.default" in str(program.graph)
    torch.testing.assert_close(program.module()(x), Net()(x))
