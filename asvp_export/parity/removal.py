"""Removal tests: the outputs of the shipped graph once its nodes are deleted, or replaced by fitted transforms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from asvp_export.insertion.protected import Protected, Transform, observed, replaced
from asvp_export.parity.cases import Case
from asvp_export.parity.expected import Expected, torch_outputs
from asvp_export.parity.metrics import peak_of, psnr
from asvp_export.parity.truth import clean_of, truth_psnr
from asvp_export.parity.verify import compared
from asvp_export.progress import Printer, reporter
from asvp_export.teacher.model import Teacher

SHIPPED, DELETED, SCALAR, MAP = "shipped", "nodes deleted", "best scalar", "best 1x1 map"

_RIDGE = 1e-12  # share of the Gram matrix's mean diagonal: for channels that are always zero, no more
_BLOCK = 2**16  # positions that are taken to float64 at a time


@dataclass(frozen=True)
class RemovalTest:
    """How near one version of the shipped graph comes, over all inputs; dB, NaN where an output was not finite."""

    name: str
    """"shipped" (as it is), "nodes deleted", "best scalar" or "best 1x1 map" (instead of every node)."""

    min_psnr: float
    """Of the worst input, against the original's outputs."""

    mean_psnr: float
    """Mean over the inputs, against the original's outputs."""

    truth_min_psnr: float | None = None
    """Of the worst input, against ground truth; None where there is none."""

    truth_mean_psnr: float | None = None
    """Mean over the inputs, against ground truth."""

    original_truth_min_psnr: float | None = None
    """The original teacher's own, against ground truth."""

    original_truth_mean_psnr: float | None = None
    """The original teacher's own, against ground truth."""

    @property
    def loss(self) -> float | None:
        """How many dB of the original's mean against ground truth are gone; None where there is none."""
        if self.truth_mean_psnr is None or self.original_truth_mean_psnr is None:
            return None
        return self.original_truth_mean_psnr - self.truth_mean_psnr

    def as_dict(self) -> dict[str, str | float | None]:
        """The row for a report: dB to 0.01, None for what was not measured or is not finite."""
        return {
            key: value if value is None or isinstance(value, str) else round(value, 2) if np.isfinite(value) else None
            for key, value in asdict(self).items()
        }


def removal_tests(
    protected: Protected,
    cases: Sequence[Case],
    calibrate: Sequence[tuple[torch.Tensor, ...]],
    truth: Mapping[str, np.ndarray] | None = None,
    progress: Printer = lambda line: None,
    expected: Expected | None = None,
) -> tuple[RemovalTest, ...]:
    """Run the shipped graph as it is, with its nodes deleted, and with fitted static transforms instead.

    These are what attackers can fit who have the shipped graph and pictures, and nothing else. From one pass of the
    graph with all nodes in place: for each node the scalar s = <F, F'> / <F, F>, and the 1x1 convolution
    M = argmin sum ||M F - F'||^2 / positions, in float64 (a bias gained nothing). A layer that is called several times
    gets one transform.
    All run in PyTorch, in float32, on the weights that are shipped, the compensated ones among them.

    Args:
        protected: not changed.
        cases: the inputs to compare on.
        calibrate: the inputs to fit on, all inputs of the model each.
        truth: from `asvp_export.parity.truth.read_truth`: clean pictures; scores against these are of the main output,
            clipped to black and white as a viewer does.
        progress: called with a line, or counting.
        expected: the outputs of the original and of the protected module for the cases, where they are known.

    Returns:
        Four rows; none where there are no nodes.

    Raises:
        InputError: the output is not as large as the ground truth.
    """
    if not protected.nodes:
        return ()
    teacher, report = protected.teacher, reporter(progress)
    fits = {layer: NodeFit(node.axis) for layer, node in protected.nodes.items()}
    watching = observed(protected, lambda layer, clean, exposed, residual: fits[layer].add(clean, residual))
    with watching, report.track(calibrate, "fitting maps to the nodes") as tracked, torch.inference_mode():
        for inputs in tracked:
            protected.module(*inputs)
    if expected:
        originals, shipped = expected.original, expected.protected
    else:
        originals = list(torch_outputs(teacher.module, cases, teacher.device))
        shipped = list(torch_outputs(protected.module, cases, teacher.device))
    against = _Against(teacher, cases, originals, truth)
    rows = [against.score(SHIPPED, shipped)]
    for name, kind in ((DELETED, NodeFit.identity), (SCALAR, NodeFit.scalar), (MAP, NodeFit.matrix)):
        transforms = {layer: kind(fit) for layer, fit in fits.items()}
        with replaced(protected, transforms), report.track(cases, f"{name}, in PyTorch") as tracked:
            rows.append(against.score(name, torch_outputs(protected.module, tracked, teacher.device)))
    return tuple(rows)


def smallest(cases: Sequence[Case], device: str) -> list[tuple[torch.Tensor, ...]]:
    """For each picture the smallest of its inputs, as `removal_tests` takes them to fit on.

    Attackers would have other pictures: fitting on the pictures that the transforms are judged on favours them.
    """
    least: dict[str, Case] = {}
    for case in cases:
        if case.batch == 1 and case.height * case.width < _pixels(least.get(case.name)):
            least[case.name] = case
    return [tuple(torch.from_numpy(x).to(device) for x in case.inputs) for case in least.values() or cases]


def _pixels(case: Case | None) -> float:
    return case.height * case.width if case else float("inf")


class _Against:
    """What versions of the graph are scored against."""

    def __init__(
        self,
        teacher: Teacher,
        cases: Sequence[Case],
        originals: Sequence[Sequence[np.ndarray]],
        truth: Mapping[str, np.ndarray] | None,
    ) -> None:
        self._cases, self._originals, self._range = cases, originals, teacher.data_range
        self._main = teacher.signature.floats.index(teacher.signature.main)
        self._clean = [clean_of(case, truth, teacher.scale) if truth else None for case in cases]
        self._original_truth = [
            truth_psnr(clean, compared(case, outputs[self._main], outputs[self._main])[1], self._range)
            for case, clean, outputs in zip(cases, self._clean, originals, strict=True)
            if clean is not None
        ]

    def score(self, name: str, outputs: Iterable[Sequence[np.ndarray]]) -> RemovalTest:
        """Outputs are consumed case by case."""
        to_original, to_truth = [], []
        for case, clean, originals, values in zip(self._cases, self._clean, self._originals, outputs, strict=True):
            for index, (expected, tested) in enumerate(zip(originals, values, strict=True)):
                expected, tested = compared(case, expected, tested)
                to_original.append(psnr(expected, tested, peak_of(expected, self._range.peak)))
                if index == self._main and clean is not None:
                    to_truth.append(truth_psnr(clean, tested, self._range))
        return RemovalTest(
            name, *_least_and_mean(to_original), *_least_and_mean(to_truth), *_least_and_mean(self._original_truth)
        )


def _least_and_mean(decibels: Sequence[float]) -> tuple[Any, Any]:
    return (float(np.min(decibels)), float(np.mean(decibels))) if decibels else (None, None)


class NodeFit:
    """The normal equations of the transforms that replace one node, filled block by block."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._gram = torch.zeros(0)
        self._moments = torch.zeros(0)

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take one call of the node in; every sample weighs the same, whatever its size."""
        channels = before.shape[self._axis]
        before, after = (x.movedim(self._axis, -1).reshape(len(x), -1, channels) for x in (before, after))
        if not self._gram.numel():
            self._gram = before.new_zeros(channels, channels, dtype=torch.float64)
            self._moments = torch.zeros_like(self._gram)
        for sample, target in zip(before, after, strict=True):
            for rows, targets in zip(sample.split(_BLOCK), target.split(_BLOCK), strict=True):
                rows = rows.double()
                self._gram.addmm_(rows.T, rows, alpha=1 / len(sample))
                self._moments.addmm_(rows.T, targets.double(), alpha=1 / len(sample))

    def identity(self) -> Transform:
        """What is left of the node when it is deleted."""
        return lambda x: x

    def scalar(self) -> Transform:
        """The multiple of the map that is nearest to what the node made of it."""
        factor = self._factor()
        return lambda x: x * factor

    def matrix(self) -> Transform:
        """The 1x1 convolution whose values are nearest to what the node made."""
        unit = torch.eye(len(self._gram), dtype=torch.float64, device=self._gram.device)
        ridge = _RIDGE * torch.diag(self._gram).mean().clamp_min(torch.finfo(torch.float64).tiny) * unit
        start = self._factor() * unit  # where nothing was seen, the scalar stays
        solved = start + torch.linalg.solve(self._gram + ridge, self._moments - self._gram @ start)
        return lambda x: (x.movedim(self._axis, -1) @ solved.to(x.dtype)).movedim(-1, self._axis)

    def _factor(self) -> float:
        power = float(self._gram.trace())
        return float(self._moments.trace()) / power if power > 0 else 1.0
