"""A deep adaptor between student and teacher."""

from __future__ import annotations

import torch
from torch import nn

from asvp_export.distillation.attacks.base import Attack
from asvp_export.distillation.victim import Activations, Victim


class Adaptor(Attack):
    """Three convolutions instead of one: the adaptor may learn the perturbation, and the student the content."""

    name = "adaptor"
    title = "learns a deep adaptor"
    original_too = True

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        return victim.shipped(images)

    def adaptor(self, student: int, teacher: int) -> nn.Module:
        wide = 2 * teacher
        return nn.Sequential(
            nn.Conv2d(student, wide, 1),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.ReLU(),
            nn.Conv2d(wide, teacher, 1),
        )
