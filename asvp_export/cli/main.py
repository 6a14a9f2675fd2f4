"""The command line: the group of commands, and what exit codes mean."""

from __future__ import annotations

import difflib
import errno
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from asvp_export.cli.audit import audit
from asvp_export.cli.check import check
from asvp_export.cli.export import export
from asvp_export.cli.inspect import inspect
from asvp_export.cli.layers import layers
from asvp_export.cli.protect import protect
from asvp_export.cli.run import run
from asvp_export.console import echo, printable
from asvp_export.environment import tool_version
from asvp_export.errors import AsvpError, MachineError, first_line
from asvp_export.interrupts import Ended, Interruptible, sentence
from asvp_export.shortage import shortage

_VERBOSE = "asvp_export.verbose"  # in the group's context


class _DefaultGroup(click.Group):
    """`asvp-export MODEL ...` is `asvp-export export MODEL ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help", "-h", "--version", "--verbose"):
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.7)
            if near and not Path(args[0]).exists():
                ctx.fail(f"There is no command and no file {args[0]!r}; did you mean {near[0]}?")
            args = ["export", *args]
        ctx.meta[_VERBOSE] = "--verbose" in args
        return super().parse_args(ctx, args)


def _version(context: click.Context, parameter: click.Parameter, requested: bool) -> None:
    if not requested:
        return
    echo(f"asvp-export, version {tool_version()}")
    if context.meta[_VERBOSE]:
        from asvp_export.workflows.about import about

        for name, value in about().items():
            echo(f"{name}: {value}")
    context.exit()


@click.group(cls=_DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the version; with --verbose, all that a bug report needs.",
)
@click.option("--verbose", is_flag=True, expose_value=False, hidden=True)
def cli() -> None:
    """Ship an image-restoration model as one ONNX file with a defence against distillation inside.

    `asvp-export MODEL --layers ...` is short for `asvp-export export MODEL --layers ...`.
    """


for command in (export, check, audit, layers, protect, inspect, run):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: exit codes 0 done, 1 gate failed, 2 bad usage or input, 3 the machine failed us, 130 Ctrl-C.

    A kill gives 143, a closed terminal 129.
    """
    with Interruptible():
        _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> NoReturn:
    try:
        sys.exit(cli.main(args=arguments, prog_name="asvp-export", standalone_mode=False) or 0)
    except AsvpError as error:
        _trace(arguments)
        shortage_message = "" if isinstance(error, MachineError) else shortage(error)
        _fail(shortage_message or str(error), MachineError.exit_code if shortage_message else error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" {context.command_path} --help lists what it takes." if context else ""
        _fail(error.format_message() + hint, 2)
    except (click.Abort, KeyboardInterrupt):
        _fail(sentence(signal.SIGINT), 130)
    except Ended as ended:
        _fail(sentence(ended.number), 128 + ended.number)
    except OSError as error:
        _trace(arguments)
        file_name = f" ({error.filename})" if error.filename else ""
        _fail(
            shortage(error)
            or f"The operating system reports: {error.strerror or error}{file_name}. Fix that and run again.",
            2 if error.errno == errno.ENAMETOOLONG else 3,
        )
    except Exception as error:  # Python would end with 1, which says that a gate failed
        _trace(arguments)
        reason = first_line(str(error)).rstrip(".")
        unforeseen = (
            f"An unexpected error occurred, {type(error).__name__}: {reason}. Run again with --debug to see where."
        )
        _fail(shortage(error) or unforeseen, 3)


def _trace(arguments: Sequence[str]) -> None:
    if "--debug" in arguments:
        traceback.print_exc()


def _fail(message: str, code: int) -> NoReturn:
    echo(f"Error: {printable(' '.join(message.splitlines()))}", err=True)
    sys.exit(code)
