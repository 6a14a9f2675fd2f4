"""The exposed gain: the largest that the rounding of node and inverse allows; nothing is calibrated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from asvp_export.errors import InputError
from asvp_export.insertion.protected import Protected, insert
from asvp_export.operator import Perturbation
from asvp_export.parity.cases import Case
from asvp_export.parity.expected import Expected, expected_of_teacher, original_outputs, torch_outputs
from asvp_export.parity.result import FIDELITY_DB
from asvp_export.parity.verify import least_psnr
from asvp_export.progress import Printer
from asvp_export.teacher.backends import open_backend

FULL_DB = 80.0
"""Preservation that the exposed gain leaves where the residual gain is 1: that of the fidelity gate in float32."""

LEAST = 1.5
"""The smallest gain that is worth a node."""

_STEPS = 6
_NEAR_DB = 0.3  # what is kept in hand when a gain is reckoned from the one before
_FAR = 8.0  # a gain is divided by this where outputs are not finite


def exposed(
    protected: Protected,
    limit: float,
    cases: Sequence[Case],
    *,
    dtype: str,
    min_psnr: float,
    progress: Printer = lambda line: None,
) -> Protected:
    """Give all layers the largest common exposed gain at which their residual maps are still what they should be.

    What rounding does to the outputs grows in proportion to the gain, so each trial says which gain would fit, and two
    or three passes over the inputs are enough.

    Args:
        protected: nodes with a residual gain, which stays as it is; their gains are replaced.
        limit: no gain is larger.
        cases: the verification inputs.
        dtype: "fp32" or "fp16": in what type the file will hold its feature maps.
        min_psnr: dB that the file has to keep against the original.
        progress: called with a line at each step.

    Returns:
        The same with the gain, and what it gives for the cases beside it, so that nothing is run twice.

    Raises:
        InputError: no gain of 1.5 or more survives the rounding; the message names the layer that costs most.
    """
    search = _GainSearch(protected, cases, dtype, progress)
    lower = _lower_target(protected, search.half, min_psnr)
    full = max(FULL_DB, lower)
    if search.half and lower < full and search.worst(LEAST) < full:
        full = lower  # in this type rounding alone is over the higher one
    for target in dict.fromkeys((full, lower)):
        gain = search.largest(limit, target)
        if gain is not None:
            return search.at(gain)
    raise InputError(search.refusal(lower))


def _all_taken_back(protected: Protected) -> bool:
    return all(node.residual_gain == 1 for node in protected.nodes.values())


def _lower_target(protected: Protected, half: bool, min_psnr: float) -> float:
    """DB where rounding does not allow more: what the gates ask for, and 1 dB to spare."""
    fidelity = FIDELITY_DB["fp16"] + 1 if half else -math.inf
    if _all_taken_back(protected):
        return max(fidelity, min_psnr + 1)
    return fidelity if half else FULL_DB


class _GainSearch:
    """Runs the protected model at several gains, in the type of the file that is to be."""

    def __init__(self, protected: Protected, cases: Sequence[Case], dtype: str, progress: Printer) -> None:
        self._start, self._cases, self._progress = protected, list(cases), progress
        self.half = dtype == "fp16" or open_backend(protected.teacher).half
        self._convert = dtype == "fp16"
        self._original = original_outputs(protected.teacher, cases, progress)
        self._targets = self._original
        if not _all_taken_back(protected):  # then the pair has to do what one node of the residual gain does
            direct = {
                name: replace(node, gain=node.residual_gain, residual=None) for name, node in protected.nodes.items()
            }
            single = insert(protected.teacher, direct, protected.weights)
            self._targets = list(torch_outputs(single.module, cases, protected.teacher.device))
        self._cache: dict[float, tuple[Protected, Expected]] = {}

    def _run(self, gain: float) -> tuple[Protected, Expected]:
        if gain not in self._cache:
            nodes = with_gain(self._start.nodes, gain)
            protected = insert(self._start.teacher, nodes, self._start.weights, self._start.plan)
            expected = expected_of_teacher(protected, self._cases, self._progress, self._original)
            self._cache = {gain: (protected, expected)}
        return self._cache[gain]

    def at(self, gain: float) -> Protected:
        """The protected model with this gain, and its outputs."""
        protected, expected = self._run(gain)
        return replace(protected, verify_images=self._start.verify_images, verified=(tuple(self._cases), expected))

    def largest(self, limit: float, target: float) -> float | None:
        """The largest gain up to the limit that leaves these dB; None: not even the least that is worth a node."""
        gain = limit
        for steps_left in reversed(range(_STEPS)):
            self._progress(f"exposed gain {gain:g}: running the inputs")
            worst = self.worst(gain)
            if worst >= target:
                return gain
            if gain <= LEAST:
                return None
            change = 10 ** ((worst - target - _NEAR_DB) / 20) if math.isfinite(worst) else 1 / _FAR
            gain = max(_rounded_down(gain * change), LEAST) if steps_left > 1 else LEAST
        return None

    def worst(self, gain: float, layers: Sequence[str] | None = None) -> float:
        """DB of the worst output against what it should be; -inf where one is not finite."""
        if layers is None and not self._convert:
            return self._least(self._run(gain)[1].protected)
        nodes = {name: node for name, node in self._start.nodes.items() if layers is None or name in layers}
        protected = insert(self._start.teacher, with_gain(nodes, gain), self._start.weights)
        device = protected.teacher.device
        if not self._convert:
            return self._least(list(torch_outputs(protected.module, self._cases, device)))
        try:
            with open_backend(protected.teacher).halved(protected.module) as module:
                return self._least(list(torch_outputs(module, map(_half_case, self._cases), device)))
        except InputError as error:
            raise InputError(
                f"No gain can be found for float16, because {protected.teacher.source} cannot run in it on this "
                f"machine ({str(error).rstrip('.')}). Give --gain."
            ) from error

    def refusal(self, target: float) -> str:
        worst = self.worst(LEAST)
        alone = {layer: self.worst(LEAST, [layer]) for layer in self._start.nodes}
        costly = min(alone, key=lambda layer: alone[layer])
        kind = "float16" if self.half else "float32"
        return (
            f"No exposed gain of {LEAST:g} or more survives the rounding of {kind}: at {LEAST:g} the worst input has "
            f"{worst:.1f} dB and {target:g} dB are needed; {costly} costs most ({alone[costly]:.1f} dB alone). "
            "Leave that layer out, "
            f"{'export with --dtype fp32' if self._convert else 'lower --min-psnr'}, or give --gain."
        )

    def _least(self, outputs: Sequence[Sequence[np.ndarray]]) -> float:
        return least_psnr(self._cases, self._targets, outputs, self._start.teacher.data_range.peak)


def with_gain(nodes: Mapping[str, Perturbation], gain: float) -> dict[str, Perturbation]:
    """The nodes with another exposed gain, never under their residual one."""
    return {
        name: replace(node, gain=max(gain, node.residual_gain), residual=node.residual_gain)
        for name, node in nodes.items()
    }


def _rounded_down(gain: float) -> float:
    return math.floor(gain * 1000) / 1000


def _half_case(case: Case) -> Case:
    others = tuple(x.astype(np.float16) if x.dtype.kind == "f" else x for x in case.others)
    return replace(case, input=case.input.astype(np.float16), others=others)
