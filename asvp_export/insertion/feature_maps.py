"""What is seen of a feature map before a node, behind it, and by the layer's readers: one channel, small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from asvp_export.insertion.strength import change
from asvp_export.operator import Perturbation

MOST_LAYERS = 24
MOST_SIDE = 128  # pixels

_PATCHES = (1, 2, 4, 8)  # pixels a side that a token may stand for


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """One channel of one sample at one layer, and figures over all channels of that sample."""

    channel: int
    """The channel in which the clean map varies most, from 0."""

    channels: int
    """How many there are."""

    size: tuple[int, int]
    """Height and width of the map."""

    step: int
    """Each value is the mean of step x step positions, fewer at the lower and right border; 1: the map itself."""

    clean: np.ndarray
    """[h, w] float64, at most 128 a side: what the layer made."""

    exposed: np.ndarray
    """The same of the exposed map."""

    readers: np.ndarray | None
    """The same of the residual map; None where there is no inverse, and the readers get the exposed map."""

    factor: float
    """The one factor on the whole exposed map that brings it nearest to the clean one; NaN where there is none."""

    exposed_change: float
    """||F' - F|| / ||F||, F the clean and F' the exposed map; NaN where F is zero or a value is not finite."""

    readers_change: float
    """The same of the residual map."""

    strength: float
    """||factor F' - F|| / ||F||."""

    @property
    def left_over(self) -> np.ndarray:
        """[h, w]: what stays of the difference between exposed and clean map at the best factor."""
        return self.factor * self.exposed - self.clean


class FeatureMapMeter:
    """An observer for `asvp_export.insertion.protected.observed`: the first sample of the first call of each layer.

    Args:
        nodes: the protected layers.
        image: height and width of the input, by which tokens are laid out.
        batch: how many images it has.
    """

    def __init__(self, nodes: dict[str, Perturbation], image: tuple[int, int], batch: int) -> None:
        self._nodes, self._image, self._batch = nodes, image, batch
        self.by_layer: dict[str, FeatureMaps | None] = {}
        """Of the first 24 layers; None where the map does not lie on a grid of height and width."""

    def __call__(self, layer: str, clean: torch.Tensor, exposed: torch.Tensor, residual: torch.Tensor) -> None:
        """Take one call of a layer in: its clean, its exposed and its residual feature map, [N, ...]."""
        if layer in self.by_layer or len(self.by_layer) == MOST_LAYERS:
            return
        node = self._nodes[layer]
        grid = _grid(clean, node.axis, self._image, self._batch)
        maps = (clean, exposed) if node.inverse is None else (clean, exposed, residual)
        # One after the other in float64: a layer's map may be large.
        self.by_layer[layer] = grid and _measured([_of_first(x, node.axis, grid) for x in maps])


def _grid(x: torch.Tensor, axis: int, image: tuple[int, int], batch: int) -> tuple[int, int] | None:
    """Height and width that the positions of a feature map lie on; tokens on those of the image's patches."""
    places = tuple(x.movedim(axis, 1).shape[2:])
    if len(places) == 2:
        return places
    if len(places) != 1 or x.shape[0] != batch:  # windows are more than the images
        return None
    height, width = image
    grids = [(height // side, width // side) for side in _PATCHES if height % side == 0 and width % side == 0]
    return next((grid for grid in grids if math.prod(grid) == places[0]), None)


def _of_first(x: torch.Tensor, axis: int, grid: tuple[int, int]) -> torch.Tensor:
    """The first sample, [C, H, W]."""
    return x[:1].movedim(axis, 1)[0].detach().reshape(-1, *grid)


def _measured(maps: list[torch.Tensor]) -> FeatureMaps:
    clean = maps[0].double()
    of_exposed, *of_residual = (change(clean, x) for x in maps[1:])
    channel = int(clean.flatten(1).var(dim=1, correction=0).nan_to_num().argmax())
    step = math.ceil(max(clean.shape[1:]) / MOST_SIDE)
    shown = [avg_pool2d(x[channel].double()[None], step, ceil_mode=True)[0].cpu().numpy() for x in maps]
    return FeatureMaps(
        channel=channel,
        channels=len(clean),
        size=(clean.shape[1], clean.shape[2]),
        step=step,
        clean=shown[0],
        exposed=shown[1],
        readers=shown[2] if len(shown) > 2 else None,
        factor=of_exposed.factor,
        exposed_change=of_exposed.relative,
        readers_change=(of_residual or [of_exposed])[0].relative,
        strength=of_exposed.strength,
    )
