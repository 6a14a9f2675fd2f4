"""Refinement: training all weights behind the first node against the original's outputs; no labels, no new pictures."""

from __future__ import annotations

import math

import numpy as np
import torch

from asvp_export.plan.calibration import Calibration
from asvp_export.plan.search import Search, TrialResult
from asvp_export.plan.solve import Weights
from asvp_export.progress import Printer, reporter
from asvp_export.teacher.model import Teacher

STEPS = 400
_BATCH = 4  # crops a step
_RATE = 0.04  # of Adam, times the error to start from (a step disturbs by its rate); down to 0 along half a cosine
_MOST = 5e-4  # the largest rate
_LOOK = 100  # steps from one look at the held-out images to the next
_FLOOR = 1e-12  # of a squared error, relative to the squared peak: 120 dB
_SEED = 2510


def refine(
    teacher: Teacher, search: Search, trial: TrialResult, images: Calibration, progress: Printer, steps: int = STEPS
) -> Weights:
    """Train what lies behind the first node so that the outputs come closer to the original's.

    The loss is the mean logarithm of the crops' squared errors, since the worst image counts in dB and not the loudest.

    Args:
        teacher: a PyTorch module.
        search: measures on the held-out images.
        trial: the nodes, and the weights to start from.
        images: whose crops it trains on, the smaller half of them.
        progress: called with a line at each step.
        steps: of Adam, four crops each.

    Returns:
        The weights that the held-out images liked best; those of the trial where training did not help.
    """
    behind = {name: search.runner.value(name) for name in search.runner.consumers.behind} | dict(trial.weights)
    trained = {name: weight.detach().clone().requires_grad_(True) for name, weight in behind.items()}
    rate = min(_RATE * 10 ** (-trial.psnr / 20), _MOST)
    optimizer = torch.optim.Adam(trained.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(_SEED)
    area = [crop[teacher.signature.image_index].numel() for crop in images.crops]
    small = sorted(range(len(area)), key=lambda i: area[i])[: (len(area) + 1) // 2]  # twice the steps in the same time
    originals = {i: search.runner.outputs(i) for i in small}
    best, weights = trial.psnr, dict(trial.weights)
    progress(f"refining {len(trained)} weights, {steps} steps")
    with reporter(progress).track(range(steps), "refining") as tracked:
        for step in tracked:
            optimizer.zero_grad()
            for i in rng.choice(small, size=_BATCH):
                _loss(search.runner.outputs(i, trial.nodes, trained), originals[i], search.peak).backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % _LOOK == 0 or step + 1 == steps:
                now = {name: weight.detach().clone() for name, weight in trained.items()}
                worst = search.worst(search.held_out, trial.nodes, now)
                if math.isfinite(worst) and worst > best:
                    best, weights = worst, now
    return weights


def _loss(outputs: list[torch.Tensor], originals: list[torch.Tensor], peak: float) -> torch.Tensor:
    with torch.enable_grad():
        errors = [
            (output - original).square().mean() / peak**2 for output, original in zip(outputs, originals, strict=True)
        ]
        return torch.stack([(error + _FLOOR).log() for error in errors]).mean() / _BATCH
