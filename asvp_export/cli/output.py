"""What all commands print: results, progress, notes; and the options that say how much."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from asvp_export.cli.command import DEBUG, option
from asvp_export.console import echo, printable
from asvp_export.progress import Printer


@dataclass(frozen=True)
class Output:
    """How much a command prints."""

    as_json: bool
    """One JSON object and nothing else on stdout."""

    quiet: bool
    """Nothing but errors."""

    @property
    def progress(self) -> Printer:
        """Called with a line at each step, on stderr."""
        from asvp_export.progress import for_terminal

        if self.quiet or self.as_json:
            return lambda line: None
        return for_terminal(lambda line: echo(f"{printable(line)} ...", err=True))

    def note(self, line: str) -> None:
        """What the user has to know, on stderr."""
        if not self.quiet:
            echo(printable(line), err=True)

    def show(self, data: Any, table: Callable[[], None]) -> None:
        """The result: as JSON, or as a table."""
        if self.as_json:
            from asvp_export.report.strict_json import strict_json

            echo(strict_json(data), nl=False)
        elif not self.quiet:
            table()


def prints(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command --json, --quiet and --debug; it gets them as one object, `screen`."""

    @option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
    @option("--quiet", is_flag=True, help="Print nothing but errors.")
    @option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_debug,
        help="Show the traceback of an error, and what the model and the libraries print.",
    )
    @functools.wraps(command)
    def gathered(as_json: bool, quiet: bool, **arguments: Any) -> int:
        return command(screen=Output(as_json, quiet), **arguments)

    return gathered


def _debug(context: click.Context, parameter: click.Parameter, requested: bool) -> None:
    context.meta[DEBUG] = requested
