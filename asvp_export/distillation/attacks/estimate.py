"""Undoing the gain, with rank and gain guessed from the spectrum of the features alone."""

from __future__ import annotations

import math

import torch

from asvp_export.distillation.attacks.base import Attack, changed
from asvp_export.distillation.victim import Activations, Victim, in_batches
from asvp_export.operator.spectrum import squared_singular_values

_LARGEST_RANK = 16  # the largest rank that is looked for
_NOISE = 1e-6  # of the largest singular value: what is below it is rounding, and a fall to there tells nothing


class Estimate(Attack):
    """The rank is where the mean log spectrum falls most steeply; the gain is that fall beyond the next one's."""

    name = "estimate"
    title = "undoes the gain, rank and gain estimated"

    def prepare(self, victim: Victim, images: torch.Tensor) -> None:
        logs: dict[str, list[torch.Tensor]] = {layer: [] for layer in victim.nodes}
        for batch in in_batches(images):
            for (layer, node), x in zip(victim.nodes.items(), victim.shipped(batch)["exposed"], strict=True):
                values = squared_singular_values(x, node.axis)
                logs[layer].append(torch.maximum(values, values[:, :1] * _NOISE**2 + 1e-300).log() / 2)
        self._estimates = {layer: _rank_and_gain(torch.cat(batches).mean(0)) for layer, batches in logs.items()}

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        shown, features = victim.shipped(images), []
        for x, (layer, node) in zip(shown["exposed"], victim.nodes.items(), strict=True):
            rank, gain = self._estimates[layer]
            features.append(torch.ops.asvp.perturb(x, rank, 1 / gain, 1.0, node.axis))
        return changed(shown, features)


def _rank_and_gain(spectrum: torch.Tensor) -> tuple[int, float]:
    """From [C] mean logarithms of the singular values, descending."""
    above_noise = int((spectrum > spectrum[0] + math.log(_NOISE) + 1).sum())
    falls = (spectrum[:-1] - spectrum[1:])[: max(0, min(_LARGEST_RANK, len(spectrum) // 2, above_noise - 1))]
    if len(falls) < 2:
        return 1, 1.0
    rank = int(falls.argmax())
    next_fall = falls[rank + 1] if rank + 1 < len(falls) else falls.median()
    return rank + 1, max(1.0, float((falls[rank] - next_fall).exp()))
