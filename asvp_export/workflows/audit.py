"""`audit`: what attackers lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

from asvp_export.distillation.auditing import experiment_of, run_audit
from asvp_export.distillation.results import AuditResult
from asvp_export.errors import InputError
from asvp_export.files import atomic_write
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import Protected
from asvp_export.keywords import AuditKeywords
from asvp_export.option_groups import grouped
from asvp_export.options import AuditOptions, GateOptions, LoadOptions, ProtectOptions
from asvp_export.plan.protection import check_protect_options, protect_teacher
from asvp_export.progress import Printer, silent
from asvp_export.report.audit_page import audit_page
from asvp_export.report.strict_json import json_bytes
from asvp_export.teacher.model import Teacher
from asvp_export.workflows.artifacts import audit_files, check_cache, keep_apart, make_folder
from asvp_export.workflows.preflight import Model, flags_of, refuse_flags, refuse_options, stem_of, teacher_of
from asvp_export.workflows.reading import (
    Named,
    audit_pictures,
    code_files,
    compared_files,
    loaded_files,
    model_files,
    plan_files,
)


def audit(
    model: Protected | Model,
    protected: str | Path | None = None,
    *,
    layers: Sequence[str] | str = (),
    plan: Plan | str | Path | None = None,
    verify_images: str | Path | None = None,
    progress: Printer = silent,
    note: Printer = silent,
    **options: Unpack[AuditKeywords],
) -> AuditResult:
    """Train students on what a shipped model gives away, and say what the defence costs them.

    Args:
        model: the original: a teacher, or what `load` takes; or what `protect` made, which is then what is shipped.
        protected: the shipped ONNX file; None: a plan, or layers, say what is shipped.
        layers: what is protected here, see `protect`.
        plan: of what is shipped, or its file.
        verify_images: folder of inputs on which gains are verified.
        progress: called with a line at each step; a `asvp_export.progress.Progress` counts too.
        note: called with what the user has to know.
        **options: see `asvp_export.options`: `AuditOptions`; `LoadOptions` for a model that is loaded here,
            `ProtectOptions` and `GateOptions` (no `provider`) for one that is protected here.

    Returns:
        The verdict; `passed` says whether all requirements are met, `files` where the reports lie.

    Raises:
        InputError: options, a file or pictures cannot be used.
        MachineError: the disk or the memory is full.
    """
    groups = grouped(options, AuditKeywords, AuditOptions, LoadOptions, ProtectOptions, GateOptions)
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    chosen = Path(plan) if isinstance(plan, str) else plan
    job = AuditJob(names, chosen, Path(verify_images) if verify_images else None, *groups)
    return audit_model(model, Path(protected) if protected else None, job, progress, note)


@dataclass(frozen=True)
class AuditJob:
    """The options of an audit."""

    layers: tuple[str, ...] = ()
    """What is protected on the spot, where neither a file nor a plan says what is shipped."""

    plan: Plan | Path | None = None
    """The plan of what is shipped, or its file."""

    verify_images: Path | None = None
    """Folder of inputs on which gains are verified."""

    audit: AuditOptions = field(default_factory=AuditOptions)
    """Which students learn what."""

    load: LoadOptions = field(default_factory=LoadOptions)
    """How the original is loaded."""

    protect: ProtectOptions = field(default_factory=ProtectOptions)
    """Which nodes are inserted, with layers."""

    gate: GateOptions = field(default_factory=GateOptions)
    """The images that gains are fitted to, and their tolerance."""


def audit_model(
    model: Protected | Model, protected: Path | None, job: AuditJob, progress: Printer, note: Printer
) -> AuditResult:
    """`audit`, with the options as objects."""
    audit_options = job.audit
    is_protected = isinstance(model, Protected)
    _refuse_choices(model, protected, job)
    experiment_of(audit_options)  # refuses what cannot be run, before a model is loaded
    check_protect_options(job.protect)
    files = audit_files(audit_options.report or Path(), protected.stem if protected else stem_of(model))
    check_cache(audit_options.cache)
    keep_apart(_read_files(model, protected, job), files)
    plan = Plan.load(job.plan) if isinstance(job.plan, Path) else job.plan
    subject = model if is_protected else _subject(teacher_of(model, job.load, progress, note), plan, job, progress)
    result = run_audit(subject, protected, options=audit_options, progress=progress)
    contents = {"report": json_bytes(result.as_dict()), "page": audit_page(result).encode("utf-8", "replace")}
    make_folder(files["report"])
    for kind, content in contents.items():
        atomic_write(files[kind], content)
    return replace(result, files=files)


def _refuse_choices(model: Protected | Model, protected: Path | None, job: AuditJob) -> None:
    """Refuse anything but one answer to what is shipped, and options that only a model protected here needs."""
    is_protected = isinstance(model, Protected)
    count = sum((protected is not None, job.plan is not None, bool(job.layers), is_protected))
    if count != 1:
        raise InputError(
            f"{'More than one' if count else 'None'} of PROTECTED, --plan FILE and --layers NAMES was given; give one, "
            "to say which protected model is audited."
        )
    if is_protected:
        refuse_options("A protected model was given", job.load)
    if not job.layers:
        name = "the model" if is_protected else protected or (job.plan if isinstance(job.plan, Path) else "the plan")
        refuse_flags(
            [*flags_of(job.protect, job.gate), *(["--verify-images"] if job.verify_images else [])],
            f"{name} already says how the model is protected; leave the option out, or give --layers instead of "
            f"{name}.",
        )


def _subject(teacher: Teacher, plan: Plan | None, job: AuditJob, progress: Printer) -> Protected | Teacher:
    """What is audited: protected here, or the original of a shipped file."""
    if plan:
        return apply(teacher, plan)
    if not job.layers:
        return teacher
    return protect_teacher(
        teacher, job.layers, job.protect, job.gate, verify_images=job.verify_images, progress=progress
    )


def _read_files(model: Protected | Model, protected: Path | None, job: AuditJob) -> Iterator[Named]:
    """Every file that is read."""
    yield from loaded_files(model, job.load)
    if protected:
        yield from model_files(protected, "protected file")
    yield from plan_files(job.plan)
    yield from compared_files(job.gate, job.verify_images)
    yield from code_files(job.audit.student, "student")
    yield from audit_pictures(job.audit.data)
