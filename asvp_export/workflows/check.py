"""`check`: a shipped file against its original."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from asvp_export.insertion.plan import Plan
from asvp_export.options import GateOptions, LoadOptions, ReportOptions, TileOptions
from asvp_export.parity.result import ParityResult
from asvp_export.parity.shipped import check_file
from asvp_export.progress import Printer
from asvp_export.runtime.tiles import Tiling
from asvp_export.teacher.formats import is_onnx
from asvp_export.teacher.load import load_teacher
from asvp_export.teacher.model import Teacher
from asvp_export.workflows.artifacts import Files, keep_apart, report_files, write_artifacts
from asvp_export.workflows.preflight import tell, warn_of_two_runtimes


@dataclass(frozen=True)
class CheckJob:
    """What a check is told."""

    plan: Path | None = None
    """The plan of a compensated file."""

    load: LoadOptions = field(default_factory=LoadOptions)
    """How the original is loaded."""

    gate: GateOptions = field(default_factory=GateOptions)
    """What is compared."""

    tiles: TileOptions = field(default_factory=TileOptions)
    """Whether the file is run tile by tile too."""

    report: ReportOptions = field(default_factory=ReportOptions)
    """Which reports."""


def check(
    original: Path, protected: Path, job: CheckJob, progress: Printer, note: Printer
) -> tuple[ParityResult, Files]:
    """Compare a shipped file with its original; nothing is written but the reports that are asked for.

    Args:
        original: a teacher's file, or an ONNX file.
        protected: the shipped ONNX file.
        job: everything else.
        progress: called with a line at each step.
        note: called with what the user has to know.

    Returns:
        The verdict, and the reports by what they are.

    Raises:
        InputError: options, a file or images cannot be used.
        MachineError: the disk or the memory is full.
    """
    tiling = tiling_of(job.tiles)
    files = report_files(protected, job.report, None)
    keep_apart({"original": original, "protected file": protected}, files)
    warn_of_two_runtimes(note)
    source: Path | Teacher = original
    if not is_onnx(original) or job.load != LoadOptions():
        source = load_teacher(original, job.load)
    plan = Plan.load(job.plan) if job.plan else None
    result = check_file(
        source, protected, job.gate, tiling=tiling, plan=plan, evidence="page" in files, progress=progress
    )
    tell(result.assumptions, note)
    return result, write_artifacts(result, protected, files)


def tiling_of(asked: TileOptions) -> Tiling | None:
    """The tiles that are asked for; None: run it whole."""
    return None if asked.tile is None else Tiling(asked.tile, asked.overlap)
