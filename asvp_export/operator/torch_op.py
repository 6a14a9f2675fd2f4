"""Registration of torch.ops.asvp.perturb: implementation, fake kernel and autograd."""

from __future__ import annotations

from typing import Any

import torch

from asvp_export.operator import native
from asvp_export.operator.reference import check_map, reference, reference_backward
from asvp_export.operator.schema import Perturbation


# PyTorch leaves out arguments that have their default, so each implementation below states the defaults again.
@torch.library.custom_op("asvp::perturb", mutates_args=())
def perturb(
    x: torch.Tensor,
    rank: int = Perturbation.rank,
    gain: float = Perturbation.gain,
    energy: float = Perturbation.energy,
    axis: int = Perturbation.axis,
) -> torch.Tensor:
    """The operator on a feature map; see `asvp_export.operator.reference.reference`."""
    return reference(x, rank, gain, energy, axis)


@perturb.register_kernel(("cpu", "cuda"))
def _(
    x: torch.Tensor,
    rank: int = Perturbation.rank,
    gain: float = Perturbation.gain,
    energy: float = Perturbation.energy,
    axis: int = Perturbation.axis,
) -> torch.Tensor:
    """By the native kernel, where there is one; by the reference elsewhere."""
    if not native.takes(x):
        return reference(x, rank, gain, energy, axis)
    node = Perturbation(rank, gain, energy, axis)
    check_map(x, axis)
    return native.perturb(x, node)


# An operator of its own, so that torch.compile sees a gradient it cannot break open at data-dependent branches.
@torch.library.custom_op("asvp::perturb_backward", mutates_args=())
def perturb_backward(
    grad: torch.Tensor, x: torch.Tensor, rank: int, gain: float, energy: float, axis: int
) -> torch.Tensor:
    """The operator's gradient; see `asvp_export.operator.reference.reference_backward`."""
    return reference_backward(grad, x, rank, gain, energy, axis)


@perturb.register_fake
def _(
    x: torch.Tensor,
    rank: int = Perturbation.rank,
    gain: float = Perturbation.gain,
    energy: float = Perturbation.energy,
    axis: int = Perturbation.axis,
) -> torch.Tensor:
    return torch.empty_like(x)


@perturb_backward.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, rank: int, gain: float, energy: float, axis: int) -> torch.Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, *ctx.attributes = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return perturb_backward(grad, x, *ctx.attributes), None, None, None, None


perturb.register_autograd(_backward, setup_context=_setup)
