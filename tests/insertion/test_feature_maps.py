"""What is kept of a feature map to be drawn: the channel that varies most, small, and figures over the whole map."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from asvp_export.insertion.feature_maps import MOST_LAYERS, FeatureMapMeter, FeatureMaps
from asvp_export.insertion.protected import exposed_and_residual
from asvp_export.operator import Perturbation
from tests.helpers.feature_maps import expected

NODE = Perturbation(1, 5.0, residual=2.0)


def seen(clean: torch.Tensor, node: Perturbation = NODE, image=(12, 20), batch=2) -> FeatureMaps | None:
    meter = FeatureMapMeter({"layer": node}, image, batch)
    meter("layer", clean, *exposed_and_residual(clean, node))
    return meter.by_layer["layer"]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1


@pytest.mark.parametrize(("size", "step"), [((12, 20), 1), ((128, 5), 1), ((129, 40), 2), ((300, 257), 3)])
def test_the_map_is_that_of_the_first_sample_made_small_by_means(size, step):
    """In float64 the two differ by the order of their sums: far less than 1e-9."""
    clean = random(2, 6, *size) * torch.arange(1.0, 7).view(6, 1, 1).roll(3, 0)
    exposed, residual = exposed_and_residual(clean, NODE)
    wanted = expected([one[0].numpy() for one in (clean, exposed, residual)], step)
    maps = seen(clean)
    assert maps and maps.readers is not None
    assert (maps.channel, maps.channels, maps.size, maps.step) == (wanted.channel, 6, size, step)
    assert max(maps.clean.shape) <= 128
    for found, one in zip((maps.clean, maps.exposed, maps.readers), wanted.maps, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-9, atol=1e-9)
    figures = maps.factor, maps.exposed_change, maps.readers_change, maps.strength
    np.testing.assert_allclose(figures, (wanted.factor, *wanted.changes, wanted.strength), rtol=1e-9)
    np.testing.assert_allclose(maps.left_over, wanted.factor * wanted.maps[1] - wanted.maps[0], atol=1e-9)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_tokens_lie_as_the_images_patches_do(side):
    grid = 12 // side, 20 // side
    clean = random(2, 7, *grid)
    tokens = seen(clean.flatten(2).transpose(1, 2), Perturbation(1, 5.0, axis=-1))
    maps = seen(clean, Perturbation(1, 5.0))
    assert tokens and maps and tokens.size == grid and tokens.readers is None
    np.testing.assert_allclose(tokens.exposed, maps.exposed, rtol=1e-9)
    last = seen(clean.movedim(1, -1), Perturbation(1, 5.0, axis=-1))
    assert last and last.size == grid
    np.testing.assert_allclose(last.exposed, maps.exposed, rtol=1e-9)


@pytest.mark.parametrize("shape", [(8, 7, 60), (2, 7, 61), (2, 7), (2, 7, 3, 4, 5)], ids=str)
def test_a_map_that_lies_on_no_grid_is_said_to(shape):
    """Windows (more of them than images), tokens with one more, vectors, volumes."""
    assert seen(random(*shape)) is None


def test_the_first_call_of_the_first_layers_is_kept():
    nodes = {str(i): NODE for i in range(MOST_LAYERS + 3)}
    meter = FeatureMapMeter(nodes, (12, 20), 1)
    for factor in (1.0, 2.0):
        for name in nodes:
            meter(name, *[factor * random(1, 3, 12, 20)] * 3)
    assert list(meter.by_layer) == list(nodes)[:MOST_LAYERS]
    first = random(1, 3, 12, 20)[0].numpy()
    assert all(one and np.array_equal(one.clean, first[one.channel]) for one in meter.by_layer.values())


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_maps_without_figures_are_kept_all_the_same(value):
    meter = FeatureMapMeter({"layer": NODE}, (12, 20), 1)
    meter("layer", *[torch.full((1, 3, 12, 20), value)] * 3)
    maps = meter.by_layer["layer"]
    assert maps and np.array_equal(maps.clean, np.full((12, 20), value), equal_nan=True)
    assert all(math.isnan(one) for one in (maps.factor, maps.exposed_change, maps.readers_change, maps.strength))
