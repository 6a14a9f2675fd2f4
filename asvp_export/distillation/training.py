"""Training one student, and evaluating it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from asvp_export.distillation.arms import OUTPUTS, Arm
from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.losses import ADAPTED, LOSSES
from asvp_export.distillation.students import Student
from asvp_export.parity.metrics import psnr, ssim
from asvp_export.teacher.model import named_outputs

_CURVE_POINTS = 5
_PREVIEW_SIDE = 128  # of the picture that is kept


@dataclass(frozen=True)
class Budget:
    """What every student gets; names and order of the fields go into the keys of the cache, and into the report."""

    steps: int = 500
    """Of Adam."""

    batch: int = 8
    """Patches a step."""

    rate: float = 2e-3
    """The largest learning rate of one cycle."""

    patches: int = 256
    """How many different ones there are."""


@dataclass(frozen=True, eq=False)
class EvalSample:
    """One picture that students are evaluated on."""

    name: str
    """Of the picture."""

    image: np.ndarray
    """[1, C, h, w] float32 in 0..1."""

    clean: np.ndarray
    """[1, C, H, W] float32 in 0..1."""

    teacher: np.ndarray
    """[1, C, H, W], the original's output in 0..1, clipped."""


@dataclass(frozen=True, eq=False)
class EvalSet:
    """What students are evaluated on."""

    select: Sequence[EvalSample]
    """By which attackers choose their student."""

    test: Sequence[EvalSample]
    """Of which every figure is."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """All that a student is trained with, as arrays that other processes can map into memory."""

    images: np.ndarray
    """[N, C, h, w] float32 in 0..1."""

    targets: np.ndarray
    """[N, C, H, W] float32 in 0..1."""

    features: Sequence[np.ndarray]
    """[N, C, H', W'] float32 for each protected layer; none for a student of outputs alone."""


def train(
    student: Student, arm: Arm, training_set: TrainingSet, eval_set: EvalSet, budget: Budget, seed: int, device: str
) -> tuple[dict[str, Any], np.ndarray]:
    """Train one student and evaluate it; everything random comes from the seed.

    Returns:
        The scores: "psnr" and "ssim" against the clean test pictures, "to_teacher" against the original's outputs,
        "select" on the pictures that attackers choose by (dB, means over the pictures), "per_image", "diverged" (an
        output was not finite, and is scored as black), "curve" (step, "select" so far) and "seconds"; and the middle of
        the first test picture, [H, W, C] uint8.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the bits of a student must not depend on how many are trained beside it
    try:
        with torch.enable_grad():
            return _train(student, arm, training_set, eval_set, budget, seed, torch.device(device))
    finally:
        torch.set_num_threads(before)


def _train(
    student: Student,
    arm: Arm,
    training_set: TrainingSet,
    eval_set: EvalSet,
    budget: Budget,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, Any], np.ndarray]:
    start = time.perf_counter()
    net = student.make(seed).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    feature_loss = FeatureLoss(net, student.taught, arm, training_set, device) if arm.loss != OUTPUTS else None
    trained = [*net.parameters(), *(feature_loss.parameters() if feature_loss else ())]
    optimizer = torch.optim.Adam(trained, lr=budget.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, budget.rate, budget.steps, pct_start=_warm_up(budget.steps)
    )
    rng = np.random.default_rng([seed, 6])
    count, curve = len(training_set.images), []
    for step in range(budget.steps):
        indices = np.sort(rng.choice(count, budget.batch, replace=count < budget.batch))
        output = _output(net, _to(training_set.images[indices], device))
        losses = []
        features_alone = arm.first and step < budget.steps // 2
        if not features_alone:
            losses.append(functional.l1_loss(output, _to(training_set.targets[indices], device)))
        if feature_loss and (features_alone or not arm.first):
            losses.append(arm.weight * feature_loss([maps[indices] for maps in training_set.features]))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, budget.steps // _CURVE_POINTS) == 0:
            curve.append((step + 1, round(_select_psnr(net, eval_set.select, device), 3)))
    if feature_loss:
        feature_loss.close()
    scores = _evaluate(net, eval_set.test, device)
    select = curve[-1][1] if curve and curve[-1][0] == budget.steps else _select_psnr(net, eval_set.select, device)
    rounded = {name: round(value, 4) for name, value in scores.items() if isinstance(value, float)}
    details = {name: scores[name] for name in ("per_image", "diverged")}
    record = {"seed": seed, "select": round(select, 4), **rounded, **details, "curve": curve}
    return record | {"seconds": round(time.perf_counter() - start, 1)}, scores["picture"]


def _warm_up(steps: int) -> float:
    """A tenth of the steps; of few, the first two, since one step alone is no phase of a cycle."""
    return max(0.1, 2 / steps) if steps > 2 else 0.1


class FeatureLoss:
    """How far the student's taught layers are from the teacher's maps, each layer behind an adaptor of its own."""

    def __init__(
        self, net: nn.Module, layers: Sequence[str], arm: Arm, training_set: TrainingSet, device: torch.device
    ) -> None:
        self._arm, self._device = arm, device
        self._maps: dict[int, torch.Tensor] = {}
        modules = dict(net.named_modules())
        self._handles = [modules[name].register_forward_hook(self._hook(i)) for i, name in enumerate(layers)]
        self._handles.append(net.register_forward_pre_hook(lambda module, inputs: self._maps.clear()))
        with torch.no_grad():
            _output(net, _to(training_set.images[:1], device))
        self._adaptors = nn.ModuleList(
            self._adaptor(self._maps[i].shape[1], target.shape[1]) for i, target in enumerate(training_set.features)
        ).to(device)

    def _hook(self, index: int):
        def record(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            # The first call counts, as for the teacher; a copy, since what flows on may be written into.
            if index not in self._maps:
                self._maps[index] = output.clone()

        return record

    def _adaptor(self, student: int, teacher: int) -> nn.Module:
        custom = attacks()[self._arm.attack].adaptor(student, teacher) if self._arm.attack else None
        default = nn.Conv2d(student, teacher, 1) if self._arm.loss in ADAPTED else nn.Identity()
        return custom if custom is not None else default

    def parameters(self) -> list[nn.Parameter]:
        """Of the adaptors, which are trained with the student."""
        return list(self._adaptors.parameters())

    def __call__(self, targets: Sequence[np.ndarray]) -> torch.Tensor:
        """The mean over the layers, of the maps of the last run."""
        losses = []
        for index, (adaptor, target) in enumerate(zip(self._adaptors, targets, strict=True)):
            teacher, student = _to(target, self._device), self._maps[index]
            if student.shape[2:] != teacher.shape[2:]:
                student = functional.interpolate(student, size=teacher.shape[2:], mode="bilinear")
            losses.append(LOSSES[self._arm.loss](adaptor(student), teacher))
        return torch.stack(losses).mean()

    def close(self) -> None:
        """Take the hooks off the student."""
        for handle in self._handles:
            handle.remove()


def _output(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return next(iter(named_outputs(net(images)).values())).float()


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.tensor(array).to(device, memory_format=torch.channels_last)


def _select_psnr(net: nn.Module, samples: Sequence[EvalSample], device: torch.device) -> float:
    """Mean dB on the pictures that attackers choose by; the SSIM of a picture would take as long as the picture."""
    net.eval()
    with torch.inference_mode():
        outputs = [_output(net, _to(sample.image, device)).cpu().numpy() for sample in samples]
    net.train()
    outputs = [np.clip(np.nan_to_num(output), 0, 1) for output in outputs]
    return float(np.mean([psnr(sample.clean, output, 1.0) for sample, output in zip(samples, outputs, strict=True)]))


def _evaluate(net: nn.Module, samples: Sequence[EvalSample], device: torch.device) -> dict[str, Any]:
    net.eval()
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "to_teacher": []}
    picture, finite = np.zeros(0), True
    for sample in samples:
        with torch.inference_mode():
            output = _output(net, _to(sample.image, device)).cpu().numpy()
        finite &= bool(np.isfinite(output).all())
        output = np.clip(np.nan_to_num(output), 0, 1)
        scores["psnr"].append(psnr(sample.clean, output, 1.0))
        scores["ssim"].append(ssim(sample.clean, output, 1.0))
        scores["to_teacher"].append(psnr(sample.teacher, output, 1.0))
        if not picture.size:
            picture = preview(output)
    net.train()
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    per_image = {sample.name: round(value, 3) for sample, value in zip(samples, scores["psnr"], strict=True)}
    return means | {"per_image": per_image, "diverged": not finite, "picture": picture}


def preview(image: np.ndarray, size: float = 1.0) -> np.ndarray:
    """The middle of a picture, [1, C, H, W] in 0..1, as [H, W, C] uint8 of 128 pixels times `size` a side at most."""
    side = max(1, round(_PREVIEW_SIDE * size))
    top, left = (max(0, (length - side) // 2) for length in image.shape[2:])
    part = image[0, :, top : top + side, left : left + side]
    return np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
