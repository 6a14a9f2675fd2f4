"""Reading behind the inverse."""

from __future__ import annotations

import torch

from asvp_export.audit.attacks.base import Attack, UnavailableError, changed
from asvp_export.audit.victim import Seen, Victim


class Bypass(Attack):
    """The student imitates what the layers' own readers get: with a residual gain of 1 the clean maps, beside clean outputs."""

    name = "bypass"
    title = "reads the maps behind the inverses"

    def prepare(self, victim: Victim, images: torch.Tensor) -> None:
        if not any(node.inverse for node in victim.nodes.values()):
            raise UnavailableError("no layer has an inverse: its readers get the exposed map")

    def look(self, victim: Victim, images: torch.Tensor) -> Seen:
        seen = victim.shipped(images)
        return changed(seen, seen["readers"])
