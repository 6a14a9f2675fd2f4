"""Whitening the features."""

from __future__ import annotations

import torch

from asvp_export.distillation.attacks.base import Attack, changed
from asvp_export.distillation.victim import Activations, Victim

_FLOOR = 1e-4  # of the largest variance that no node amplifies: directions below it are noise


class Whiten(Attack):
    """Each sample's channels are decorrelated and brought to variance 1 (ZCA), so that no component drowns another."""

    name = "whiten"
    title = "whitens the channels of each sample"
    original_too = True

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        return _whitened(victim, victim.shipped(images))

    def clean(self, victim: Victim, images: torch.Tensor) -> Activations:
        return _whitened(victim, victim.original(images))


def _whitened(victim: Victim, shown: Activations) -> Activations:
    features = []
    for x, node in zip(shown["exposed"], victim.nodes.values(), strict=True):
        moved = x.movedim(node.axis, 1)
        rows = moved.flatten(2).double()
        rows = rows - rows.mean(2, keepdim=True)
        values, vectors = torch.linalg.eigh(rows @ rows.mT / rows.shape[2])
        amplified = node.rank if node.rank < values.shape[1] else 0
        # Past the amplified directions: else the gain would lift the floor over the content.
        floor = values[:, -1 - amplified, None] * _FLOOR + 1e-30
        root = vectors @ torch.diag_embed((values + floor).rsqrt()) @ vectors.mT
        features.append((root @ rows).float().view(moved.shape).movedim(1, node.axis))
    return changed(shown, features)
