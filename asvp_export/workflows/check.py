"""`check`: a shipped file against its original."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from asvp_export.insertion.plan import Plan
from asvp_export.keywords import CheckKeywords
from asvp_export.option_groups import grouped
from asvp_export.options import GateOptions, LoadOptions, ReportOptions, TileOptions
from asvp_export.parity.result import ParityResult
from asvp_export.progress import Printer, silent
from asvp_export.runtime.tiles import Tiling
from asvp_export.teacher.formats import is_onnx
from asvp_export.teacher.load import load_teacher
from asvp_export.teacher.model import Teacher
from asvp_export.workflows.artifacts import keep_apart, render_artifacts, report_files, write_artifacts
from asvp_export.workflows.preflight import note_assumptions, refuse_options, warn_of_two_runtimes
from asvp_export.workflows.reading import Named, compared_files, loaded_files, model_files, plan_files
from asvp_export.workflows.shipped import check_file


def check(
    original: Teacher | str | Path,
    protected: str | Path,
    *,
    plan: Plan | str | Path | None = None,
    progress: Printer = silent,
    note: Printer = silent,
    **options: Unpack[CheckKeywords],
) -> ParityResult:
    """Compare a shipped file with its original; nothing is written but the reports that are asked for.

    Args:
        original: a teacher, or a file that `load` takes; of an ONNX file without further options the value range is
            the one that the protected file names.
        protected: the shipped ONNX file.
        plan: of a compensated file, or its file: fidelity is then measured too.
        progress: called with a line at each stage; a `asvp_export.progress.Progress` counts within stages too.
        note: called with what the user has to know.
        **options: see `asvp_export.options`: `LoadOptions` (of the original), `GateOptions`, `TileOptions` (the file is
            run tile by tile as well, against the original's run on the whole image) and `ReportOptions` (no
            `model_card`).

    Returns:
        The verdict; `files` says which reports were written. Fidelity is measured where the file names its protected
        layers, and they are layers of the original.

    Raises:
        InputError: a file that cannot be read, or whose inputs do not fit the original's.
        MachineError: the disk or the memory is full.
    """
    groups = grouped(options, CheckKeywords, LoadOptions, GateOptions, TileOptions, ReportOptions)
    source = Path(original) if isinstance(original, str) else original
    job = CheckJob(Path(plan) if isinstance(plan, str) else plan, *groups)
    return check_shipped(source, Path(protected), job, progress, note)


@dataclass(frozen=True)
class CheckJob:
    """The options of a check."""

    plan: Plan | Path | None = None
    """The plan of a compensated file, or its file."""

    load: LoadOptions = field(default_factory=LoadOptions)
    """How the original is loaded."""

    gate: GateOptions = field(default_factory=GateOptions)
    """What is compared."""

    tiles: TileOptions = field(default_factory=TileOptions)
    """Whether the file is run tile by tile too."""

    report: ReportOptions = field(default_factory=ReportOptions)
    """Which reports."""


def check_shipped(
    original: Teacher | Path, protected: Path, job: CheckJob, progress: Printer, note: Printer
) -> ParityResult:
    """`check`, with the options as objects."""
    tiling = tiling_of(job.tiles)
    files = report_files(protected, job.report, None)
    keep_apart(_read_files(original, protected, job), files)
    warn_of_two_runtimes(note)
    if isinstance(original, Teacher):
        refuse_options("A teacher was given", job.load)
    elif not is_onnx(original) or job.load != LoadOptions():
        original = load_teacher(original, job.load)
    plan = Plan.load(job.plan) if isinstance(job.plan, Path) else job.plan
    result = check_file(
        original, protected, job.gate, tiling=tiling, plan=plan, evidence="page" in files, progress=progress
    )
    note_assumptions(result.assumptions, note)
    result, artifacts = render_artifacts(result, protected.name, protected, files)
    return write_artifacts(result, artifacts, "The verdict stands")


def _read_files(original: Teacher | Path, protected: Path, job: CheckJob) -> Iterator[Named]:
    """Every file that is read."""
    yield from model_files(protected, "protected file")
    yield from loaded_files(original, job.load, "original")
    yield from plan_files(job.plan)
    yield from compared_files(job.gate)


def tiling_of(tiles: TileOptions) -> Tiling | None:
    """The tiles that are asked for; None: run it whole."""
    return None if tiles.tile is None else Tiling(tiles.tile, tiles.overlap)
