"""What an attacker is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from asvp_export.distillation.victim import Activations, Victim


class Attack(ABC):
    """What an attacker does to the shipped model before, or while, their student imitates it.

    An attacker may use whatever the shipped file shows on any picture, its graph and its weights; never the original.
    """

    name: ClassVar[str]
    """One word, as it stands in the name of a row."""

    title: ClassVar[str]
    """What they do, for a table."""

    original_too: ClassVar[bool] = False
    """Whether the same can be done to clean features: what is lost is then measured against that."""

    def prepare(self, victim: Victim, images: torch.Tensor) -> None:  # noqa: B027 most need nothing
        """Learn from the shipped model what is needed.

        Args:
            victim: what they hold.
            images: [N, C, h, w], their own pictures as the model takes them.

        Raises:
            UnavailableError: this attacker cannot be run on such a model; the message says why.
        """

    @abstractmethod
    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        """What the student is to imitate, for one batch.

        Returns:
            Outputs and, at the tap "exposed", features. `victim.shipped(images)` is what the model shows by itself.
        """

    def clean(self, victim: Victim, images: torch.Tensor) -> Activations:
        """The same on the original, for an attacker with `original_too`."""
        return victim.original(images)

    def adaptor(self, student: int, teacher: int) -> nn.Module | None:
        """What stands between the student's map and the loss; None: a 1x1 convolution, where the loss needs one.

        Args:
            student: channels of the student's feature map.
            teacher: channels of the teacher's.
        """
        return None


class UnavailableError(Exception):
    """An attacker cannot be run on this model; the message says why."""


def changed(activations: Activations, features: list[torch.Tensor]) -> Activations:
    """The same outputs with other exposed maps."""
    return Activations(activations.outputs, {"exposed": features})
