"""Singular values of a feature map before and after a node."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from asvp_export.operator import Perturbation

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
    """An observer for `asvp_export.graph.protect.observed` that takes the first sample of the first call of each layer."""

    def __init__(self, nodes: dict[str, Perturbation]) -> None:
        self._axes = {name: node.axis for name, node in nodes.items()}
        self.found: dict[str, SingularValues] = {}
        """By layer; without those whose feature map has more than 2048 channels and positions."""

    def __call__(self, layer: str, clean: torch.Tensor, exposed: torch.Tensor, residual: torch.Tensor) -> None:
        """Take one call of a layer in: its clean, its exposed and its residual feature map, [N, ...]."""
        maps = [x.movedim(self._axes[layer], 1)[0].flatten(1) for x in (clean, exposed)]
        if layer not in self.found and min(maps[0].shape) <= MOST:
            self.found[layer] = SingularValues(*map(_singular_values, maps))


def _singular_values(matrix: torch.Tensor) -> tuple[float, ...]:
    """By the Gram matrix, in float64: what lies under 1e-8 of the largest is rounding."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    gram = wide @ wide.T
    if not torch.isfinite(gram).all():
        return (float("nan"),) * len(gram)
    return tuple(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0).tolist())
