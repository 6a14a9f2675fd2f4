"""asvp-export MODEL --layers SPEC, which is asvp-export export MODEL --layers SPEC."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asvp_export.cli.command import Command, option
from asvp_export.cli.from_options import takes
from asvp_export.cli.output import Output, prints
from asvp_export.cli.types import PATH
from asvp_export.cli.verdict import verdict
from asvp_export.console import unseen
from asvp_export.options import FileOptions, GateOptions, LoadOptions, ProtectOptions, ReportOptions

if TYPE_CHECKING:
    from asvp_export.workflows.check import ParityResult

LAYERS = option(
    "--layers",
    multiple=True,
    metavar="SPEC",
    help="The layers to protect. auto or auto:N picks N (3) layers by their spectra, spread over the depth. Else names "
    "or globs of modules (of nodes or tensors in an ONNX file), separated by commas; may repeat. * stays inside one "
    "part of a name, ** crosses parts. none inserts nothing.",
)
PLAN = option(
    "--plan",
    type=PATH,
    heading=ProtectOptions.title,
    help="Apply the plan of an earlier run; nothing is chosen or calibrated anew.",
)


@click.command(
    cls=Command,
    first=("layers", "arch", "images", "output", "report"),
    short_help="Protect MODEL, export it and verify the file (the default).",
)
@click.argument("model", type=PATH)
@takes("load", LoadOptions)
@LAYERS
@takes("protect", ProtectOptions)
@PLAN
@option(
    "-o", "--output", type=PATH, help="The ONNX file to write. Default: <MODEL's stem>.protected.onnx, in this folder."
)
@takes("gate", GateOptions)
@option(
    "--verify-images",
    type=PATH,
    heading=GateOptions.title,
    help="Folder of inputs to verify on; gains and weights are then fitted to all of --images. Default: two fifths of "
    "--images.",
)
@takes("file", FileOptions)
@takes("report", ReportOptions)
@prints
def export(model: Path, plan: Path | None, output: Path | None, screen: Output, **options: Any) -> int:
    """Protect MODEL, export it, verify the file, and only then give it its name."""
    from asvp_export.workflows.export import ExportJob, default_output, export_model

    job = ExportJob(plan=plan, **options)
    output = output or default_output(model)

    def rehearse(result: ParityResult) -> None:
        with unseen():
            verdict(result, output, screen)

    result = export_model(model, output, job, screen.progress, screen.note, rehearse)
    return verdict(result, output, screen)
