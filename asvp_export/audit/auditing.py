"""An audit from models and pictures to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asvp_export.audit.arms import FULL, Arm, quick, screen, with_baselines
from asvp_export.audit.data import Data, fitting, from_folder, own
from asvp_export.audit.results import AuditResult, check_requirements, hold, judge
from asvp_export.audit.runner import Workers, run
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


def run_audit(
    model: Protected | Teacher,
    file: str | Path | None = None,
    *,
    task: str | None = None,
    data: str | Path | None = None,
    student: str = "",
    student_args: dict[str, Any] | None = None,
    profile: str = "quick",
    rows: Sequence[str] = (),
    seeds: int | None = None,
    steps: int | None = None,
    require: Sequence[str] = (),
    cache: str | Path = CACHE,
    workers: Workers | None = None,
    progress: Say = lambda line: None,
) -> AuditResult:
    """Train students on what a shipped model gives away, and say what the defence in it costs them.

    Args:
        model: the protected model, or the original where `file` is given.
        file: the protected ONNX file that is shipped.
        task: a degradation of `asvp_export.audit.degradations`: of the project's photographs, or of clean ones in `data`.
        data: folder of pictures, see `asvp_export.audit.data.from_folder`.
        student: "package.module:factory" or "path/nets.py:factory"; by default a small residual net.
        student_args: keyword arguments of the factory.
        profile: "quick", "screen" or "full".
        rows: names of rows instead of the profile's, such as "shipped/mse-1".
        seeds: students a row; by default the profile's.
        steps: of training; by default the profile's.
        require: bars such as "feature_kd_drop>=1.0".
        cache: folder that keeps finished students: a run that is stopped goes on where it was.
        workers: where students are trained.
        progress: called with lines, or counting.

    Returns:
        The verdict; `passed` says whether all bars are cleared.

    Raises:
        InputError: an option, a picture, the student or the file cannot be used.
    """
    if profile not in PROFILES:
        raise InputError(f"The profile {profile!r} was asked for; {', '.join(PROFILES)} are known.")
    chosen = PROFILES[profile]
    arms = [Arm.parse(name) for name in rows] or list(chosen.rows)
    check_requirements(require, with_baselines(arms))
    count, budget = chosen.seeds if seeds is None else seeds, Budget(steps=chosen.steps if steps is None else steps)
    if count < 1 or budget.steps < 1:
        raise InputError(f"{count} seeds and {budget.steps} steps were asked for; at least 1 of each is needed.")
    victim = _victim(model, file)
    for note in victim.notes:
        progress(f"note: {note}")
    teacher = victim.teacher
    if teacher.signature.frames:
        raise InputError(f"{teacher.source} restores videos; an audit trains students of pictures only.")
    pictures = _data(task, data)
    height, width = fitting(teacher, 64)
    pupil = student_for(
        teacher, list(victim.nodes), student, student_args, natural_images(1, teacher.channels, height, width)
    )
    findings = run(victim, pictures, pupil, arms, range(count), budget, Path(cache), workers, progress)
    result = AuditResult(
        model=teacher.source,
        source_sha256=teacher.sha256,
        file=Path(file).name if file else "",
        nodes=victim.nodes,
        task=task or "pairs",
        own=findings.own,
        rows=judge(findings),
        unavailable={str(arm): reason for arm, reason in findings.unavailable.items()},
        seeds=tuple(range(count)),
        budget=budget,
        student=Path(student).name or "ours",
        pictures=findings.pictures,
    )
    return replace(result, bars=hold(result.metrics, require))


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
            "No pictures were named: --task for a degradation of the project's photographs, or --data DIR, was expected."
        )
    return own(task)
