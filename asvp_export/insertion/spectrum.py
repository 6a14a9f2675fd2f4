"""Singular values of a feature map before and after a node."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from asvp_export.operator import Perturbation
from asvp_export.operator.spectrum import squared_singular_values

# The Gram matrix is as wide as the smaller side of the feature map; its eigenvalues take a second at this size.
MOST = 2048


@dataclass(frozen=True)
class SingularValues:
    """Of one sample at one layer, the largest first."""

    before: tuple[float, ...]
    """Of the clean feature map; NaN where it was not finite."""

    after: tuple[float, ...]
    """Of the exposed one."""


class SpectrumMeter:
    """An observer for `asvp_export.insertion.protected.observed`: the first sample of the first call of each layer."""

    def __init__(self, nodes: dict[str, Perturbation]) -> None:
        self._axes = {name: node.axis for name, node in nodes.items()}
        self.by_layer: dict[str, SingularValues] = {}
        """By layer; without those whose feature map has more than 2048 channels and positions."""

    def __call__(self, layer: str, clean: torch.Tensor, exposed: torch.Tensor, residual: torch.Tensor) -> None:
        """Take one call of a layer in: its clean, its exposed and its residual feature map, [N, ...]."""
        axis = self._axes[layer]
        channels = clean.shape[axis]
        if layer not in self.by_layer and min(channels, clean[0].numel() // channels) <= MOST:
            self.by_layer[layer] = SingularValues(_of_first(clean, axis), _of_first(exposed, axis))


def _of_first(x: torch.Tensor, axis: int) -> tuple[float, ...]:
    """Of the first sample; what lies under 1e-8 of the largest is rounding."""
    return tuple(squared_singular_values(x[:1], axis)[0].sqrt().tolist())
