"""Deleting the nodes, then training what is left on the shipped model's own outputs: against compensation."""

from __future__ import annotations

import torch
from torch.nn import functional

from asvp_export.distillation.attacks.base import Attack, UnavailableError
from asvp_export.distillation.victim import Activations, Victim, in_batches
from asvp_export.errors import summary
from asvp_export.teacher.model import named_outputs

_STEPS, _BATCH, _RATE, _SEED = 300, 8, 3e-4, 2510


class FineTune(Attack):
    """The shipped model gives the targets, so no labels are needed; a graph without nodes then gives clean features."""

    name = "finetune"
    title = "deletes the nodes and fine-tunes the graph on its own outputs"

    def prepare(self, victim: Victim, images: torch.Tensor) -> None:
        module = victim.deleted()
        if module is None:
            raise UnavailableError("the shipped graph is an ONNX file, which cannot be trained here")
        teacher = victim.teacher
        targets = torch.cat([victim.shipped(batch).outputs for batch in in_batches(images)])
        module.requires_grad_(True)
        optimizer = torch.optim.Adam(module.parameters(), lr=_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        generator = torch.Generator().manual_seed(_SEED)
        with torch.enable_grad():
            for _ in range(_STEPS):
                indices = torch.randint(len(images), (teacher.static_shape[0] or _BATCH,), generator=generator)
                result = module(*teacher.inputs(images[indices].to(teacher.device)))
                output = list(named_outputs(result).values())[teacher.signature.main]
                restored = teacher.signature.from_model(output)
                optimizer.zero_grad()
                try:
                    functional.mse_loss(restored, targets[indices]).backward()
                except RuntimeError as error:  # an archive made for inference, for instance, or an in-place operation
                    raise UnavailableError(f"the shipped graph cannot be trained ({summary(error)})") from error
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        module.requires_grad_(False)
        self._tuned = victim.tapped(module)

    def look(self, victim: Victim, images: torch.Tensor) -> Activations:
        return self._tuned(images)
