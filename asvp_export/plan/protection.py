"""Protecting a teacher: with given numbers, or with the strongest ones that fit a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asvp_export.errors import InputError
from asvp_export.images import list_images
from asvp_export.insertion.plan import Plan, PlannedLayer, RankedLayer
from asvp_export.insertion.protected import Protected, insert, no_layers, nodes_for
from asvp_export.operator import Perturbation
from asvp_export.options import AUTO, DEFAULT_LAYERS, GAIN, FileOptions, GateOptions, ProtectOptions
from asvp_export.parity.choice import RequestedInputs, verification_inputs
from asvp_export.parity.expected import least_of
from asvp_export.picture import left_out
from asvp_export.progress import Printer
from asvp_export.teacher.model import Teacher

DEFAULT_GAIN = Perturbation.gain  # beside no tolerance to fit


def protect_teacher(
    teacher: Teacher,
    layers: Sequence[str] | str,
    options: ProtectOptions,
    gate: GateOptions,
    *,
    verify_images: Path | None = None,
    dtype: str = FileOptions.dtype,
    progress: Printer,
) -> Protected:
    """`asvp_export.protect`, with the options as objects."""
    settings = check_protect_options(options)
    if options.residual is None and settings.residual == AUTO:
        progress(
            "compensation without --residual: the largest residual gain that the readers can be re-solved for "
            "(--residual auto)"
        )
    layers, count = _layers(layers)
    if options.residual is not None and not count and no_layers(layers):
        raise InputError(
            f"A residual gain of {options.residual} was asked for, and no layer is protected. Name layers, or leave "
            "--residual out."
        )
    requested = RequestedInputs(verify_images if verify_images is not None else gate.images, gate.sizes, gate.thorough)
    nodes = nodes_for(teacher, ["**"] if count else layers, _initial_node(options, settings), options.axis)
    if not nodes:
        return insert(teacher, {})
    ranking: tuple[RankedLayer, ...] = ()
    if count:
        nodes, ranking = _ranked(teacher, nodes, count, options, gate, progress)
    if settings.calibrated:
        fitting = _Fitting(settings, gate, requested, verify_images)
        protected = _calibrated(teacher, nodes, fitting, progress)
        if settings.residual == GAIN:
            assert protected.plan is not None
            return replace(protected, plan=replace(protected.plan, ranking=ranking))
        nodes = {name: replace(node, residual=node.gain) for name, node in protected.nodes.items()}
        protected = replace(protected, nodes=nodes)
        requested = replace(requested, images=protected.verify_images or None)
    else:
        protected = insert(teacher, nodes)
    if options.gain == AUTO and settings.residual != GAIN:
        from asvp_export.plan.exposure import exposed

        cases, _ = verification_inputs(teacher, requested, teacher.size, teacher.static_shape)
        protected = exposed(protected, options.max_gain, cases, dtype=dtype, min_psnr=gate.min_psnr, progress=progress)
    elif settings.calibrated:
        from asvp_export.plan.exposure import with_gain

        new_nodes = with_gain(protected.nodes, float(options.gain))
        protected = replace(
            insert(teacher, new_nodes, protected.weights, protected.plan), verify_images=protected.verify_images
        )
    if options.gain == AUTO or ranking or settings.calibrated:
        return replace(protected, plan=plan_of(protected, gate, options, ranking))
    return protected


def _initial_node(options: ProtectOptions, settings: ResolvedOptions) -> Perturbation:
    """The node that each layer gets before any number is chosen."""
    return Perturbation(
        1 if options.rank == AUTO else int(options.rank),
        settings.start,
        options.energy,
        1 if options.axis is None else options.axis,
        None if settings.calibrated or settings.residual == GAIN else float(settings.residual),
    )


def _ranked(
    teacher: Teacher,
    nodes: dict[str, Perturbation],
    count: int,
    options: ProtectOptions,
    gate: GateOptions,
    progress: Printer,
) -> tuple[dict[str, Perturbation], tuple[RankedLayer, ...]]:
    """The layers that are chosen, and their ranking."""
    from asvp_export.plan.ranking import compensable, rank

    compensated = options.compensate != "none"
    nodes = compensable(teacher, nodes) if compensated else nodes
    nodes, ranking = rank(teacher, nodes, count, _calibration_images(gate.images), progress)
    return nodes, tuple(replace(layer, compensated=compensated) for layer in ranking)


def _layers(layers: Sequence[str] | str) -> tuple[Sequence[str], int]:
    """The names and globs, and how many layers are to be chosen; 0: none is."""
    names = [layers] if isinstance(layers, str) else list(layers)
    auto_words = [word for word in names if word == AUTO or word.startswith(f"{AUTO}:")]
    if auto_words and len(names) > 1:
        raise InputError(
            f"The layers {', '.join(names)} were asked for; auto cannot be combined with others. Give auto alone, or "
            "names alone."
        )
    return names, _count(auto_words[0]) if auto_words else 0


@dataclass(frozen=True)
class _Fitting:
    """What gains, and weights behind them, are fitted to."""

    settings: ResolvedOptions
    """The numbers and words."""

    gate: GateOptions
    """The images and the tolerance."""

    requested: RequestedInputs
    """The inputs to verify on."""

    verify_images: Path | None
    """Their folder, where the user names one."""


def _calibrated(teacher: Teacher, nodes: dict[str, Perturbation], fitting: _Fitting, progress: Printer) -> Protected:
    """Gains, and weights behind them, that keep the tolerance without any inverse."""
    from asvp_export.plan.calibration import split
    from asvp_export.plan.planner import PlanOptions, plan

    settings, requested, images = fitting.settings, fitting.requested, fitting.gate.images
    plan_options = PlanOptions(
        ranks=() if settings.rank_free and settings.fitted is None else (next(iter(nodes.values())).rank,),
        gain=settings.fitted,
        min_psnr=fitting.gate.min_psnr,
        max_gain=settings.limit,
        compensate=settings.compensate,
    )
    calibrate = _calibration_images(images)
    for line in left_out(calibrate):
        progress(f"note: {line}")
    if images is not None and fitting.verify_images is None:
        calibrate, verify = split(calibrate)
        requested = replace(requested, images=verify)
    cases, _ = verification_inputs(teacher, requested, teacher.size, teacher.static_shape)
    protected = plan(teacher, nodes, plan_options, calibrate, cases, progress)
    return replace(protected, verify_images=tuple(requested.paths) if requested.images is not None else ())


def plan_of(
    protected: Protected, gate: GateOptions, options: ProtectOptions, ranking: tuple[RankedLayer, ...] = ()
) -> Plan:
    """The plan brought up to the gains that the nodes have, or made where there was nothing to calibrate."""
    layers = tuple(_planned_layer(protected, name, options.max_gain, ranking) for name in protected.nodes)
    if protected.plan:
        return replace(protected.plan, layers=layers, ranking=ranking)
    worst = round(least_of(protected), 2) if protected.verified else None
    return Plan(protected.teacher.sha256, layers, gate.min_psnr, "none", None, worst, None, ranking=ranking)


def _planned_layer(protected: Protected, name: str, max_gain: float, ranking: tuple[RankedLayer, ...]) -> PlannedLayer:
    node = protected.nodes[name]
    effect = protected.verified[1].effects.get(name) if protected.verified else None
    before = next((layer for layer in protected.plan.layers if layer.name == name), None) if protected.plan else None
    ranked = next((layer for layer in ranking if layer.name == name), None)
    if node.gain >= max_gain:
        stopped = f"the largest gain, {max_gain:g}"
    else:
        stopped = "rounding, on the verification images" if protected.verified else "the gain that was asked for"
    if before and before.stopped_by != stopped:
        stopped = f"exposed: {stopped}; residual: {before.stopped_by}"
    return PlannedLayer(
        name,
        node,
        round(effect.strength, 4) if effect else ranked.strength if ranked else None,
        round(effect.relative_feature_change, 4) if effect else None,
        stopped,
        before.consumers if before else (),
        before.uncompensated if before else "",
    )


def _calibration_images(images: Path | None) -> list[Path]:
    from asvp_export.plan.calibration import default_images

    return default_images() if images is None else list_images(images)


def _count(word: str) -> int:
    number = word.partition(":")[2] or str(DEFAULT_LAYERS)
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f"The layers {word!r} were asked for; auto or auto:N was expected, with N at least 1.")
    return int(number)


@dataclass(frozen=True)
class ResolvedOptions:
    """What the numbers and words ask for, once the ones that depend on others are settled."""

    residual: float | str
    """1 or more, "auto" or "gain"."""

    calibrated: bool
    """Whether gains, or weights, are fitted on images."""

    fitted: float | None
    """The gain that the readers are fitted to; None: the largest that the tolerance allows."""

    start: float
    """The gain that nodes have before any is chosen."""

    limit: float
    """No gain that readers get is larger."""

    rank_free: bool
    """Whether the rank may be chosen."""

    compensate: str
    """"none", "solve" or "refine"."""


def check_protect_options(options: ProtectOptions) -> ResolvedOptions:
    """Check the numbers and words of the options, alone and together, and settle those that depend on others.

    Raises:
        InputError: an attribute out of range, or two that do not go together.
    """
    rank, gain, max_gain, energy = options.rank, options.gain, options.max_gain, options.energy
    compensate, residual = options.compensate, options.residual
    if residual is None:
        residual = 1.0 if compensate == "none" else AUTO
    if residual == AUTO and compensate == "none":
        raise InputError(
            "--residual auto was asked for without compensation; it is found by re-solving the readers. Add "
            "--compensate solve, or leave --residual out (1: the outputs stay the original's)."
        )
    if compensate != "none" and not isinstance(residual, str):
        raise InputError(
            f"Compensation was asked for with a residual gain of {residual:g}; the residual gain is found while the "
            "readers are re-solved. Use --residual auto or --residual gain."
        )
    start = max_gain if gain == AUTO else float(gain)
    if gain == AUTO and residual == GAIN:
        start = DEFAULT_GAIN
    Perturbation(
        1 if rank == AUTO else int(rank), start, energy, 1, None if isinstance(residual, str) else float(residual)
    )
    if energy < 1 and residual != GAIN:
        raise InputError(
            f"The energy is {energy:g}; an energy below 1 needs --residual gain, because the exposed map does not "
            "show how many values were amplified."
        )
    calibrated = compensate != "none" or (residual == GAIN and gain == AUTO)
    return ResolvedOptions(
        residual=residual,
        calibrated=calibrated,
        fitted=float(gain) if residual == GAIN and gain != AUTO else None,
        start=start,
        limit=max_gain if gain == AUTO else max(float(gain), 1.001),
        rank_free=rank == AUTO and residual == GAIN,
        compensate=compensate,
    )
