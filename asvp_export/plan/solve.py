"""Compensation in closed form: the consumers' weights that give the original's values on the perturbed maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from asvp_export.errors import InputError
from asvp_export.operator import Perturbation
from asvp_export.plan.linear import Consumer
from asvp_export.plan.runner import CalibrationRunner

Weights = dict[str, torch.Tensor]
Targets = dict[int, dict[str, list[torch.Tensor]]]
"""By input and weight: what the original gives, call by call, [groups, positions, outputs / groups] float64."""

RIDGES = tuple(10.0**exponent for exponent in range(-9, 0))
"""Candidates, as shares of the Gram matrix's mean diagonal."""

_POSITIONS = 4  # a position of the map for each unknown, times this, at the least
_DRAWN = 2048  # positions of one map: neighbours say the same, and what counts is how many different maps are seen


def solve(
    runner: CalibrationRunner,
    nodes: Mapping[str, Perturbation],
    consumers: Sequence[Consumer],
    crops: Sequence[int],
    held_out: Sequence[int],
    targets: Targets | None = None,
) -> tuple[Weights, dict[str, float]]:
    """Re-solve each consumer's whole kernel and bias, in the graph's order, with the earlier ones in place.

    W', b' = argmin sum_i ||W' x'_i + b' - (W x_i + b)||^2 / positions_i + ridge ||(W', b') - (W, b)||^2

    over the crops i, with x the consumer's input in the original and x' in the protected model: normal equations in
    float64, one Gram matrix of unfolded patches a consumer, filled crop by crop from 2048 positions of each at most.
    The ridge is the one with the least error on the inputs that are held out.

    Args:
        runner: runs the model.
        nodes: the nodes in place.
        consumers: of all of them.
        crops: which of the runner's inputs are solved on.
        held_out: which choose the ridge.
        targets: filled on the way; handed in again for other nodes at the same layers, they save runs of the original.

    Returns:
        New values by the names of weights and biases, and the ridge by the weight's name.

    Raises:
        InputError: too few positions for the unknowns.
    """
    weights: Weights = {}
    ridges: dict[str, float] = {}
    pairs = _Pairs(runner, nodes, consumers, {} if targets is None else targets)
    for level in sorted({consumer.level for consumer in consumers}):
        group = [consumer for consumer in consumers if consumer.level == level]
        sums = {consumer.weight: _Sums(consumer, pairs.originals[consumer.weight]) for consumer in group}
        for i in crops:
            for consumer, target, exposed in pairs.of(i, group, weights):
                sums[consumer.weight].add(target, exposed)
        choices = {consumer.weight: sums[consumer.weight].solutions() for consumer in group}
        errors = {consumer.weight: [0.0] * len(RIDGES) for consumer in group}
        for i in held_out:
            for consumer, target, exposed in pairs.of(i, group, weights):
                rows = consumer.rows(exposed, _DRAWN)
                for choice, solution in enumerate(choices[consumer.weight]):
                    error = (rows @ solution - target).square().sum() / target.shape[1]
                    errors[consumer.weight][choice] += float(error)
        for consumer in group:
            best = min(range(len(RIDGES)), key=errors[consumer.weight].__getitem__)
            ridges[consumer.weight] = RIDGES[best]
            weight, bias = consumer.unpack(choices[consumer.weight][best])
            weights[consumer.weight] = weight.float()
            if consumer.bias is not None and bias is not None:
                weights[consumer.bias] = bias.float()
    return weights, ridges


class _Pairs:
    """What consumers give in the original beside what they read with the nodes in place."""

    def __init__(
        self,
        runner: CalibrationRunner,
        nodes: Mapping[str, Perturbation],
        consumers: Sequence[Consumer],
        targets: Targets,
    ) -> None:
        self._runner, self._nodes, self._consumers, self._targets = runner, nodes, consumers, targets
        self.originals = {consumer.weight: _packed(consumer, runner) for consumer in consumers}
        """By the weight's name: weight and bias of the original, packed."""

    def of(
        self, i: int, group: Sequence[Consumer], weights: Weights
    ) -> Iterator[tuple[Consumer, torch.Tensor, torch.Tensor]]:
        """(consumer, what it gives in the original, its input with nodes and weights in place), call by call."""
        by_weight = self._targets.setdefault(i, {})
        if missing := [consumer for consumer in self._consumers if consumer.weight not in by_weight]:
            clean = self._runner.inputs_of(i, missing)
            for consumer in missing:
                name = consumer.weight
                by_weight[name] = [consumer.rows(x, _DRAWN) @ self.originals[name] for x in clean[name]]
        exposed = self._runner.inputs_of(i, group, self._nodes, weights)
        for consumer in group:
            for target, x in zip(by_weight[consumer.weight], exposed[consumer.weight], strict=True):
                yield consumer, target, x


def _packed(consumer: Consumer, runner: CalibrationRunner) -> torch.Tensor:
    return consumer.pack(runner.value(consumer.weight), runner.value(consumer.bias) if consumer.bias else None)


class _Sums:
    """The normal equations of one consumer."""

    def __init__(self, consumer: Consumer, original: torch.Tensor) -> None:
        self.consumer, self.original = consumer, original
        groups, unknowns, _ = self.original.shape
        self.gram = self.original.new_zeros(groups, unknowns, unknowns)
        self.moments = torch.zeros_like(self.original)
        self.positions = 0

    def add(self, target: torch.Tensor, exposed: torch.Tensor) -> None:
        rows = self.consumer.rows(exposed, _DRAWN)
        self.gram.baddbmm_(rows.transpose(1, 2), rows, alpha=1 / rows.shape[1])
        self.moments.baddbmm_(rows.transpose(1, 2), target, alpha=1 / rows.shape[1])
        self.positions += rows.shape[1]

    def solutions(self) -> list[torch.Tensor]:
        """One for each of `RIDGES`."""
        needed = _POSITIONS * self.consumer.unknowns
        if self.positions < needed:
            raise InputError(
                f"Calibration saw {self.positions} positions of the map that {self.consumer.weight} reads; its "
                f"{self.consumer.unknowns} unknowns per channel need at least {needed} positions. Add calibration "
                "images, or larger ones."
            )
        unit = self.gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
        values, vectors = torch.linalg.eigh(self.gram)
        # (A + r I)^-1 (B + r W) through one decomposition for all ridges
        moments, original = (vectors.transpose(1, 2) @ matrix for matrix in (self.moments, self.original))
        solutions = []
        for share in RIDGES:
            ridge = (share * unit)[:, None, None]
            solutions.append(vectors @ ((moments + ridge * original) / (values.clamp_min(0)[..., None] + ridge)))
        return solutions
