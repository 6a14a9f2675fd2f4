"""What runs a model for calibration: nodes and weights change from run to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from asvp_export.operator import Perturbation
from asvp_export.plan.linear import Consumer, Consumers

CACHE = 2**31  # bytes of feature maps that are kept before the first node; inputs beyond run from the start

Nodes = Mapping[str, Perturbation]
Values = Mapping[str, torch.Tensor]


class CalibrationRunner(Protocol):
    """What calibration runs."""

    passes: int
    """How many forward passes were made, whole or from the first node on."""

    consumers: Consumers
    """What reads the protected tensors."""

    def value(self, name: str) -> torch.Tensor:
        """A weight of the original."""
        ...

    def outputs(self, i: int, nodes: Nodes | None = None, weights: Values | None = None) -> list[torch.Tensor]:
        """The floating outputs for input `i`; without nodes and weights those of the original.

        In PyTorch they have gradients where weights ask for them.
        """
        ...

    def maps(self, i: int) -> dict[str, list[torch.Tensor]]:
        """The clean feature maps of the layers, call by call."""
        ...

    def inputs_of(
        self, i: int, consumers: Sequence[Consumer], nodes: Nodes | None = None, weights: Values | None = None
    ) -> dict[str, list[torch.Tensor]]:
        """What the consumers read, call by call, by the names of their weights."""
        ...

    def release(self) -> None:
        """Give back the feature maps that are kept; the next run makes them again."""
        ...
