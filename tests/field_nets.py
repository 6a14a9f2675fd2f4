"""Restoration nets of kinds that the field has and whose callers have to guess."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Restorer(nn.Module):
    """Adds a small learnt correction to the picture."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head, self.tail = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(torch.relu(self.head(x)))

    def forward(self, x):
        return x + 0.1 * self.correction(x)


class Pyramid(Restorer):
    """The quarter, the half and the whole picture."""

    def forward(self, x):
        y = super().forward(x)
        return functional.interpolate(y, scale_factor=0.25), functional.interpolate(y, scale_factor=0.5), y


class TwoSteps(Restorer):
    """A first picture, the picture made from it, and the curve that both were made with."""

    def forward(self, x):
        curve = torch.tanh(self.correction(x))
        first = x + 0.3 * curve * x * (1 - x)
        return first, first + 0.3 * curve * first * (1 - first), curve


class Twins(Restorer):
    """Two pictures that do not depend on each other."""

    def forward(self, x):
        return x + 0.1 * self.correction(x), x - 0.1 * self.correction(x)


class WithFeatures(Restorer):
    def forward(self, x):
        y = torch.relu(self.head(x))
        return {"features": y, "restored": x + 0.1 * self.tail(y)}


class Levels(Restorer):
    """For 0..255: a bias that is nothing there, and half of the range in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.get_parameter("tail.bias"), 5.0)


class Instance(Restorer):
    """Was trained with the statistics of each picture; the stored ones are those of another world."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(8, track_running_stats=True)
        self.norm.load_state_dict(
            {"running_mean": torch.full((8,), 0.5), "running_var": torch.full((8,), 4.0)}, strict=False
        )

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(torch.relu(self.norm(self.head(x))))


class Batch(Instance):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)


class TwoAtATime(Restorer):
    """Takes one picture at a time."""

    def forward(self, x):
        assert len(x) == 1
        return super().forward(x)
