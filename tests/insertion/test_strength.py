"""How far a node moves a feature map, and how much of it no rescaling takes back, against numpy's least squares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from asvp_export.insertion.strength import EffectMeter, change
from asvp_export.operator import Perturbation
from asvp_export.operator.reference import reference

NODE = Perturbation(1, 5.0)


def maps(samples: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    clean = torch.randn(samples, 6, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return clean, reference(clean, NODE.rank, NODE.gain)


def test_the_factor_is_the_one_that_least_squares_finds():
    """Both are float64; sums of 378 products differ by their order, far less than 1e-10."""
    clean, exposed = maps(1)
    (factor,), (left,), *_ = np.linalg.lstsq(exposed.numpy().reshape(-1, 1), clean.numpy().ravel(), rcond=None)
    norm = np.linalg.norm(clean.numpy())
    measured = change(clean[0], exposed[0])
    wanted = norm, np.linalg.norm((exposed - clean).numpy()) / norm, factor, math.sqrt(left) / norm
    np.testing.assert_allclose(
        (measured.norm, measured.relative, measured.factor, measured.strength), wanted, rtol=1e-10
    )


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_a_map_that_is_only_scaled_has_no_strength(scale):
    """Each difference is within two roundings of its value: 1e-15."""
    clean, _ = maps(1)
    measured = change(clean[0], scale * clean[0])
    assert measured.relative == pytest.approx(abs(scale - 1), rel=1e-12)
    assert measured.factor == pytest.approx(1 / scale, rel=1e-12)
    assert measured.strength < 1e-15


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_map_of_no_size_has_no_figures(value):
    measured = change(torch.full((2, 3, 4), value), torch.ones(2, 3, 4))
    assert math.isnan(measured.relative) and math.isnan(measured.strength)


def test_an_effect_is_the_mean_of_the_samples_and_zero_maps_count_for_nothing():
    clean, exposed = maps()
    zero = torch.zeros_like(clean[:1])
    meter = EffectMeter({"layer": NODE, "never called": NODE})
    meter("layer", clean, exposed, exposed)
    meter("layer", zero, zero, zero)
    effects = meter.effects()
    each = [change(a, b) for a, b in zip(clean, exposed, strict=True)]
    assert effects["layer"].relative_feature_change == pytest.approx(sum(one.relative for one in each) / 3, rel=1e-12)
    assert effects["layer"].strength == pytest.approx(sum(one.strength for one in each) / 3, rel=1e-12)
    assert effects["layer"].strength < effects["layer"].strength_cap < 1
    assert effects["never called"].strength == 0


def test_the_cap_is_what_the_strength_tends_to():
    """At gain g they differ by the order of 1 / g."""
    clean, _ = maps()
    far = Perturbation(1, 1e7)
    meter = EffectMeter({"layer": far})
    meter("layer", clean, reference(clean, far.rank, far.gain), clean)
    effect = meter.effects()["layer"]
    assert effect.strength == pytest.approx(effect.strength_cap, abs=1e-6)


def test_exposed_values_that_are_not_finite_are_not_passed_over():
    clean, exposed = maps()
    exposed[1, 0, 0, 0] = math.nan
    meter = EffectMeter({"layer": NODE})
    meter("layer", clean, exposed, exposed)
    assert math.isnan(meter.effects()["layer"].strength)
