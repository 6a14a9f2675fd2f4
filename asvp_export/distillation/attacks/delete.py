"""Deleting nodes and inverses from the graph."""

from __future__ import annotations

import torch

from asvp_export.distillation.attacks.base import Attack
from asvp_export.distillation.victim import Activations, Victim


class Delete(Attack):
    """Outputs and features are those of the graph without any of them; under compensation its outputs are wrong."""

    name = "delete"
    title = "deletes nodes and inverses"

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        return victim.without_nodes(images, {})
