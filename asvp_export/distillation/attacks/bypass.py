"""Reading behind the inverse."""

from __future__ import annotations

import torch

from asvp_export.distillation.attacks.base import Attack, UnavailableError, changed
from asvp_export.distillation.victim import Activations, Victim


class Bypass(Attack):
    """The student imitates what the layers' own readers get: the clean maps, where the residual gain is 1."""

    name = "bypass"
    title = "reads the maps behind the inverses"

    def prepare(self, victim: Victim, images: torch.Tensor) -> None:
        if not any(node.inverse for node in victim.nodes.values()):
            raise UnavailableError("no layer has an inverse: its readers get the exposed map")

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        shown = victim.shipped(images)
        return changed(shown, shown["readers"])
