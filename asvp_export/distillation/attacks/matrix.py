"""A fixed 1x1 convolution instead of each node."""

from __future__ import annotations

import torch

from asvp_export.distillation.attacks.base import Attack, changed
from asvp_export.distillation.victim import Activations, Victim


class Matrix(Attack):
    """Each node becomes the best fixed 1x1 convolution; the student gets the features that go into it."""

    name = "matrix"
    title = "replaces the nodes by the best 1x1 maps"

    def prepare(self, victim: Victim, images: torch.Tensor) -> None:
        self._transforms = {layer: fit.matrix() for layer, fit in victim.fits(images).items()}

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        shown = victim.without_nodes(images, self._transforms)
        return changed(shown, shown["before"])
