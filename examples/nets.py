"""The five example teachers' architecture: a compact residual CNN of the EDSR-baseline kind.

A state dict loads with `--arch examples/nets.py:TASK`; `TASK_student` makes the same net with half the channels, about
a quarter of the cost. Pictures are N,3,H,W float32 in 0..1; the output is not clamped. Module names: head, body.0 ...
body.7, after_body, tail.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS = 32
STUDENT = 16
BLOCKS = 8


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ChannelAttention(nn.Module):
    """Scale each channel by a gate made from the whole map's means (RCAN): the net sees exposure and haze."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class Block(nn.Module):
    """Residual block: convolution, ReLU, convolution, optionally channel attention."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        gate = [ChannelAttention(channels)] if attention else []
        first, second = conv3x3(channels, channels), conv3x3(channels, channels)
        self.branch = nn.Sequential(first, nn.ReLU(), second, *gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class ResidualCNN(nn.Module):
    """What both kinds of teacher share: head, body of residual blocks, a convolution after it, tail."""

    def __init__(self, head: nn.Module, tail: nn.Module, channels: int, attention: bool) -> None:
        super().__init__()
        self.head = head
        self.body = nn.Sequential(*(Block(channels, attention) for _ in range(BLOCKS)))
        self.after_body = conv3x3(channels, channels)
        self.tail = tail

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        features = self.head(x)
        return self.tail(features + self.after_body(self.body(features)))


class SuperResolver(ResidualCNN):
    """x2 super-resolution of any H and W: the residual is added to the bilinear enlargement."""

    def __init__(self, channels: int = CHANNELS) -> None:
        tail = nn.Sequential(conv3x3(channels, 4 * channels), nn.PixelShuffle(2), conv3x3(channels, 3))
        super().__init__(conv3x3(3, channels), tail, channels, attention=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.residual(x) + F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Restorer(ResidualCNN):
    """Restoration at half the resolution, H and W multiples of 2: the residual is added to the input."""

    def __init__(self, attention: bool, channels: int = CHANNELS) -> None:
        head = nn.Sequential(nn.PixelUnshuffle(2), conv3x3(12, channels))
        tail = nn.Sequential(conv3x3(channels, 12), nn.PixelShuffle(2))
        super().__init__(head, tail, channels, attention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.residual(x)


def sr_x2() -> SuperResolver:
    """x2 super-resolution."""
    return SuperResolver()


def lowlight() -> Restorer:
    """Low-light enhancement."""
    return Restorer(attention=True)


def underwater() -> Restorer:
    """Underwater colour restoration."""
    return Restorer(attention=True)


def dehaze() -> Restorer:
    """Dehazing."""
    return Restorer(attention=True)


def derain() -> Restorer:
    """Deraining."""
    return Restorer(attention=False)


TASKS = {"sr_x2": sr_x2, "lowlight": lowlight, "underwater": underwater, "dehaze": dehaze, "derain": derain}


def sr_x2_student() -> SuperResolver:
    """Student of `sr_x2`."""
    return SuperResolver(STUDENT)


def lowlight_student() -> Restorer:
    """Student of `lowlight`."""
    return Restorer(True, STUDENT)


def underwater_student() -> Restorer:
    """Student of `underwater`."""
    return Restorer(True, STUDENT)


def dehaze_student() -> Restorer:
    """Student of `dehaze`."""
    return Restorer(True, STUDENT)


def derain_student() -> Restorer:
    """Student of `derain`."""
    return Restorer(False, STUDENT)
