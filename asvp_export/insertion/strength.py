"""How much each node changes its feature map, and how much of that a rescaling cannot undo: its strength."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch

from asvp_export.operator import Perturbation


@dataclass(frozen=True)
class NodeEffect:
    """Means over all samples that passed the node."""

    relative_feature_change: float
    """||F' - F|| / ||F||, with F the clean and F' the exposed feature map."""

    strength: float
    """min over s of ||s F' - F|| / ||F|| = sqrt(1 - <F, F'>^2 / (||F||^2 ||F'||^2)); 0: normalising removes all."""

    strength_cap: float
    """What the strength tends to as the gain grows: sqrt(1 - share of the amplified s_i^2); NaN for a gain of 1."""


@dataclass(frozen=True)
class Change:
    """What a node does to one sample's feature map; NaN where F is zero or not finite."""

    norm: float
    """||F||, with F the clean and F' the exposed feature map."""

    relative: float
    """||F' - F|| / ||F||."""

    factor: float
    """s = <F, F'> / ||F'||^2, the one factor on F' that brings it nearest to F; NaN where F' is zero."""

    strength: float
    """||s F' - F|| / ||F||."""


def change(clean: torch.Tensor, exposed: torch.Tensor) -> Change:
    """Compare two feature maps of one sample, of one shape, in float64."""
    clean, exposed = clean.double(), exposed.double()
    power, power_exposed, product = (
        float((a * b).sum()) for a, b in ((clean, clean), (exposed, exposed), (clean, exposed))
    )
    norm = math.sqrt(power)
    factor = product / power_exposed if 0 < power_exposed < math.inf else math.nan

    def share(difference: torch.Tensor) -> float:
        return math.sqrt(float(difference.square().sum()) / power) if 0 < power < math.inf else math.nan

    return Change(norm, share(exposed - clean), factor, share(factor * exposed - clean))


class EffectMeter:
    """An observer for `asvp_export.insertion.protected.observed` that gathers a NodeEffect a layer."""

    def __init__(self, nodes: dict[str, Perturbation]) -> None:
        self._gains = {name: node.gain for name, node in nodes.items()}
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])

    def __call__(self, layer: str, clean: torch.Tensor, exposed: torch.Tensor, residual: torch.Tensor) -> None:
        """Take one call of a layer in: its clean, its exposed and its residual feature map, [N, ...]."""
        for before, after in zip(clean, exposed, strict=True):
            of_sample = change(before, after)
            if not 0 < of_sample.norm < math.inf:
                continue
            gain = self._gains[layer]
            share = (of_sample.relative / (gain - 1)) ** 2 if gain != 1 else math.nan
            cap = (1 - min(share, 1.0)) ** 0.5
            for i, value in enumerate((1.0, of_sample.relative, of_sample.strength, cap)):
                self._sums[layer][i] += value

    def effects(self) -> dict[str, NodeEffect]:
        """The effect of each node; zero where every sample was zero."""
        effects = {}
        for layer in self._gains:
            count, *totals = self._sums[layer]
            effects[layer] = NodeEffect(*(total / max(count, 1.0) for total in totals))
        return effects
