"""asvp-export protect MODEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from asvp_export.cli.command import Command
from asvp_export.cli.from_options import takes
from asvp_export.cli.output import Output, prints
from asvp_export.cli.types import PATH
from asvp_export.options import FileOptions, GateOptions, LayerOptions, LoadOptions, PlanOutputOptions, ProtectOptions


@click.command(
    cls=Command,
    first=("layers", "arch", "images", "output"),
    short_help="Choose nodes and gains for MODEL and keep them as a plan.",
)
@click.argument("model", type=PATH)
@takes("load", LoadOptions)
@takes("protect", ProtectOptions)
@takes("gate", GateOptions, only=("images", "sizes", "thorough", "min_psnr"))
@takes("", LayerOptions, only=("layers", "verify_images"))
@takes("", PlanOutputOptions)
@takes("file", FileOptions, only=("dtype", "force"))
@prints
def protect(model: Path, output: Path | None, screen: Output, **options: Any) -> int:
    """Choose nodes, gains and weights for MODEL, and keep them as a plan, which export --plan takes."""
    from asvp_export.report.tables import plan_table
    from asvp_export.workflows.protect import ProtectJob, default_plan, protect_model

    job = ProtectJob(**options)
    output = output or default_plan(model)
    plan = protect_model(model, output, job, screen.progress, screen.note).plan
    assert plan is not None  # it was written
    screen.show(plan.as_dict(), lambda: plan_table(plan, {"plan": output}))
    return 0
