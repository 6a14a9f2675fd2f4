"""`protect`: nodes behind the selected layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

from asvp_export.errors import InputError
from asvp_export.files import check_output
from asvp_export.insertion.protected import Protected
from asvp_export.keywords import ProtectKeywords
from asvp_export.option_groups import grouped
from asvp_export.options import AUTO, FileOptions, GateOptions, LoadOptions, ProtectOptions
from asvp_export.plan.protection import check_protect_options, plan_of, protect_teacher
from asvp_export.progress import Printer, silent
from asvp_export.workflows.artifacts import keep_apart
from asvp_export.workflows.preflight import Model, stem_of, teacher_of
from asvp_export.workflows.reading import compared_files, loaded_files


def protect(
    model: Model,
    layers: Sequence[str] | str = AUTO,
    *,
    output: str | Path | None = None,
    verify_images: str | Path | None = None,
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
            "auto:N": the N (`DEFAULT_LAYERS`) layers that their spectra speak for, spread over the depth; "none" or
            nothing: no node.
        output: the plan to write, which `export` takes; None: none is written.
        verify_images: folder of inputs to verify on; without it two fifths of `images` where gains are calibrated, else
            all of them.
        progress: called with a line at each step; a `asvp_export.progress.Progress` counts within steps too.
        note: called with what was concluded of the model and is not certain.
        **options: see `asvp_export.options.LoadOptions`, `ProtectOptions` and `GateOptions` (no `provider`); of
            `FileOptions` `dtype`, the type of the file that will be exported, whose rounding the exposed gain has to
            survive, and `force`, which replaces an existing plan.

    Returns:
        The protected teacher, with its plan where numbers were chosen, or where it was written.

    Raises:
        InputError: an attribute out of range, an unknown layer or one that cannot carry the node, a tolerance that
            no gain meets, too few images, or compensation where no reader is linear; an output that cannot be
            written, or is there already.
        MachineError: the disk or the memory is full.
    """
    groups = grouped(options, ProtectKeywords, LoadOptions, ProtectOptions, GateOptions, FileOptions)
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    job = ProtectJob(names, Path(verify_images) if verify_images else None, *groups)
    return protect_model(model, Path(output) if output else None, job, progress, note)


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


def protect_model(model: Model, output: Path | None, job: ProtectJob, progress: Printer, note: Printer) -> Protected:
    """`protect`, with the options as objects."""
    check_protect_options(job.protect)
    if output is not None:
        if not job.layers:
            raise InputError("No layers were named; give --layers NAMES or --layers auto.")
        check_output(output, force=job.file.force, role="plan")
        read_files = [*loaded_files(model, job.load), *compared_files(job.gate, job.verify_images)]
        keep_apart(read_files, {"plan": output}, job.file.force)
    protected = protect_teacher(
        teacher_of(model, job.load, progress, note),
        job.layers,
        job.protect,
        job.gate,
        verify_images=job.verify_images,
        dtype=job.file.dtype,
        progress=progress,
    )
    if output is None:
        return protected
    plan = protected.plan or plan_of(protected, job.gate, job.protect)
    plan.save(output)
    return replace(protected, plan=plan)


def default_plan(model: Model) -> Path:
    """Where a model's plan goes by default, on the command line."""
    return Path(f"{stem_of(model)}.plan.json")
