"""What the students of an audit learn from: outputs and features of each teacher, computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.data import Patches
from asvp_export.distillation.victim import Activations, Victim, in_batches, laid_out
from asvp_export.teacher.model import Teacher

_SEED = 2510


@dataclass(frozen=True, eq=False)
class DistillationTargets:
    """What students of one teacher learn from: targets for all patches, in their order."""

    outputs: np.ndarray
    """[N, C, H, W] float32 in 0..1, not clipped."""

    features: Mapping[str, Sequence[np.ndarray]]
    """Tap to one [N, C, H, W] float32 a protected layer."""


def clean_targets(patches: Patches) -> DistillationTargets:
    """What a student without a teacher learns from: the clean pictures."""
    return DistillationTargets(patches.clean.numpy(), {})


def distillation_targets(
    victim: Victim, patches: Patches, teacher: str, attack: str, taps: Sequence[str]
) -> DistillationTargets:
    """Run a teacher, through an attacker where there is one, over all patches.

    Args:
        victim: the models.
        patches: of the attacker.
        teacher: "original", "shipped", "scaled" or "noise".
        attack: name of the attacker, or "".
        taps: which features are wanted; those that this model does not have are left out.

    Raises:
        UnavailableError: the attacker cannot be run on this model.
    """
    if attack:
        attacks()[attack].prepare(victim, patches.inputs)
    run = _teacher_function(victim, patches.inputs, teacher, attack)
    outputs: list[np.ndarray] = []
    features: dict[str, list[list[np.ndarray]]] = {tap: [[] for _ in victim.nodes] for tap in taps}
    axes = [node.axis for node in victim.nodes.values()]
    for batch in in_batches(patches.inputs):
        activations = run(batch)
        outputs.append(as_unit(victim.teacher, activations.outputs))
        features = {tap: layers for tap, layers in features.items() if tap in activations.features}
        if "next" in features and any(x.ndim not in (3, 4) for x in activations["next"]):
            del features["next"]  # such as a gate's: one value a channel
        for tap, layers in features.items():
            for batches, axis, x in zip(layers, axes, activations[tap], strict=True):
                batches.append(laid_out(x, axis).cpu().numpy())
    arrays = {tap: [np.concatenate(batches) for batches in layers] for tap, layers in features.items()}
    return DistillationTargets(np.concatenate(outputs), arrays)


def as_unit(teacher: Teacher, outputs: torch.Tensor) -> np.ndarray:
    """Outputs of the teacher as pictures in 0..1."""
    return teacher.data_range.to_unit(outputs.float().cpu().numpy())


def _teacher_function(
    victim: Victim, images: torch.Tensor, teacher: str, attack: str
) -> Callable[[torch.Tensor], Activations]:
    if attack:
        attacker = attacks()[attack]
        return lambda batch: (attacker.clean if teacher == "original" else attacker.look)(victim, batch)
    if teacher in ("original", "shipped"):
        return victim.original if teacher == "original" else victim.shipped
    changes = [_change(victim, images, layer) for layer in range(len(victim.nodes))] if teacher == "scaled" else []
    generator = torch.Generator().manual_seed(_SEED)

    def control(batch: torch.Tensor) -> Activations:
        shipped, clean = victim.shipped(batch), victim.original(batch)["exposed"]
        if teacher == "scaled":
            features = [x * (1 + change) for x, change in zip(clean, changes, strict=True)]
        else:
            features = [_noisy(x, y, generator) for x, y in zip(clean, shipped["exposed"], strict=True)]
        return Activations(shipped.outputs, {"exposed": features})

    return control


def _change(victim: Victim, images: torch.Tensor, layer: int) -> float:
    """||F' - F|| / ||F|| over all images, F the clean and F' the exposed feature map."""
    difference, power = 0.0, 0.0
    for batch in in_batches(images):
        clean, exposed = victim.original(batch)["exposed"][layer], victim.shipped(batch)["exposed"][layer]
        difference += float((exposed.to(clean.device).double() - clean.double()).square().sum())
        power += float(clean.double().square().sum())
    return (difference / power) ** 0.5 if power else 0.0


def _noisy(clean: torch.Tensor, exposed: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise as large, sample by sample, as the exposed map is away from the clean one."""
    axes = tuple(range(1, clean.ndim))
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    size = (exposed.to(clean.device) - clean).square().sum(axes, keepdim=True).sqrt()
    return clean + noise * size / noise.square().sum(axes, keepdim=True).sqrt()
