"""The outputs of linear layers in the form of least-squares problems."""

from __future__ import annotations

import torch

from asvp_export.plan.linear import Consumer


def as_rows(y: torch.Tensor, consumer: Consumer) -> torch.Tensor:
    """A layer's output as the problem has it: groups, positions, channels of a group."""
    if consumer.kind == "linear":
        return y.reshape(1, -1, y.shape[-1])
    return y.unflatten(1, (consumer.groups, -1)).flatten(3).permute(1, 0, 3, 2).flatten(1, 2)
