"""asvp-export check ORIGINAL PROTECTED."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from asvp_export.cli.command import Command
from asvp_export.cli.from_options import takes
from asvp_export.cli.output import Output, prints
from asvp_export.cli.types import PATH
from asvp_export.cli.verdict import verdict
from asvp_export.options import CheckPlanOptions, GateOptions, LoadOptions, ReportOptions, TileOptions


@click.command(
    cls=Command,
    first=("arch", "images", "min_psnr", "junit"),
    short_help="Compare PROTECTED with ORIGINAL: the parity gate for CI.",
)
@click.argument("original", type=PATH)
@click.argument("protected", type=PATH)
@takes("load", LoadOptions)
@takes("gate", GateOptions)
@takes("report", ReportOptions, only=("report", "junit"))
@takes("tiles", TileOptions)
@takes("", CheckPlanOptions)
@prints
def check(original: Path, protected: Path, plan: Path | None, screen: Output, **options: Any) -> int:
    """Compare PROTECTED with ORIGINAL (a teacher or an ONNX file): the parity gate for CI."""
    from asvp_export.workflows.check import CheckJob, check_shipped

    job = CheckJob(plan, **options)
    result = check_shipped(original, protected, job, screen.progress, screen.note)
    return verdict(result, protected, screen)
