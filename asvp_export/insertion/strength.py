"""How much each node changes its feature map, and how much of that a rescaling cannot undo."""

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


class EffectMeter:
    """An observer for `asvp_export.insertion.protected.observed` that gathers a NodeEffect a layer."""

    def __init__(self, nodes: dict[str, Perturbation]) -> None:
        self._gains = {name: node.gain for name, node in nodes.items()}
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])

    def __call__(self, layer: str, clean: torch.Tensor, exposed: torch.Tensor, residual: torch.Tensor) -> None:
        """Take one call of a layer in: its clean, its exposed and its residual feature map, [N, ...]."""
        for before, after in zip(clean.double().flatten(1), exposed.double().flatten(1), strict=True):
            power = float(before @ before)
            if not math.isfinite(power) or power == 0:
                continue
            change = float((after - before).square().sum()) / power
            aligned = float(before @ after) ** 2 / (power * float(after @ after))
            share = change / (self._gains[layer] - 1) ** 2 if self._gains[layer] != 1 else math.nan
            for i, value in enumerate((1.0, change**0.5, max(0.0, 1 - aligned) ** 0.5, (1 - min(share, 1.0)) ** 0.5)):
                self._sums[layer][i] += value

    def effects(self) -> dict[str, NodeEffect]:
        """The effect of each node; zero where every sample was zero."""
        effects = {}
        for layer in self._gains:
            count, *totals = self._sums[layer]
            effects[layer] = NodeEffect(*(total / max(count, 1.0) for total in totals))
        return effects
