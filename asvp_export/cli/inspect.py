"""asvp-export inspect PROTECTED."""

from __future__ import annotations

from pathlib import Path

import click

from asvp_export.cli.command import Command
from asvp_export.cli.from_options import takes
from asvp_export.cli.output import Output, prints
from asvp_export.cli.types import PATH
from asvp_export.console import echo, printable
from asvp_export.options import InspectOptions


@click.command(cls=Command)
@click.argument("protected", type=PATH)
@takes("", InspectOptions)
@prints
def inspect(protected: Path, verify: bool, screen: Output) -> int:
    """Show the nodes, the attributes and the provenance of PROTECTED."""
    from asvp_export.report.tables import description_table
    from asvp_export.workflows.inspect import inspect as described
    from asvp_export.workflows.inspect import verify_manifest

    if not verify:
        description = described(protected)
        screen.show(description, lambda: description_table(description))
        return 0
    verification = verify_manifest(protected)
    if not screen.as_json:
        for problem in verification.problems:
            echo(printable(problem), err=True)
    files = ", ".join(verification.files)
    if screen.as_json or verification.passed:
        screen.show(
            verification.as_dict(), lambda: echo(f"{protected} is as {verification.manifest} lists it: {files}")
        )
    return 0 if verification.passed else 1
