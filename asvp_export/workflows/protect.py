"""`protect`: nodes behind the selected layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from asvp_export.errors import InputError
from asvp_export.files import check_output
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import Protected
from asvp_export.keywords import ProtectKeywords
from asvp_export.options import AUTO, FileOptions, GateOptions, LoadOptions, ProtectOptions, grouped
from asvp_export.plan.protection import plan_of, protect_teacher, resolved
from asvp_export.progress import Printer, silent
from asvp_export.workflows.artifacts import Files, keep_apart
from asvp_export.workflows.preflight import Model, teacher_of
from asvp_export.workflows.reading import compared_files, loaded_files


def protect(
    model: Model,
    layers: Sequence[str] | str = AUTO,
    *,
    verify_images: str | Path | None = None,
    dtype: str = FileOptions.dtype,
    progress: Printer = silent,
    note: Printer = silent,
    **options: Unpack[ProtectKeywords],
) -> Protected:
    """Insert a node, and its inverse, behind each selected layer.

    A layer that is called several times gets them at each call. Each layer has two gains: with `gain` its map is
    exposed, and with `residual` the layers that read it get it. With a residual of 1, the default, the outputs stay
    the original's to rounding, and `gain="auto"` is the largest gain up to `max_gain` that leaves 80 dB of them on the
    verification inputs (float16: that leaves `min_psnr` and 1 dB).

    With `residual="auto"` and `compensate` the readers get the largest gain that keeps `min_psnr` and 1 dB to spare
    once they are re-solved, where all of them are linear in the map; the exposed gain is free of that. With
    `residual="gain"` there is no inverse, and `gain="auto"` is what the tolerance allows.

    Args:
        model: a teacher (from `asvp_export.load`; it is not changed), or what `load` takes.
        layers: names or globs of the modules (`*` stays inside one dotted part, `**` crosses dots); "auto" or
            "auto:N": the N (3) layers that their spectra speak for, spread over the depth; "none" or nothing: no node.
        verify_images: folder of inputs to verify on; without it two fifths of `images` where gains are calibrated, else
            all of them.
        dtype: "fp32" or "fp16": in which type the file will be exported, whose rounding the exposed gain has to
            survive.
        progress: called with a line at each step; a `asvp_export.progress.Progress` counts within steps too.
        note: called with what was concluded of the model and is not certain.
        **options: see `asvp_export.options.LoadOptions`, `ProtectOptions` and `GateOptions` (no `provider`).

    Returns:
        The protected teacher, with its plan where numbers were chosen.

    Raises:
        InputError: an attribute out of range, an unknown layer or one that cannot carry the node, a tolerance that
            no gain meets, too few images, or compensation where no reader is linear.
    """
    load, nodes, gate = grouped(options, ProtectKeywords, LoadOptions, ProtectOptions, GateOptions)
    teacher = teacher_of(model, load, progress, note)
    verify = Path(verify_images) if verify_images else None
    return protect_teacher(teacher, layers, nodes, gate, verify_images=verify, dtype=dtype, progress=progress)


@dataclass(frozen=True)
class ProtectJob:
    """The options of protecting a model."""

    layers: tuple[str, ...] = ()
    """Names and globs."""

    verify_images: Path | None = None
    """Folder of inputs to verify on; the gate's images are then what gains and weights are fitted to."""

    load: LoadOptions = field(default_factory=LoadOptions)
    """How the model is loaded."""

    protect: ProtectOptions = field(default_factory=ProtectOptions)
    """Which nodes are inserted."""

    gate: GateOptions = field(default_factory=GateOptions)
    """The images, and the tolerance."""

    file: FileOptions = field(default_factory=FileOptions)
    """The type of the file that will be exported; whether an existing plan is replaced."""


def protect_model(
    model: Path, output: Path | None, job: ProtectJob, progress: Printer, note: Printer
) -> tuple[Plan, Files]:
    """Choose nodes, gains and weights for a model's file, and keep them as a plan; nothing is exported.

    Args:
        model: a file that `load` takes.
        output: the plan; None: the model's stem + .plan.json, in the working folder.
        job: everything else.
        progress: called with a line at each step.
        note: called with what the user has to know.

    Returns:
        The plan, and where it was written.

    Raises:
        InputError: options, the model, images or output cannot be used.
        MachineError: the disk or the memory is full.
    """
    if not job.layers:
        raise InputError("No layers were named; give layers (auto chooses them).")
    resolved(job.protect)
    output = output or Path(f"{model.stem}.plan.json")
    check_output(output, force=job.file.force, role="plan")
    read_files = [*loaded_files(model, job.load), *compared_files(job.gate, job.verify_images)]
    keep_apart(read_files, {"plan": output}, job.file.force)
    teacher = teacher_of(model, job.load, progress, note)
    protected = protect_teacher(
        teacher,
        job.layers,
        job.protect,
        job.gate,
        verify_images=job.verify_images,
        dtype=job.file.dtype,
        progress=progress,
    )
    plan = protected.plan or plan_of(protected, job.gate, job.protect)
    plan.save(output)
    return plan, {"plan": output}
