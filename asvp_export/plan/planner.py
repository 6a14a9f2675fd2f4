"""From wishes to a plan: which ranks and gains, compensated and verified."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from asvp_export.errors import InputError
from asvp_export.graph.protect import Protected, insert
from asvp_export.operator import Perturbation
from asvp_export.parity.cases import Case
from asvp_export.plan.calibration import Calibration, draw
from asvp_export.plan.plan import Plan, PlannedLayer
from asvp_export.plan.runners import open_runner
from asvp_export.plan.search import MARGIN_DB, PASSES, RANKS, Goal, Search, TrialResult, scaled
from asvp_export.plan.solve import Weights
from asvp_export.progress import Say
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.model import Teacher

_SCALES_BACK = 4
_NONE = -200.0  # dB: stands for outputs that are not finite


@dataclass(frozen=True)
class PlanOptions:
    """What the plan has to meet."""

    ranks: tuple[int, ...]
    """Those that may be chosen; empty: 1, 2, 4, 8."""
    gain: float | None
    """None: the largest that fits."""
    min_psnr: float
    max_gain: float
    compensate: str

    @property
    def target(self) -> float:
        """dB, the margin included."""
        return self.min_psnr + MARGIN_DB


def plan(
    teacher: Teacher,
    nodes: Mapping[str, Perturbation],
    wishes: PlanOptions,
    calibrate: Sequence[Path],
    cases: Sequence[Case],
    progress: Say,
) -> Protected:
    """Fit ranks, gains and weights on one set of images so that they hold on another.

    Args:
        teacher: it is not changed.
        nodes: the layers, with axis and energy of their nodes.
        wishes: what is asked for.
        calibrate: images to fit on.
        cases: inputs of other images, on which the worst has to keep the tolerance and the margin.
        progress: called with a line at each step.

    Raises:
        InputError: see `asvp_export.protection.protect`.
    """
    if wishes.compensate == "refine" and not open_backend(teacher).trainable:
        raise InputError(
            f"Refinement was asked for, which trains a PyTorch module, and {teacher.source} is run as a graph; use --compensate solve."
        )
    images = draw(teacher, calibrate, solved=wishes.compensate != "none")
    search = _search(teacher, nodes, wishes, images, cases)
    runner = search.runner
    fitted = len(images.crops) + len(images.held_out)
    unseen = range(fitted, fitted + len(cases))
    if wishes.compensate != "none" and not any(map(search.compensable, nodes)):
        raise InputError(_nothing_linear(search, nodes))
    progress(f"calibrating {len(nodes)} node(s) on {fitted} inputs")
    before = runner.passes
    budget = PASSES * len(nodes) * fitted
    if wishes.gain is None:
        shared = wishes.target + 10 * math.log10(len(nodes))
        singles = {layer: search.single(layer, shared) for layer in nodes}
        trial = search.joint({layer: one.node for layer, one in singles.items()}, budget - (runner.passes - before))
    else:
        trial = search.trial({layer: replace(node, gain=wishes.gain) for layer, node in nodes.items()})
    passes = runner.passes - before
    trial = _refined(teacher, search, trial, wishes, images, progress)
    if wishes.gain is None:
        trial, backed = _reduce_gains(search, trial, wishes, unseen, progress)
    else:
        backed = False
    verified = search.worst(unseen, trial.nodes, trial.weights)
    if not (math.isfinite(verified) and math.isfinite(trial.psnr)):
        raise InputError("The outputs are not finite with these nodes; lower the gain, or choose other layers.")
    layers = tuple(_planned(search, layer, trial, wishes, backed) for layer in nodes)
    made = Plan(
        source_sha256=teacher.sha256,
        layers=layers,
        min_psnr=wishes.min_psnr,
        compensate=wishes.compensate,
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
    runner.release()
    return insert(teacher, made.nodes, made.weights, made)


def _search(
    teacher: Teacher,
    nodes: Mapping[str, Perturbation],
    wishes: PlanOptions,
    images: Calibration,
    cases: Sequence[Case] = (),
) -> Search:
    more = [tuple(torch.from_numpy(x).to(teacher.device) for x in case.inputs) for case in cases]
    runner = open_runner(teacher, list(nodes), [*images.crops, *images.held_out, *more])
    count, fitted = len(images.crops), len(images.crops) + len(images.held_out)
    goal = Goal(teacher.data_range.peak, wishes.target, wishes.max_gain, wishes.ranks or RANKS)
    known = dict(enumerate(cases, start=fitted))
    return Search(runner, nodes, range(count), range(count, fitted), goal, known)


def _reduce_gains(
    search: Search, trial: TrialResult, wishes: PlanOptions, unseen: range, progress: Say
) -> tuple[TrialResult, bool]:
    """Gains taken back until the verification images keep the tolerance too; these lower a plan and never raise it."""
    backed = False
    for _ in range(_SCALES_BACK):
        found = search.worst(unseen, trial.nodes, trial.weights)
        if found >= wishes.target:
            return trial, backed
        backed = True
        step = min(10 ** ((found - wishes.target - 0.2) / 20), 0.9) if math.isfinite(found) else 0.1
        progress(f"the verification images have {found:.1f} dB: taking the gains back")
        trial = search.trial(scaled(trial.nodes, step, wishes.max_gain))
    found = search.worst(unseen, trial.nodes, trial.weights)
    if found < wishes.target:
        raise InputError(
            f"No gain keeps the verification images at {wishes.min_psnr:g} dB and {MARGIN_DB:g} dB to spare; the best that was reached is "
            f"{found:.1f} dB. Lower --min-psnr, or calibrate on more images that are like them."
        )
    return trial, backed


def _refined(
    teacher: Teacher, search: Search, trial: TrialResult, wishes: PlanOptions, images: Calibration, progress: Say
) -> TrialResult:
    if wishes.compensate != "refine":
        return trial
    from asvp_export.plan.refine import refine

    weights: Weights = refine(teacher, search, trial, images, progress)
    return replace(trial, weights=weights, psnr=search.worst(search.held_out, trial.nodes, weights))


def _planned(search: Search, layer: str, trial: TrialResult, wishes: PlanOptions, backed: bool) -> PlannedLayer:
    node = trial.nodes[layer]
    strength, change = search.strength(layer, node)
    if wishes.gain is not None:
        stopped = "the gain that was asked for"
    elif node.gain >= wishes.max_gain:
        stopped = f"the largest gain, {wishes.max_gain:g}"
    else:
        where = "verification" if backed else "calibration"
        stopped = f"the tolerance, on the {where} images"
    consumers = search.runner.consumers
    solved = (
        tuple(consumer.weight for consumer in consumers.by_layer.get(layer, ())) if search.compensable(layer) else ()
    )
    reason = consumers.reasons.get(layer, "") if wishes.compensate != "none" else ""
    return PlannedLayer(layer, node, round(strength, 4), round(change, 4), stopped, solved, reason)


def _nothing_linear(search: Search, nodes: Mapping[str, Perturbation]) -> str:
    reasons = search.runner.consumers.reasons
    shown = "; ".join(f"{layer}: {reasons[layer]}" for layer in list(nodes)[:3] if layer in reasons)
    return (
        f"Compensation was asked for and no layer that is protected has linear readers alone ({shown}). Choose other layers, or "
        "--compensate none."
    )
