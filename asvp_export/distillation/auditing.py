"""An audit from models and pictures to a verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from asvp_export.distillation.arms import FULL, Arm, quick_arms, screen_arms, with_baselines
from asvp_export.distillation.data import accepted_size, check_task, from_folder, project_pictures
from asvp_export.distillation.results import AuditResult, check_requirements, evaluate_requirements, summarise
from asvp_export.distillation.runner import Experiment, Workers, run
from asvp_export.distillation.students import student_for
from asvp_export.distillation.training import Budget
from asvp_export.distillation.victim import Victim
from asvp_export.errors import InputError
from asvp_export.insertion.protected import Protected
from asvp_export.options import AuditOptions
from asvp_export.progress import Printer
from asvp_export.teacher.model import Teacher, natural_images


@dataclass(frozen=True)
class Profile:
    """How much is run."""

    rows: tuple[Arm, ...]
    seeds: int
    steps: int


PROFILES = {
    "quick": Profile(tuple(quick_arms()), 2, 250),
    "screen": Profile(tuple(screen_arms()), 1, 400),
    "full": Profile(tuple(FULL), 3, 1500),
}
"""Each question once, in minutes; everything, with one seed; eight rows with more seeds and longer training."""


def experiment_of(options: AuditOptions) -> Experiment:
    """The rows, seeds and steps that the profile and the other options come to; opens nothing.

    Raises:
        InputError: no pictures are named, there is no such row, or fewer than one seed or step is asked for.
    """
    if options.task is None and options.data is None:
        raise InputError("No pictures were named; give --task NAME, --data DIR, or both.")
    if options.task is not None:
        check_task(options.task)
    profile = PROFILES[options.profile]
    arms = [Arm.parse(name) for name in options.rows] or list(profile.rows)
    check_requirements(options.require, with_baselines(arms))
    seeds = profile.seeds if options.seeds is None else options.seeds
    budget = Budget(steps=profile.steps if options.steps is None else options.steps)
    if seeds < 1 or budget.steps < 1:
        raise InputError(f"{seeds} seeds and {budget.steps} steps were asked for; at least 1 of each is needed.")
    return Experiment(arms, range(seeds), budget)


def run_audit(
    model: Protected | Teacher,
    file: str | Path | None = None,
    *,
    options: AuditOptions,
    progress: Printer = lambda line: None,
) -> AuditResult:
    """Train students on what a shipped model gives away, and say what the defence in it costs them.

    Args:
        model: the protected model, or the original where `file` is given.
        file: the protected ONNX file that is shipped.
        options: on which pictures, what is trained, and where. The pictures are degraded as one of
            `asvp_export.distillation.degradations` says: the project's photographs, or those of a folder (see
            `asvp_export.distillation.data.from_folder`).
        progress: called with lines, or counting.

    Returns:
        The verdict; `passed` says whether all requirements are met.

    Raises:
        InputError: an option, a picture, the student or the file cannot be used.
    """
    experiment, task = experiment_of(options), options.task
    victim = _victim(model, file)
    for note in victim.notes:
        progress(f"note: {note}")
    teacher = victim.teacher
    if teacher.signature.frames:
        raise InputError(f"{teacher.source} restores videos; an audit trains students of pictures only.")
    pictures = from_folder(options.data, task) if options.data else project_pictures(str(task))
    example = natural_images(1, teacher.channels, *accepted_size(teacher, 64))
    student = student_for(teacher, list(victim.nodes), options.student, dict(options.student_args or {}), example)
    workers = Workers(options.jobs, options.backend, options.address)
    findings = run(victim, pictures, student, experiment, options.cache, workers, progress)
    result = AuditResult(
        model=teacher.source,
        source_sha256=teacher.sha256,
        file=Path(file).name if file else "",
        nodes=victim.nodes,
        task=task or "pairs",
        model_scores=findings.model_scores,
        rows=summarise(findings),
        unavailable={str(arm): reason for arm, reason in findings.unavailable.items()},
        seeds=tuple(experiment.seeds),
        budget=experiment.budget,
        student=Path(options.student).name or "ours",
        pictures=findings.pictures,
        feature_maps=findings.feature_maps,
    )
    return replace(result, requirements=evaluate_requirements(result.metrics, options.require))


def _victim(model: Protected | Teacher, file: str | Path | None) -> Victim:
    if file is not None:
        return Victim.of_file(model.teacher if isinstance(model, Protected) else model, Path(file))
    if isinstance(model, Teacher) or not model.nodes:
        raise InputError(
            "The model carries no node, so there is nothing to audit; name layers, a plan or the protected file."
        )
    return Victim(model)
