"""`export`: protect a model, export it, verify the file, write what lies beside it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from asvp_export.errors import InputError
from asvp_export.files import check_output
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import Protected
from asvp_export.options import AUTO, FileOptions, GateOptions, LoadOptions, ProtectOptions, ReportOptions
from asvp_export.parity.result import ParityResult
from asvp_export.plan.protection import protect_teacher, resolved
from asvp_export.progress import Printer
from asvp_export.teacher.load import load_teacher
from asvp_export.workflows.artifacts import Files, keep_apart, shipped_files, write_artifacts
from asvp_export.workflows.preflight import tell, warn_of_two_runtimes
from asvp_export.workflows.publication import export_protected


@dataclass(frozen=True)
class ExportJob:
    """What an export is told."""

    layers: tuple[str, ...] = ()
    """Names and globs; none where a plan is given."""

    plan: Path | None = None
    """The plan of an earlier export, instead of layers."""

    verify_images: Path | None = None
    """Folder of inputs to verify on; the gate's images are then what gains and weights are fitted to."""

    load: LoadOptions = field(default_factory=LoadOptions)
    """How the model is loaded."""

    protect: ProtectOptions = field(default_factory=ProtectOptions)
    """Which nodes are inserted."""

    gate: GateOptions = field(default_factory=GateOptions)
    """What is compared."""

    file: FileOptions = field(default_factory=FileOptions)
    """Which file is written."""

    report: ReportOptions = field(default_factory=ReportOptions)
    """Which reports."""


def export(
    model: Path, output: Path | None, job: ExportJob, progress: Printer, note: Printer
) -> tuple[ParityResult, Files]:
    """Protect a model's file, export it, and give the new file its name once it is verified.

    Args:
        model: a file that `load` takes.
        output: the ONNX file; None: the model's stem + .protected.onnx, in the working folder.
        job: everything else.
        progress: called with a line at each step.
        note: called with what the user has to know.

    Returns:
        The verdict, and what was written beside the file by what it is.

    Raises:
        InputError: options, the model, images or output cannot be used.
        MachineError: the disk or the memory is full.
    """
    if not job.layers and job.plan is None:
        raise InputError("No layers were named; layers (auto chooses them) or a plan was expected.")
    chosen = Plan.load(job.plan) if job.plan else None  # what is wrong is told before a large model is loaded
    resolved(job.protect)
    output = output or default_output(model)
    check_output(output, force=job.file.force)
    files = shipped_files(output, job.report, job.file.force, planned=chosen is None and _planned(job))
    keep_apart(_read(model, job), {"output": output, **files})
    warn_of_two_runtimes(note)
    progress(f"loading {model.name}")
    teacher = load_teacher(model, job.load)
    tell(teacher.assumptions, note)
    if chosen:
        protected = apply(teacher, chosen)
    else:
        protected = protect_teacher(
            teacher,
            job.layers,
            job.protect,
            job.gate,
            verify_images=job.verify_images,
            dtype=job.file.dtype,
            progress=progress,
        )
    gate = replace(job.gate, images=_verified_on(job, protected))
    result = export_protected(protected, output, gate, job.file, evidence="page" in files, progress=progress)
    return result, write_artifacts(result, output, files)


def default_output(model: Path) -> Path:
    """Where a model's protected file goes by default."""
    return Path(f"{model.stem}.protected.onnx")


def _verified_on(job: ExportJob, protected: Protected) -> Path | None:
    """The folder to verify on; None: the plan's own images, or the project's photographs."""
    if job.gate.images is None or job.verify_images is not None:
        return job.verify_images
    return None if protected.verify_images else job.gate.images


def _planned(job: ExportJob) -> bool:
    chooses = any(word.startswith(AUTO) for word in job.layers)
    return job.protect.gain == AUTO or job.protect.compensate != "none" or chooses


def _read(model: Path, job: ExportJob) -> Files:
    """The files that are read, by what they are."""
    read = {"model": model}
    if job.load.arch:
        read["architecture"] = Path(job.load.arch.rpartition(":")[0])
    return read | ({"plan": job.plan} if job.plan else {})
