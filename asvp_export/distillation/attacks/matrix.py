"""A fixed 1x1 convolution in the place of each node."""

from __future__ import annotations

import torch

from asvp_export.distillation.attacks.base import Attack, changed
from asvp_export.distillation.victim import Activations, Victim


class Matrix(Attack):
    """Each node becomes the best static 1x1 map; the student gets the features that go into the map."""

    name = "matrix"
    title = "replaces the nodes by the best 1x1 maps"

    def prepare(self, victim: Victim, images: torch.Tensor) -> None:
        self._maps = {layer: fit.matrix() for layer, fit in victim.fits(images).items()}

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        shown = victim.stripped(images, self._maps)
        return changed(shown, shown["before"])
