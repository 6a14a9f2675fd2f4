"""A scalar instead of each node."""

from __future__ import annotations

import torch

from asvp_export.distillation.attacks.base import Attack
from asvp_export.distillation.victim import Activations, Victim


class Scalar(Attack):
    """Each node becomes the multiple of its input that is nearest to what it makes of it."""

    name = "scalar"
    title = "replaces the nodes by the best scalars"

    def prepare(self, victim: Victim, images: torch.Tensor) -> None:
        self._transforms = {layer: fit.scalar() for layer, fit in victim.fits(images).items()}

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        return victim.without_nodes(images, self._transforms)
