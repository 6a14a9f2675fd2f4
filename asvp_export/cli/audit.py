"""asvp-export audit MODEL [PROTECTED]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from asvp_export.cli.command import Command
from asvp_export.cli.from_options import takes
from asvp_export.cli.output import Output, prints
from asvp_export.cli.types import PATH
from asvp_export.console import echo
from asvp_export.options import AuditOptions, GateOptions, LayerOptions, LoadOptions, ProtectOptions


@click.command(
    cls=Command,
    first=("layers", "arch", "task", "data", "report"),
    short_help="Train students on what MODEL gives away: what do attackers lose?",
)
@click.argument("model", type=PATH)
@click.argument("protected", type=PATH, required=False)
@takes("load", LoadOptions)
@takes("audit", AuditOptions)
@takes("protect", ProtectOptions)
@takes("gate", GateOptions, only=("images", "min_psnr"))
@takes("", LayerOptions)
@prints
def audit(model: Path, protected: Path | None, screen: Output, **options: Any) -> int:
    """Train students on what the shipped model gives away, and say what the defence costs them.

    MODEL is the original teacher. What is shipped is PROTECTED, or MODEL protected here, as --plan or --layers say.
    """
    from asvp_export.report.audit_table import audit_table, missed_lines
    from asvp_export.workflows.audit import AuditJob, audit_model

    job = AuditJob(**options)
    result = audit_model(model, protected, job, screen.progress, screen.note)
    screen.show(result.as_dict(), lambda: audit_table(result, result.files))
    for line in missed_lines(result):
        echo(line, err=True)
    return 0 if result.passed else 1
