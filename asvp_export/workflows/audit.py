"""`audit`: what attackers lose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asvp_export.distillation.auditing import run_audit
from asvp_export.distillation.results import AuditResult, check_requirements
from asvp_export.errors import InputError
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan
from asvp_export.options import AuditOptions, GateOptions, LoadOptions, ProtectOptions
from asvp_export.plan.protection import protect_teacher, resolved
from asvp_export.progress import Printer
from asvp_export.report.audit_page import write_audit_page
from asvp_export.report.report import write_json
from asvp_export.teacher.load import load_teacher
from asvp_export.workflows.artifacts import Files, audit_files, keep_apart, make_folder
from asvp_export.workflows.preflight import tell


@dataclass(frozen=True)
class AuditJob:
    """What an audit is told."""

    layers: tuple[str, ...] = ()
    """What is protected on the spot, where neither a file nor a plan says what is shipped."""

    plan: Path | None = None
    """The plan of what is shipped."""

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


def audit(
    model: Path, protected: Path | None, job: AuditJob, progress: Printer, note: Printer
) -> tuple[AuditResult, Files]:
    """Train students on what a shipped model gives away, and say what the defence costs them.

    Args:
        model: the original teacher's file.
        protected: the shipped ONNX file; None: a plan, or layers, say what is shipped.
        job: everything else.
        progress: called with a line at each step, or counting.
        note: called with what the user has to know.

    Returns:
        The verdict, and the reports by what they are.

    Raises:
        InputError: options, a file or pictures cannot be used.
        MachineError: the disk or the memory is full.
    """
    asked = job.audit
    if sum((protected is not None, job.plan is not None, bool(job.layers))) != 1:
        raise InputError("One of a protected file, a plan and layers was expected: what is shipped?")
    check_requirements(asked.require)
    resolved(job.protect)
    files = audit_files(asked.report or Path(), (protected or model).stem)
    read = {"model": model, **({"protected file": protected} if protected else {})}
    keep_apart(read | ({"plan": job.plan} if job.plan else {}), files)
    chosen = Plan.load(job.plan) if job.plan else None
    progress(f"loading {model.name}")
    teacher = load_teacher(model, job.load)
    tell(teacher.assumptions, note)
    subject: Any = teacher
    if chosen:
        subject = apply(teacher, chosen)
    elif protected is None:
        subject = protect_teacher(
            teacher, job.layers, job.protect, job.gate, verify_images=job.verify_images, progress=progress
        )
    result = run_audit(subject, protected, options=asked, progress=progress)
    make_folder(files["report"])
    write_json(files["report"], result.as_dict())
    write_audit_page(result, files["page"])
    return result, files
