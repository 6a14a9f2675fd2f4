"""Compensation in closed form: the consumers' weights that give the original's values on the perturbed maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from asvp_export.errors import InputError
from asvp_export.operator import Perturbation
from asvp_export.plan.bench import Bench
from asvp_export.plan.linear import Consumer

Weights = dict[str, torch.Tensor]

RIDGES = tuple(10.0**exponent for exponent in range(-9, 0))
"""Candidates, as shares of the Gram matrix's mean diagonal."""

_POSITIONS = 4  # a position of the map for each unknown, times this, at the least


def solve(
    bench: Bench,
    nodes: Mapping[str, Perturbation],
    consumers: Sequence[Consumer],
    crops: Sequence[int],
    held_out: Sequence[int],
) -> tuple[Weights, dict[str, float]]:
    """Re-solve each consumer's whole kernel and bias, in the graph's order, with the earlier ones in place.

    W', b' = argmin sum_i ||W' x'_i + b' - (W x_i + b)||^2 / positions_i + ridge ||(W', b') - (W, b)||^2 over the crops i,
    with x the consumer's input in the original and x' in the protected model: normal equations in float64, one Gram
    matrix of unfolded patches a consumer, filled crop by crop. The ridge is the one with the least error on the inputs
    that are held out.

    Args:
        bench: runs the model.
        nodes: the nodes in place.
        consumers: of all of them.
        crops: which of the bench's inputs are solved on.
        held_out: which choose the ridge.

    Returns:
        New values by the names of weights and biases, and the ridge by the weight's name.

    Raises:
        InputError: too few positions for the unknowns.
    """
    weights: Weights = {}
    ridges: dict[str, float] = {}
    for level in sorted({consumer.level for consumer in consumers}):
        group = [consumer for consumer in consumers if consumer.level == level]
        sums = {consumer.weight: _Sums(consumer, bench) for consumer in group}
        for i in crops:
            for consumer, clean, exposed in _pairs(bench, i, nodes, weights, group):
                sums[consumer.weight].add(clean, exposed)
        choices = {consumer.weight: sums[consumer.weight].solutions() for consumer in group}
        errors = {consumer.weight: [0.0] * len(RIDGES) for consumer in group}
        for i in held_out:
            for consumer, clean, exposed in _pairs(bench, i, nodes, weights, group):
                target = consumer.rows(clean) @ sums[consumer.weight].original
                rows = consumer.rows(exposed)
                for at, solution in enumerate(choices[consumer.weight]):
                    error = (rows @ solution - target).square().sum() / target.shape[1]
                    errors[consumer.weight][at] += float(error)
        for consumer in group:
            found = errors[consumer.weight]
            best = min(range(len(RIDGES)), key=lambda at: found[at])
            ridges[consumer.weight] = RIDGES[best]
            weight, bias = consumer.unpack(choices[consumer.weight][best])
            weights[consumer.weight] = weight.float()
            if consumer.bias is not None and bias is not None:
                weights[consumer.bias] = bias.float()
    return weights, ridges


def _pairs(bench: Bench, i: int, nodes: Mapping[str, Perturbation], weights: Weights, group: Sequence[Consumer]):
    """(consumer, its input in the original, its input with the nodes in place), call by call."""
    clean = bench.inputs_of(i, group)
    exposed = bench.inputs_of(i, group, nodes, weights)
    for consumer in group:
        for before, after in zip(clean[consumer.weight], exposed[consumer.weight], strict=True):
            yield consumer, before, after


class _Sums:
    """The normal equations of one consumer."""

    def __init__(self, consumer: Consumer, bench: Bench) -> None:
        self.consumer = consumer
        self.original = consumer.pack(
            bench.value(consumer.weight), bench.value(consumer.bias) if consumer.bias else None
        )
        groups, unknowns, _ = self.original.shape
        self.gram = self.original.new_zeros(groups, unknowns, unknowns)
        self.moments = torch.zeros_like(self.original)
        self.positions = 0

    def add(self, clean: torch.Tensor, exposed: torch.Tensor) -> None:
        target = self.consumer.rows(clean) @ self.original
        rows = self.consumer.rows(exposed)
        self.gram.baddbmm_(rows.transpose(1, 2), rows, alpha=1 / rows.shape[1])
        self.moments.baddbmm_(rows.transpose(1, 2), target, alpha=1 / rows.shape[1])
        self.positions += rows.shape[1]

    def solutions(self) -> list[torch.Tensor]:
        """One for each of `RIDGES`."""
        needed = _POSITIONS * self.consumer.unknowns
        if self.positions < needed:
            raise InputError(
                f"Calibration saw {self.positions} positions of the map that {self.consumer.weight} reads, which has "
                f"{self.consumer.unknowns} unknowns a channel; at least {needed} positions are needed. Add calibration "
                "images, or larger ones."
            )
        unit = self.gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
        values, vectors = torch.linalg.eigh(self.gram)
        # (A + r I)^-1 (B + r W) through one decomposition for all ridges
        moments, original = (vectors.transpose(1, 2) @ matrix for matrix in (self.moments, self.original))
        found = []
        for share in RIDGES:
            ridge = (share * unit)[:, None, None]
            found.append(vectors @ ((moments + ridge * original) / (values.clamp_min(0)[..., None] + ridge)))
        return found
