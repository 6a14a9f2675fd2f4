"""Commands: their help has options under headings, and what models and libraries print is hidden."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from asvp_export.console import only_own_output
from asvp_export.shortage import check_addresses

DEBUG = "asvp_export.debug"  # in a command's context
FIRST, LAST = "Most used", "Screen"  # headings


class Option(click.Option):
    """An option that stands under a heading.

    Args:
        *arguments: as for click.
        heading: over it in the help.
        **named: as for click.
    """

    def __init__(self, *arguments: Any, heading: str = LAST, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.heading = heading


def option(*flags: str, heading: str = LAST, **named: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """`click.option`, under a heading."""
    return click.option(*flags, cls=Option, heading=heading, **named)


class Command(click.Command):
    """A command that shows only what `echo` prints; with --debug also what the model and the libraries print.

    Args:
        *arguments: as for click.
        first: names of the options that people need first; the help begins with these.
        **named: as for click.
    """

    def __init__(self, *arguments: Any, first: Sequence[str] = (), **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.first = tuple(first)

    def invoke(self, ctx: click.Context) -> Any:
        """See click."""
        check_addresses()
        with only_own_output(debug=bool(ctx.meta.get(DEBUG))):
            return super().invoke(ctx)

    def under_headings(self, ctx: click.Context) -> dict[str, list[click.Option]]:
        """Heading to options, in the order of the help."""
        parameters = {
            parameter.name: parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)
        }
        by_heading = {FIRST: [parameters.pop(name) for name in self.first]} if self.first else {}
        for parameter in parameters.values():
            by_heading.setdefault(getattr(parameter, "heading", LAST), []).append(parameter)
        return by_heading

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click."""
        for heading, options in self.under_headings(ctx).items():
            with formatter.section(heading):
                formatter.write_dl([record for parameter in options if (record := parameter.get_help_record(ctx))])
