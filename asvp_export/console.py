"""Our own words on stdout and stderr, and nobody else's: not a user's module's, not a native library's."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import click

# What moves the cursor, changes the colours or turns the direction of reading, and what no encoding takes.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass
class _Streams:
    """Where our words go while those of others are swallowed."""

    out: TextIO | None = None
    """None: sys.stdout."""

    err: TextIO | None = None
    """None: sys.stderr."""


_streams = _Streams()


def stdout() -> TextIO:
    """The stream of results; sys.stdout is not it within `alone`."""
    return _streams.out or sys.stdout


def stderr() -> TextIO:
    """The stream of progress, notes and errors; sys.stderr is not it within `alone`."""
    return _streams.err or sys.stderr


def printable(text: str, keep: str = "") -> str:
    """Text for a terminal: names of files, layers and inputs can hold what a terminal obeys.

    Args:
        text: anyone's.
        keep: control characters that stay, of what we write ourselves.

    Returns:
        The text with such characters written out as `\\u001b`, which JSON reads too.
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)


def echo(message: str = "", err: bool = False, nl: bool = True) -> None:
    """Print a message of ours: `click.echo`, which `alone` would swallow."""
    click.echo(printable(message, keep="\n\t"), file=stderr() if err else stdout(), nl=nl)  # noqa: TID251


def width(stream: TextIO) -> int | None:
    """The columns of a stream's terminal where rich would not find them, which looks at the standard descriptors."""
    if os.environ.get("COLUMNS") or (sys.stdin and sys.stdin.isatty()):
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # no terminal
        return None


@contextlib.contextmanager
def through(stream: TextIO) -> Iterator[None]:
    """Let what goes to `stderr()` pass through another stream, which knows of a bar that stands there."""
    before, _streams.err = _streams.err, stream
    try:
        yield
    finally:
        _streams.err = before


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Within the block our words go nowhere, but are encoded as for their streams: what cannot be shown fails."""
    before = _streams.out, _streams.err
    _streams.out, _streams.err = (
        io.TextIOWrapper(io.BytesIO(), getattr(stream, "encoding", None), getattr(stream, "errors", None))
        for stream in (stdout(), stderr())
    )
    try:
        yield
        _streams.out.flush()
        _streams.err.flush()
    finally:
        _streams.out, _streams.err = before


@contextlib.contextmanager
def only_own_output(debug: bool = False) -> Iterator[None]:
    """Within the block only what is written to `stdout()` and `stderr()` is seen.

    That holds for what Python code prints, for what native libraries write to the descriptors 1 and 2, and for the
    processes that are started.

    Args:
        debug: show it all, on stderr; should Python itself crash, then where.
    """
    no_gaps()
    if debug and not faulthandler.is_enabled():
        faulthandler.enable(2)
    before = _streams.out, _streams.err, sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        _streams.out = stack.enter_context(_copied(sys.stdout, 1))
        _streams.err = sys.stderr if debug else stack.enter_context(_copied(sys.stderr, 2))
        try:
            sys.stdout = sys.stderr = sys.stderr if debug else _nowhere()
            with _diverted(debug):
                yield
        finally:
            _streams.out, _streams.err, sys.stdout, sys.stderr = before


def no_gaps() -> None:
    """Open the standard descriptors that are closed, lest something else get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number


@functools.cache
def _nowhere() -> TextIO:
    """Open for good: loggers that were made in the meantime keep it."""
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: PTH123


@contextlib.contextmanager
def _copied(stream: TextIO | None, number: int) -> Iterator[TextIO | None]:
    """A stream of a descriptor, on a copy of that descriptor; any other stream (a notebook's, a test's) as it is."""
    try:
        copied = os.dup(number) if stream is not None and stream.fileno() == number else None
    except (OSError, ValueError):  # it has no descriptor
        copied = None
    if stream is None or copied is None:
        yield stream
        return
    stream.flush()
    # What cannot be written (the disk is full) raised an error already when it was flushed.
    ours = open(copied, "w", buffering=1, encoding=stream.encoding, errors=stream.errors)  # noqa: PTH123, SIM115
    try:
        yield ours
    finally:
        with contextlib.suppress(OSError):
            ours.close()


@contextlib.contextmanager
def _diverted(debug: bool) -> Iterator[None]:
    """Let descriptor 1 lead where 2 does, for debugging; else both nowhere."""
    target = 2 if debug else _nowhere().fileno()
    saved: dict[int, int] = {}
    for number in (1,) if debug else (1, 2):
        saved[number] = os.dup(number)
        os.dup2(target, number)
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError, OSError, TypeError):  # Windows has no such name for the C library
            ctypes.CDLL(None).fflush(None)  # what lies in its buffers still has to go there
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
