"""`export`: protect a model, export it, verify the file, write what lies beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

from asvp_export.errors import InputError
from asvp_export.files import check_output
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import Protected
from asvp_export.keywords import ExportKeywords
from asvp_export.option_groups import grouped
from asvp_export.options import AUTO, FileOptions, GateOptions, LoadOptions, ProtectOptions, ReportOptions
from asvp_export.parity.result import ParityResult
from asvp_export.plan.protection import check_protect_options, protect_teacher
from asvp_export.progress import Printer, silent
from asvp_export.workflows.artifacts import keep_apart, shipped_files
from asvp_export.workflows.preflight import (
    Model,
    flags_of,
    refuse_flags,
    refuse_options,
    stem_of,
    teacher_of,
    warn_of_two_runtimes,
)
from asvp_export.workflows.publication import Rehearsal, failed_path, publish_verified
from asvp_export.workflows.reading import Named, compared_files, loaded_files, pictures, plan_files


@dataclass(frozen=True)
class ExportJob:
    """The options of an export."""

    layers: tuple[str, ...] = ()
    """Names and globs; none where a plan is given."""

    plan: Plan | Path | None = None
    """The plan of an earlier export, or its file, instead of layers."""

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
    model: Protected | Model,
    output: str | Path | None = None,
    *,
    layers: Sequence[str] | str = (),
    plan: Plan | str | Path | None = None,
    verify_images: str | Path | None = None,
    progress: Printer = silent,
    note: Printer = silent,
    **options: Unpack[ExportKeywords],
) -> ParityResult:
    """Export a protected model, verify the file, give it its name once it passed, and write the reports beside it.

    Args:
        model: from `protect`; or a model that is protected here, as `layers` or `plan` say.
        output: the ONNX file; None: the model's stem + .protected.onnx, in the working folder.
        layers: see `protect`.
        plan: of an earlier export, or its file.
        verify_images: folder of inputs to verify on; `images` is then what gains and weights are fitted to.
        progress: called with a line at each stage; a `asvp_export.progress.Progress` counts within stages too.
        note: called with what the user has to know.
        **options: see `asvp_export.options`: `LoadOptions` and `ProtectOptions` (for a model that is protected here),
            `GateOptions`, `FileOptions` and `ReportOptions`. By default the inputs are those that the plan was
            verified on, else the project's own photographs: as many, and as large crops of them, as the model's cost
            allows (`asvp_export.parity.choice`). With `static`, `sizes` has exactly one.

    Returns:
        The verdict; `files` says what was written beside the ONNX file. When a gate failed, `passed` is False and no
        file stands at `output`. Where the protected model was planned, or ground truth is given, the removal tests
        are in it (`asvp_export.parity.removal`), with maps fitted on crops of the verification images themselves,
        which is in the attackers' favour; they never change the verdict.

    Raises:
        InputError: bad options, model, images or output; the exporter's refusals are AsvpError.
        MachineError: the disk or the memory is full.
    """
    groups = grouped(options, ExportKeywords, LoadOptions, ProtectOptions, GateOptions, FileOptions, ReportOptions)
    verify = Path(verify_images) if verify_images else None
    chosen = Path(plan) if isinstance(plan, str) else plan
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    return export_model(
        model, Path(output) if output else None, ExportJob(names, chosen, verify, *groups), progress, note
    )


def export_model(
    model: Protected | Model,
    output: Path | None,
    job: ExportJob,
    progress: Printer,
    note: Printer,
    rehearse: Rehearsal = lambda result: None,
) -> ParityResult:
    """`export`, with the options as objects; `rehearse` is called with the result before anything is written."""
    is_protected = isinstance(model, Protected)
    if is_protected:
        _refuse_choices(job)
    elif not job.layers and job.plan is None:
        raise InputError("No layers were named; give --layers NAMES, --layers auto, or --plan FILE.")
    elif job.plan is not None:
        name = job.plan if isinstance(job.plan, Path) else "the plan"
        refuse_flags(
            [*(["--layers"] if job.layers else []), *flags_of(job.protect)],
            f"{name} already says which nodes are inserted; give one of the two.",
        )
    check_protect_options(job.protect)
    output = output or default_output(model)
    check_output(output, force=job.file.force)
    planned = model.plan is not None if is_protected else job.plan is None and _planned(job)
    files = shipped_files(output, job.report, job.file.force, planned)
    outputs = {"output": output}
    if job.file.keep_failed:
        outputs["file that failed"] = failed_path(output)
        check_output(failed_path(output), force=job.file.force, role="file that failed")
    keep_apart(_read_files(model, job), outputs | files, job.file.force)
    plan = Plan.load(job.plan) if isinstance(job.plan, Path) else job.plan  # told before a large model is loaded
    warn_of_two_runtimes(note)
    protected = model if is_protected else _protected(model, job, plan, progress, note)
    gate = replace(job.gate, images=job.gate.images if is_protected else _verified_on(job, protected))
    return publish_verified(protected, output, gate, job.file, files, progress, rehearse)


def _refuse_choices(job: ExportJob) -> None:
    opening = "A protected model was given"
    if job.layers or job.plan or job.verify_images:
        raise InputError(
            f"{opening}, and layers, a plan or verify_images as well, which then have no effect; leave one of the two "
            "out."
        )
    refuse_options(opening, job.load, job.protect)


def _protected(model: Model, job: ExportJob, plan: Plan | None, progress: Printer, note: Printer) -> Protected:
    teacher = teacher_of(model, job.load, progress, note)
    if plan:
        return apply(teacher, plan)
    return protect_teacher(
        teacher,
        job.layers,
        job.protect,
        job.gate,
        verify_images=job.verify_images,
        dtype=job.file.dtype,
        progress=progress,
    )


def default_output(model: Protected | Model) -> Path:
    """Where a model's protected file goes by default."""
    return Path(f"{stem_of(model)}.protected.onnx")


def _verified_on(job: ExportJob, protected: Protected) -> Path | None:
    """The folder to verify on; None: the plan's own images, or the project's photographs."""
    if job.gate.images is None or job.verify_images is not None:
        return job.verify_images
    return None if protected.verify_images else job.gate.images


def _planned(job: ExportJob) -> bool:
    chooses = any(word.startswith(AUTO) for word in job.layers)
    return job.protect.gain == AUTO or job.protect.compensate != "none" or chooses


def _read_files(model: Protected | Model, job: ExportJob) -> Iterator[Named]:
    """Every file that is read."""
    yield from loaded_files(model, job.load)
    yield from plan_files(job.plan)
    yield from compared_files(job.gate, job.verify_images)
    yield from pictures(job.file.ground_truth, "clean picture")
