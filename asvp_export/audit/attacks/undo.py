"""Undoing the gain, with rank and gain read from the file."""

from __future__ import annotations

import torch

from asvp_export.audit.attacks.base import Attack, changed
from asvp_export.audit.victim import Seen, Victim


class Undo(Attack):
    """An SVD of the exposed map, and the leading singular values divided by the gain: exact while they lead (gain over 1)."""

    name = "undo"
    title = "undoes the gain, rank and gain known"

    def look(self, victim: Victim, images: torch.Tensor) -> Seen:
        seen = victim.shipped(images)
        maps = zip(seen["node"], victim.nodes.values(), strict=True)
        return changed(seen, [torch.ops.asvp.perturb(x, node.rank, 1 / node.gain, 1.0, node.axis) for x, node in maps])
