"""The gains and ranks that buy the most strength under one allowance of output error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from asvp_export.errors import InputError
from asvp_export.operator import Perturbation
from asvp_export.operator.spectrum import squared_singular_values
from asvp_export.parity.cases import Case
from asvp_export.parity.metrics import as_images, peak_of, psnr
from asvp_export.parity.verify import compared
from asvp_export.plan.runner import CalibrationRunner
from asvp_export.plan.solve import Targets, Weights, solve

MARGIN_DB = 1.0
"""How far above the tolerance a plan stays."""

PASSES = 20
"""Forward passes that a search may take for each input and node, beside one plain pass for each input."""

RANKS = (1, 2, 4, 8)

_NEAR_DB = 0.3  # a scale this close above the target is good enough
_STEPS = 6
_FINEST = 0.001  # of a gain
_START = {False: 1.05, True: 3.0}  # the gain that is tried first: without compensation, and with it


@dataclass(frozen=True)
class TrialResult:
    """Nodes that were tried together."""

    nodes: dict[str, Perturbation]
    """Layer name to its node."""

    psnr: float
    """dB of the worst input that was held out."""

    weights: Weights = field(default_factory=dict)
    """Compensated, by name."""

    ridges: dict[str, float] = field(default_factory=dict)
    """By the names of the weights."""


@dataclass(frozen=True)
class LayerEstimate:
    """What one layer can carry for its share of the allowance."""

    layer: str
    """Its name."""

    node: Perturbation
    """With the gain that follows from what was tried."""

    strength: float
    """Of the map that this node exposes."""

    tried_gain: float
    """The gain that was tried last; 0: none was."""

    psnr: float
    """dB with this layer alone and the gain that was tried."""


@dataclass(frozen=True)
class Goal:
    """What a search is for."""

    peak: float
    """Range of the model's values."""

    target: float
    """dB that the worst of the held-out inputs has to reach."""

    max_gain: float
    """No gain is larger."""

    ranks: Sequence[int] = RANKS
    """Those that are tried."""


class Search:
    """Tries nodes and gains on a runner's inputs.

    Args:
        runner: of all the layers.
        nodes: the layers with channel axis and energy of their nodes; rank and gain are to be found.
        crops: which inputs of the runner compensation is solved on; none: no compensation.
        held_out: on which the target has to hold.
        goal: the target, and what may be tried.
        cases: what is known of the inputs beyond these: their padding does not count.
    """

    def __init__(
        self,
        runner: CalibrationRunner,
        nodes: Mapping[str, Perturbation],
        crops: Sequence[int],
        held_out: Sequence[int],
        goal: Goal,
        cases: Mapping[int, Case] | None = None,
    ) -> None:
        self.runner, self.nodes = runner, dict(nodes)
        self.crops, self.held_out, self.peak = crops, held_out, goal.peak
        self.target, self.max_gain, self.ranks = goal.target, goal.max_gain, goal.ranks
        self._cases = cases or {}
        self._originals: dict[int, list[np.ndarray]] = {}
        self._targets: Targets = {}
        self._energies: dict[str, list[torch.Tensor]] = {layer: [] for layer in nodes}
        self.channels: dict[str, int] = {}
        for i in held_out:
            for layer, maps in runner.maps(i).items():
                for clean in maps:
                    self._take(layer, clean)

    def _take(self, layer: str, clean: torch.Tensor) -> None:
        axis = self.nodes[layer].axis
        self._energies[layer] += energies(clean, axis)
        self.channels[layer] = clean.shape[axis]

    def strength(self, layer: str, node: Perturbation) -> tuple[float, float]:
        """Strength and relative feature change of a node, means over the inputs that are held out."""
        if not self._energies[layer]:
            return 0.0, 0.0
        strengths, changes = zip(*(strength_of(energy, node) for energy in self._energies[layer]), strict=True)
        return float(np.mean(strengths)), float(np.mean(changes))

    def compensable(self, layer: str) -> bool:
        """Whether the layer's readers are re-solved."""
        return bool(self.crops) and layer in self.runner.consumers.by_layer

    def trial(self, nodes: dict[str, Perturbation], share: int = 1) -> TrialResult:
        """Put nodes in place, compensate, and measure.

        Args:
            nodes: the nodes.
            share: solve on every share-th crop.
        """
        consumers = self.runner.consumers.of([layer for layer in nodes if self.compensable(layer)])
        weights, ridges = {}, {}
        if consumers:
            smaller = self.held_out[len(self.held_out) // 2 :]  # enough to choose a ridge by
            weights, ridges = solve(self.runner, nodes, consumers, self.crops[::share], smaller, self._targets)
        return TrialResult(nodes, self.worst(self.held_out, nodes, weights), weights, ridges)

    def worst(self, inputs: Sequence[int], nodes: Mapping[str, Perturbation], weights: Weights) -> float:
        """DB of the worst of these inputs and their outputs, against the original."""
        return min(self._psnr(i, self.runner.outputs(i, nodes, weights)) for i in inputs)

    def _psnr(self, i: int, outputs: list[torch.Tensor]) -> float:
        if i not in self._originals:
            self._originals[i] = [output.cpu().float().numpy() for output in self.runner.outputs(i)]
        decibels, case = [], self._cases.get(i)
        for original, output in zip(self._originals[i], outputs, strict=True):
            both = original, output.cpu().float().numpy()
            expected, tested = compared(case, *case.pictures(both)) if case else map(as_images, both)
            decibels.append(psnr(expected, tested, peak_of(original, self.peak)))
        return -math.inf if any(map(math.isnan, decibels)) else min(decibels)

    def estimate(self, layer: str, target: float, share: int = 4) -> LayerEstimate:
        """The rank and about the gain that buy one layer the most strength, alone, at a target.

        Args:
            layer: its name.
            target: dB.
            share: solve on every share-th crop.
        """
        best: LayerEstimate | None = None
        ranks = [rank for rank in self.ranks if rank <= self.channels[layer]] or [self.channels[layer]]
        at_most = {rank: replace(self.nodes[layer], rank=rank, gain=self.max_gain) for rank in ranks}
        for rank in sorted(ranks, key=lambda rank: -self.strength(layer, at_most[rank])[0]):
            if best and best.strength >= self.strength(layer, at_most[rank])[0]:
                break  # the others could not do better at the largest gain
            estimate = self._after_trial(
                LayerEstimate(layer, at_most[rank], strength=0.0, tried_gain=0.0, psnr=0.0), target, share
            )
            if best is None or estimate.strength > best.strength:
                best = estimate
        assert best is not None
        return best if len(self.nodes) > 1 else self._after_trial(best, target, share)  # once more, from close by

    def _after_trial(self, estimate: LayerEstimate, target: float, share: int) -> LayerEstimate:
        """A trial of a layer alone, and the gain that follows from it."""
        start = _START[self.compensable(estimate.layer)] if estimate.tried_gain == 0 else estimate.node.gain
        node = replace(estimate.node, gain=min(start, self.max_gain))
        psnr = self.trial({estimate.layer: node}, share).psnr
        return self.at(replace(estimate, node=node, tried_gain=node.gain, psnr=psnr), target)

    def at(self, estimate: LayerEstimate, target: float) -> LayerEstimate:
        """The same layer at another target, reckoned from what was tried.

        The error is nearly linear in gain - 1, compensated or not: a fixed kernel takes out what the component has in
        all images, and what each has for itself is amplified as before. At large gains it grows less, since the readers
        then do without all of it.
        """
        room = 10 ** ((estimate.psnr - target) / 20) if math.isfinite(estimate.psnr) else 0.01
        gain = _rounded_above_one(min(1 + (estimate.tried_gain - 1) * room, self.max_gain))
        node = replace(estimate.node, gain=gain)
        return replace(estimate, node=node, strength=self.strength(estimate.layer, node)[0])

    def joint(self, nodes: dict[str, Perturbation], budget: float = math.inf) -> TrialResult:
        """The largest common scale of gain - 1 with which the nodes together reach the target.

        Args:
            nodes: as each would have it alone.
            budget: forward passes that may be made.

        Raises:
            InputError: no gain reaches it.
        """
        fits: tuple[float, TrialResult] | None = None
        misses: tuple[float, TrialResult] | None = None
        scale, before = 1.0, self.runner.passes
        for step in range(_STEPS):
            start = self.runner.passes
            trial = self.trial(scaled(nodes, scale, self.max_gain), share=2)
            cost = self.runner.passes - start
            if trial.psnr >= self.target:
                fits = (scale, trial)
                if trial.psnr < self.target + _NEAR_DB or all(n.gain >= self.max_gain for n in trial.nodes.values()):
                    break
            else:
                misses = (scale, trial)
            if fits and (self.runner.passes - before + cost > budget or step == _STEPS - 1):
                break
            scale = self._next(scale, trial.psnr, fits, misses)
            if scaled(nodes, scale, self.max_gain) == trial.nodes:
                break
        while fits is None:  # far off: gains as small as they can be written
            scale /= 8
            trial = self.trial(scaled(nodes, scale, self.max_gain))
            if trial.psnr >= self.target:
                fits = (scale, trial)
            elif all(node.gain <= 1 + _FINEST for node in trial.nodes.values()):
                raise InputError(self._unreachable(trial))
        if not self.crops:
            return fits[1]
        scale, trial = fits
        for _ in range(_STEPS):  # on all crops, which seldom makes it worse
            trial = self.trial(scaled(nodes, scale, self.max_gain))
            if trial.psnr >= self.target:
                return trial
            scale *= 10 ** ((trial.psnr - self.target - _NEAR_DB / 2) / 20)
        raise InputError(self._unreachable(trial))

    def _next(self, scale: float, psnr: float, fits: tuple | None, misses: tuple | None) -> float:
        """Between what fits and what does not, in proportion; outside of both, as if the error grew with the scale."""
        if fits and misses:
            (low, good), (high, bad) = fits, misses
            between = (good.psnr - self.target) / max(good.psnr - bad.psnr, 1e-9) if math.isfinite(bad.psnr) else 0.5
            return low * (high / low) ** min(max(between * 0.9, 0.1), 0.9)
        step = 10 ** ((psnr - self.target - _NEAR_DB / 2) / 20) if math.isfinite(psnr) else 0.1
        return scale * min(max(step, 0.02), 8.0)

    def _unreachable(self, trial: TrialResult) -> str:
        alone = {layer: self.trial({layer: node}).psnr for layer, node in trial.nodes.items()}
        costly = min(alone, key=lambda layer: alone[layer])
        return (
            f"No gain keeps the worst calibration image at {self.target - MARGIN_DB:g} dB with {MARGIN_DB:g} dB to "
            f"spare: at a gain of {1 + _FINEST:g} it has {trial.psnr:.1f} dB, and {costly} costs most "
            f"({alone[costly]:.1f} dB alone). Leave that layer out, or lower --min-psnr."
        )


def scaled(nodes: Mapping[str, Perturbation], scale: float, max_gain: float) -> dict[str, Perturbation]:
    """The nodes with gain - 1 multiplied, rounded down to three digits, within [1.001, max_gain]."""
    gains = {layer: _rounded_above_one(min(1 + (node.gain - 1) * scale, max_gain)) for layer, node in nodes.items()}
    return {layer: replace(node, gain=gains[layer]) for layer, node in nodes.items()}


def _rounded_above_one(gain: float) -> float:
    return max(math.floor(gain * 1000 + 1e-9) / 1000, 1 + _FINEST)


def energies(x: torch.Tensor, axis: int) -> list[torch.Tensor]:
    """The s_i^2 of each sample, descending, float64, without samples that are zero or not finite.

    Args:
        x: a feature map [N, ...].
        axis: its channel axis.
    """
    return [
        energy for energy in squared_singular_values(x, axis) if energy.isfinite().all() and float(energy.sum()) > 0
    ]


def strength_of(energy: torch.Tensor, node: Perturbation) -> tuple[float, float]:
    """Strength and relative feature change from the s_i^2 of one map.

    With p the share of the amplified ones and h the gain, ||F'||^2 = (1 + (h^2 - 1) p) ||F||^2 and
    <F, F'> = (1 + (h - 1) p) ||F||^2, so that strength^2 = 1 - (1 + (h - 1) p)^2 / (1 + (h^2 - 1) p).
    """
    shares = (energy / energy.sum()).cumsum(0)
    count = min(node.rank, int((shares < node.energy).sum()) + 1, len(shares))
    p, h = min(float(shares[count - 1]), 1.0), node.gain
    return max(0.0, 1 - (1 + (h - 1) * p) ** 2 / (1 + (h * h - 1) * p)) ** 0.5, abs(h - 1) * p**0.5
