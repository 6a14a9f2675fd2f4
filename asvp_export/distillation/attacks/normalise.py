"""Normalising each channel of each sample."""

from __future__ import annotations

import torch

from asvp_export.distillation.attacks.base import Attack, changed
from asvp_export.distillation.victim import Activations, Victim


class Normalise(Attack):
    """Instance normalisation: the student imitates maps of mean 0 and deviation 1 in each channel."""

    name = "normalise"
    title = "normalises each channel of each sample"
    original_too = True

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        return _normalised(victim, victim.shipped(images))

    def clean(self, victim: Victim, images: torch.Tensor) -> Activations:
        return _normalised(victim, victim.original(images))


def _normalised(victim: Victim, shown: Activations) -> Activations:
    features = []
    for x, node in zip(shown["exposed"], victim.nodes.values(), strict=True):
        rows = x.movedim(node.axis, 1)
        axes = tuple(range(2, x.ndim))
        rows = (rows - rows.mean(axes, keepdim=True)) / (rows.var(axes, correction=0, keepdim=True) + 1e-12).sqrt()
        features.append(rows.movedim(1, node.axis))
    return changed(shown, features)
