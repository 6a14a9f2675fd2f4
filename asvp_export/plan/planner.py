"""From what is asked for to a plan: which ranks and gains, compensated and verified."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from asvp_export.errors import InputError
from asvp_export.insertion.plan import Plan, PlannedLayer
from asvp_export.insertion.protected import Protected, insert
from asvp_export.operator import Perturbation
from asvp_export.parity.cases import Case
from asvp_export.plan.calibration import Calibration, draw
from asvp_export.plan.open_runner import open_runner
from asvp_export.plan.search import MARGIN_DB, PASSES, RANKS, Goal, Search, TrialResult, scaled
from asvp_export.plan.solve import Weights
from asvp_export.progress import Printer
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.model import Teacher

_REDUCTIONS = 4  # of the gains, at the most
_NONE = -200.0  # dB: stands for outputs that are not finite


@dataclass(frozen=True)
class PlanOptions:
    """What the plan has to meet."""

    ranks: tuple[int, ...]
    """Those that may be chosen; empty: 1, 2, 4, 8."""

    gain: float | None
    """None: the largest that fits."""

    min_psnr: float
    """dB that the worst verification image has to keep."""

    max_gain: float
    """No gain is larger."""

    compensate: str
    """"none", "solve" or "refine"."""

    @property
    def target(self) -> float:
        """dB, the margin included."""
        return self.min_psnr + MARGIN_DB

    @property
    def compensated(self) -> bool:
        """Whether weights are re-solved."""
        return self.compensate != "none"


def plan(
    teacher: Teacher,
    nodes: Mapping[str, Perturbation],
    options: PlanOptions,
    calibrate: Sequence[Path],
    cases: Sequence[Case],
    progress: Printer,
) -> Protected:
    """Fit ranks, gains and weights on one set of images so that they hold on another.

    Args:
        teacher: it is not changed.
        nodes: the layers, with axis and energy of their nodes.
        options: what is asked for.
        calibrate: images to fit on.
        cases: inputs of other images, on which the worst has to keep the tolerance and the margin.
        progress: called with a line at each step.

    Raises:
        InputError: see `asvp_export.plan.protection.protect_teacher`.
    """
    if options.compensate == "refine" and not open_backend(teacher).trainable:
        raise InputError(
            f"--compensate refine was asked for, which trains a PyTorch module; {teacher.source} runs as a graph. Use "
            "--compensate solve."
        )
    images = draw(teacher, calibrate, solved=options.compensated)
    search, unseen = _search(teacher, nodes, options, images, cases)
    if options.compensated and not any(map(search.compensable, nodes)):
        raise InputError(_nothing_linear(search, nodes))
    before = search.runner.passes
    trial = _first_fit(search, options, progress)
    passes = search.runner.passes - before
    trial = _refined(teacher, search, trial, options, images, progress)
    reduced = False
    if options.gain is None:
        trial, reduced = _reduce_gains(search, trial, options, unseen, progress)
    verified = search.worst(unseen, trial.nodes, trial.weights)
    if not (math.isfinite(verified) and math.isfinite(trial.psnr)):
        raise InputError("The outputs are not finite with these nodes; lower the gain, or choose other layers.")
    fitted = Plan(
        source_sha256=teacher.sha256,
        layers=tuple(_planned(search, layer, trial, options, reduced) for layer in nodes),
        min_psnr=options.min_psnr,
        compensate=options.compensate,
        held_out_psnr=round(trial.psnr, 2),
        verified_psnr=round(verified, 2),
        uncompensated_psnr=round(max(search.worst(unseen, trial.nodes, {}), _NONE), 2),
        calibration={
            "photographs": len(images.names),
            "crops": len(images.crops),
            "held_out": len(images.held_out),
            "passes": passes,
        },
        ridges=trial.ridges,
        weights=trial.weights,
    )
    search.runner.release()
    return insert(teacher, fitted.nodes, fitted.weights, fitted)


def _search(
    teacher: Teacher,
    nodes: Mapping[str, Perturbation],
    options: PlanOptions,
    images: Calibration,
    cases: Sequence[Case],
) -> tuple[Search, range]:
    """The search, and which inputs of its runner are the cases: it fits nothing to these."""
    verification = [tuple(torch.from_numpy(x).to(teacher.device) for x in case.inputs) for case in cases]
    runner = open_runner(teacher, list(nodes), [*images.crops, *images.held_out, *verification])
    count, fitted = len(images.crops), len(images.crops) + len(images.held_out)
    goal = Goal(
        peak=teacher.data_range.peak,
        target=options.target,
        max_gain=options.max_gain,
        ranks=options.ranks or RANKS,
    )
    unseen = range(fitted, fitted + len(cases))
    return Search(
        runner, nodes, range(count), range(count, fitted), goal, dict(zip(unseen, cases, strict=True))
    ), unseen


def _first_fit(search: Search, options: PlanOptions, progress: Printer) -> TrialResult:
    """Gains, ranks and weights that fit the calibration images: those that were asked for, or the largest."""
    nodes, fitted = search.nodes, len(search.crops) + len(search.held_out)
    progress(f"calibrating {len(nodes)} node(s) on {fitted} inputs")
    if options.gain is not None:
        return search.trial({layer: replace(node, gain=options.gain) for layer, node in nodes.items()})
    before = search.runner.passes
    shared = options.target + 10 * math.log10(len(nodes))
    alone = {layer: search.estimate(layer, shared).node for layer in nodes}
    return search.joint(alone, PASSES * len(nodes) * fitted - (search.runner.passes - before))


def _reduce_gains(
    search: Search, trial: TrialResult, options: PlanOptions, unseen: range, progress: Printer
) -> tuple[TrialResult, bool]:
    """Smaller gains until the verification images keep the tolerance too; these lower a plan and never raise it."""
    reduced = False
    for _ in range(_REDUCTIONS):
        worst = search.worst(unseen, trial.nodes, trial.weights)
        if worst >= options.target:
            return trial, reduced
        reduced = True
        step = min(10 ** ((worst - options.target - 0.2) / 20), 0.9) if math.isfinite(worst) else 0.1
        progress(f"the verification images have {worst:.1f} dB: reducing the gains")
        trial = search.trial(scaled(trial.nodes, step, options.max_gain))
    worst = search.worst(unseen, trial.nodes, trial.weights)
    if worst < options.target:
        raise InputError(
            f"No gain keeps the verification images at {options.min_psnr:g} dB with {MARGIN_DB:g} dB to spare; the "
            f"best that was reached is {worst:.1f} dB. Lower --min-psnr, or calibrate on more images like them."
        )
    return trial, reduced


def _refined(
    teacher: Teacher,
    search: Search,
    trial: TrialResult,
    options: PlanOptions,
    images: Calibration,
    progress: Printer,
) -> TrialResult:
    if options.compensate != "refine":
        return trial
    from asvp_export.plan.refine import refine

    weights: Weights = refine(teacher, search, trial, images, progress)
    return replace(trial, weights=weights, psnr=search.worst(search.held_out, trial.nodes, weights))


def _planned(search: Search, layer: str, trial: TrialResult, options: PlanOptions, reduced: bool) -> PlannedLayer:
    node = trial.nodes[layer]
    strength, change = search.strength(layer, node)
    if options.gain is not None:
        stopped = "the gain that was asked for"
    elif node.gain >= options.max_gain:
        stopped = f"the largest gain, {options.max_gain:g}"
    else:
        kind = "verification" if reduced else "calibration"
        stopped = f"the tolerance, on the {kind} images"
    consumers = search.runner.consumers
    solved = consumers.by_layer.get(layer, []) if search.compensable(layer) else []
    return PlannedLayer(
        name=layer,
        node=node,
        strength=round(strength, 4),
        relative_feature_change=round(change, 4),
        stopped_by=stopped,
        consumers=tuple(consumer.weight for consumer in solved),
        uncompensated=consumers.reasons.get(layer, "") if options.compensated else "",
    )


def _nothing_linear(search: Search, nodes: Mapping[str, Perturbation]) -> str:
    reasons = search.runner.consumers.reasons
    shown = "; ".join(f"{layer}: {reasons[layer]}" for layer in list(nodes)[:3] if layer in reasons)
    return (
        f"Compensation was asked for, and no protected layer is read by linear layers only ({shown}). Choose other "
        "layers, or --compensate none."
    )
