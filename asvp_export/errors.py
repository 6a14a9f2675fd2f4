"""The errors that a caller may catch, each with the exit code that the command line gives it."""

from __future__ import annotations

from collections.abc import Iterator


class AsvpError(Exception):
    """Base of all errors raised on purpose; the message is one or two sentences for the user."""

    exit_code = 2


class InputError(AsvpError):
    """Bad usage or bad input: a file, an option or a model that cannot be used as asked."""

    exit_code = 2


class MachineError(AsvpError):
    """The machine failed us: no space, no memory, no permission to finish what was begun."""

    exit_code = 3


def one_line(error: object, limit: int | None = None) -> str:
    """What an error says, without line breaks, at most `limit` characters; its type where it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def first_line(text: str) -> str:
    """The first line that is not blank, "" for none."""
    return next(filter(None, map(str.strip, text.splitlines())), "")


def summary(error: BaseException, limit: int = 200) -> str:
    """An error's type and the first line of what it says: other people's code says too much, or only a name."""
    text = first_line(str(error))
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return f"{type(error).__name__}: {text.rstrip('.')}" if text else type(error).__name__


def causes(error: BaseException, implicit: bool = False) -> Iterator[BaseException]:
    """An error, then what it was raised from, the innermost last.

    Args:
        error: the outermost.
        implicit: follow an error too that was being handled when the next was raised.
    """
    following: BaseException | None = error
    while following is not None:
        yield following
        handled = following.__context__ if implicit and not following.__suppress_context__ else None
        following = following.__cause__ or handled
