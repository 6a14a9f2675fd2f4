"""Undoing the gain, with rank and gain read from the file."""

from __future__ import annotations

import torch

from asvp_export.distillation.attacks.base import Attack, changed
from asvp_export.distillation.victim import Activations, Victim
from asvp_export.operator import Perturbation


class Undo(Attack):
    """The leading singular values of the exposed map divided by the gain: exact while they lead (gain over 1).

    Where an energy decides how many were multiplied, it is the number that explains the exposed map.
    """

    name = "undo"
    title = "undoes the gain, rank and gain known"

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        shown = victim.shipped(images)
        maps = zip(shown["exposed"], victim.nodes.values(), strict=True)
        return changed(shown, [_undone(x, node) for x, node in maps])


def _undone(x: torch.Tensor, node: Perturbation) -> torch.Tensor:
    if node.energy == 1:
        return torch.ops.asvp.perturb(x, node.rank, 1 / node.gain, 1.0, node.axis)
    ranks = range(1, min(node.rank, x.shape[node.axis]) + 1)
    candidates = torch.stack([torch.ops.asvp.perturb(x, rank, 1 / node.gain, 1.0, node.axis) for rank in ranks])
    exposed = torch.stack([torch.ops.asvp.perturb(clean, **node.attributes()) for clean in candidates])
    best = (exposed - x).flatten(2).norm(dim=2).argmin(0)
    return candidates[best, torch.arange(len(x), device=x.device)]
