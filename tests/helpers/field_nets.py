"""Restoration nets of kinds that the field has and whose callers have to guess."""

from __future__ import annotations

import math

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


class Subpixels(Restorer):
    """Twice as large, for 0..255: in 0..1 the biases of the four subpixels draw a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Conv2d(8, 12, 3, padding=1)
        self.tail.load_state_dict({"bias": torch.tensor([2.0, -2.0, 2.0, -2.0]).repeat(3)}, strict=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = functional.interpolate(x, scale_factor=2, mode="bilinear")
        return large + 0.1 * functional.pixel_shuffle(self.correction(x), 2)


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


class SmallMap(Restorer):
    """Attention over a pooled map, which is empty below 16 pixels; onnxruntime divides by zero on it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.pooled = nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.head(x)
        pooled = self.pooled(functional.max_pool2d(self.down(features), 7, 3))
        gate = functional.interpolate(pooled, features.shape[-2:], mode="bilinear", align_corners=False)
        return x + 0.1 * self.tail(features * torch.sigmoid(gate))


class PadsInPython(nn.Module):
    """Pads to even sizes by numbers that Python computes, which a trace freezes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head, self.tail = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        down, right = (int(math.ceil(side / 2) * 2 - side) for side in (height, width))
        even = functional.pad(x, (0, right, 0, down), mode="replicate")
        folded = functional.pixel_unshuffle(even, 2)
        change = functional.pixel_shuffle(self.tail(torch.relu(self.head(folded))), 2)
        return (even + 0.1 * change)[..., :height, :width]


class ChannelsLast(Restorer):
    """N,H,W,C in and out, as graphs that come from TensorFlow have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MixedClamp(Restorer):
    """Clamps between a float and an int."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(super().forward(x), 0.0001, 1)
