"""asvp-export MODEL --layers SPEC, which is asvp-export export MODEL --layers SPEC."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asvp_export.cli.command import Command
from asvp_export.cli.from_options import takes
from asvp_export.cli.output import Output, prints
from asvp_export.cli.types import PATH
from asvp_export.cli.verdict import verdict
from asvp_export.console import unseen
from asvp_export.options import (
    ExportedLayerOptions,
    ExportOutputOptions,
    FileOptions,
    GateOptions,
    LoadOptions,
    ProtectOptions,
    ReportOptions,
)

if TYPE_CHECKING:
    from asvp_export.workflows.check import ParityResult


@click.command(
    cls=Command,
    first=("layers", "arch", "images", "output", "report"),
    short_help="Protect MODEL, export it and verify the file (the default).",
)
@click.argument("model", type=PATH)
@takes("load", LoadOptions)
@takes("protect", ProtectOptions)
@takes("gate", GateOptions)
@takes("", ExportedLayerOptions)
@takes("", ExportOutputOptions)
@takes("file", FileOptions)
@takes("report", ReportOptions)
@prints
def export(model: Path, output: Path | None, screen: Output, **options: Any) -> int:
    """Protect MODEL, export it, verify the file, and only then give it its name."""
    from asvp_export.workflows.export import ExportJob, default_output, export_model

    job = ExportJob(**options)
    output = output or default_output(model)

    def rehearse(result: ParityResult) -> None:
        with unseen():
            verdict(result, output, screen)

    result = export_model(model, output, job, screen.progress, screen.note, rehearse)
    return verdict(result, output, screen)
