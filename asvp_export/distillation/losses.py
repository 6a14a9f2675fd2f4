"""How a student is made to imitate feature maps: the losses that people use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_TINY = 1e-12
_SIDE = 16  # affinities are of maps of this side at most: positions squared


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared error (FitNets: Romero et al. 2015).

    Args:
        student: [N, C, H, W], behind the adaptor.
        teacher: the same shape.
    """
    return functional.mse_loss(student, teacher)


def normalised(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The same of maps that are each divided by their own root mean square: no rescaling of a sample matters.

    Args:
        student: [N, C, H, W], behind the adaptor.
        teacher: the same shape.
    """
    return functional.mse_loss(_unit_power(student), _unit_power(teacher))


def attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of attention maps (Zagoruyko and Komodakis 2017): sums of squares over channels, by their norm.

    Args:
        student: [N, c, H, W], without an adaptor.
        teacher: [N, C, H, W].
    """
    maps = (functional.normalize(x.square().sum(1).flatten(1), dim=1) for x in (student, teacher))
    ours, theirs = maps
    return (ours - theirs).square().sum(1).mean()


def affinity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the cosines between all positions (FAKD: He et al. 2020), on maps pooled to 16 x 16.

    Args:
        student: [N, c, H, W], without an adaptor.
        teacher: [N, C, H, W].
    """
    ours, theirs = (_affinities(x) for x in (student, teacher))
    return (ours - theirs).abs().mean()


def _unit_power(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean((1, 2, 3), keepdim=True) + _TINY).sqrt()


def _affinities(x: torch.Tensor) -> torch.Tensor:
    side = (min(_SIDE, x.shape[2]), min(_SIDE, x.shape[3]))
    rows = functional.normalize(functional.adaptive_avg_pool2d(x, side).flatten(2), dim=1)  # [N, C, L]
    return rows.transpose(1, 2) @ rows


LOSSES: dict[str, LossFunction] = {"mse": mse, "normalised": normalised, "attention": attention, "affinity": affinity}
ADAPTED = ("mse", "normalised")
"""The losses whose student needs as many channels as the teacher, and so an adaptor."""
