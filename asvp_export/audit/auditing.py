"""An audit from models and pictures to a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asvp_export.audit.arms import FULL, Arm, quick, screen, with_baselines
from asvp_export.audit.data import Data, fitting, from_folder, project_pictures
from asvp_export.audit.results import AuditResult, check_requirements, evaluate_requirements, summarise
from asvp_export.audit.runner import Experiment, Workers, run
from asvp_export.audit.students import student_for
from asvp_export.audit.training import Budget
from asvp_export.audit.victim import Victim
from asvp_export.errors import InputError
from asvp_export.graph.protect import Protected
from asvp_export.progress import Say
from asvp_export.teacher.model import Teacher, natural_images

CACHE = Path(".asvp-audit")


@dataclass(frozen=True)
class Profile:
    """How much is run."""

    rows: tuple[Arm, ...]
    seeds: int
    steps: int


PROFILES = {
    "quick": Profile(tuple(quick()), 2, 250),
    "screen": Profile(tuple(screen()), 1, 400),
    "full": Profile(tuple(FULL), 3, 1500),
}
"""Each question once, in minutes; everything, with one seed; eight rows with more seeds and longer training."""


@dataclass(frozen=True)
class AuditOptions:
    """What is trained, what is asked of it, and where."""

    profile: str = "quick"
    """"quick", "screen" or "full"."""

    rows: Sequence[str] = ()
    """Names of rows instead of the profile's, such as "shipped/mse-1"."""

    seeds: int | None = None
    """Students a row; None: the profile's."""

    steps: int | None = None
    """Of training; None: the profile's."""

    student: str = ""
    """"package.module:factory" or "path/nets.py:factory"; "": a small residual net."""

    student_args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""

    require: Sequence[str] = ()
    """Requirements such as "feature_kd_drop>=1.0"."""

    cache: str | Path = CACHE
    """Folder that keeps finished students: a run that is stopped goes on where it was."""

    workers: Workers = field(default_factory=Workers)
    """Where students are trained."""

    def experiment(self) -> Experiment:
        """The rows, seeds and steps that the profile and the other options come to.

        Raises:
            InputError: there is no such profile or row, or fewer than one seed or step is asked for.
        """
        if self.profile not in PROFILES:
            raise InputError(f"The profile {self.profile!r} was asked for; {', '.join(PROFILES)} are known.")
        profile = PROFILES[self.profile]
        arms = [Arm.parse(name) for name in self.rows] or list(profile.rows)
        check_requirements(self.require, with_baselines(arms))
        seeds = profile.seeds if self.seeds is None else self.seeds
        budget = Budget(steps=profile.steps if self.steps is None else self.steps)
        if seeds < 1 or budget.steps < 1:
            raise InputError(f"{seeds} seeds and {budget.steps} steps were asked for; at least 1 of each is needed.")
        return Experiment(arms, range(seeds), budget)


def run_audit(
    model: Protected | Teacher,
    file: str | Path | None = None,
    *,
    task: str | None = None,
    data: str | Path | None = None,
    options: AuditOptions | None = None,
    progress: Say = lambda line: None,
) -> AuditResult:
    """Train students on what a shipped model gives away, and say what the defence in it costs them.

    Args:
        model: the protected model, or the original where `file` is given.
        file: the protected ONNX file that is shipped.
        task: a degradation of `asvp_export.audit.degradations`: of the project's photographs, or of those in `data`.
        data: folder of pictures, see `asvp_export.audit.data.from_folder`.
        options: what is trained, and where.
        progress: called with lines, or counting.

    Returns:
        The verdict; `passed` says whether all requirements are met.

    Raises:
        InputError: an option, a picture, the student or the file cannot be used.
    """
    options = options or AuditOptions()
    experiment = options.experiment()
    victim = _victim(model, file)
    for note in victim.notes:
        progress(f"note: {note}")
    teacher = victim.teacher
    if teacher.signature.frames:
        raise InputError(f"{teacher.source} restores videos; an audit trains students of pictures only.")
    pictures = _data(task, data)
    example = natural_images(1, teacher.channels, *fitting(teacher, 64))
    student = student_for(teacher, list(victim.nodes), options.student, dict(options.student_args), example)
    findings = run(victim, pictures, student, experiment, Path(options.cache), options.workers, progress)
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


def _data(task: str | None, data: str | Path | None) -> Data:
    if data is not None:
        return from_folder(data, task)
    if task is None:
        raise InputError(
            "No pictures were named: --task for a degradation of the project's photographs, or --data DIR, "
            "was expected."
        )
    return project_pictures(task)
