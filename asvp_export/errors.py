"""The errors that a caller may catch, each with the exit code that the command line gives it."""

from __future__ import annotations


class AsvpError(Exception):
    """Base of all errors raised on purpose; the message is one or two sentences for the user."""

    exit_code = 2


class InputError(AsvpError):
    """Bad usage or bad input: a file, an option or a model that cannot be used as asked."""

    exit_code = 2


class MachineError(AsvpError):
    """The machine failed us: no space, no memory, no permission to finish what was begun."""

    exit_code = 3
