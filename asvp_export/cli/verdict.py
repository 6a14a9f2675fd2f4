"""What export and check print at their end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asvp_export.cli.output import Output
from asvp_export.console import echo

if TYPE_CHECKING:
    from asvp_export.workflows.check import ParityResult


def verdict(result: ParityResult, file: Path, screen: Output) -> int:
    """Print the verdict; the exit code is 0 where every gate passed, else 1, even where a report was not written."""
    from asvp_export.report.tables import failure_lines, result_table

    missing = list(result.unwritten)
    try:
        screen.show(result.as_dict(), lambda: result_table(result, file))
    except OSError as error:  # a full disk; the file has its name by now
        missing.append(f"The verdict stands, but it could not be printed ({error.strerror or error}).")
    for line in missing:
        echo(f"Warning: {line}", err=True)
    if not result.passed and not screen.as_json:
        for line in failure_lines(result):
            echo(line, err=True)
    return 0 if result.passed else 1
