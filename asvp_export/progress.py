"""How far long work is: a line a stage anywhere, and on a terminal a bar while a stage that has a count runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TextIO, TypeVar, cast

from asvp_export import console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

T = TypeVar("T")
Printer = Callable[[str], None]
"""Called with a line of text."""


def silent(line: str) -> None:
    """Print nothing."""


class Progress:
    """Takes a line at each stage; within a stage it says nothing.

    Args:
        printer: called with each line.
    """

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def __call__(self, line: str) -> None:
        """Tell that a stage begins."""
        self._printer(line)

    def track(self, items: Sequence[T], description: str) -> AbstractContextManager[Iterator[T]]:
        """The items one by one, counted where somebody watches; a context manager, so that Ctrl-C ends the bar at once.

            with progress.track(cases, "verifying by the library") as tracked:
                outputs = [run(case) for case in tracked]

        Args:
            items: what the stage works through.
            description: a few words on what happens to each of them.
        """
        return nullcontext(iter(items))


class BarProgress(Progress):
    """Lines as above; below them, on stderr, a bar with the count and the time left, which goes with the stage."""

    def __init__(self, printer: Printer) -> None:
        super().__init__(printer)
        self._bar: RichProgress | None = None

    @contextmanager
    def track(self, items: Sequence[T], description: str) -> Iterator[Iterator[T]]:
        """As for `Progress`; within another stage's items the bar stands below that one's."""
        outer, bar = self._bar, self._bar or _bar()
        with nullcontext() if outer else _shown(bar):
            task, self._bar = bar.add_task(description, total=len(items)), bar
            try:
                yield _counted(items, lambda: bar.advance(task))
            finally:
                bar.remove_task(task)
                self._bar = outer


def reporter(progress: Printer) -> Progress:
    """A `Progress` from what a caller hands in: one already, or a plain function that takes a line."""
    return progress if isinstance(progress, Progress) else Progress(progress)


def for_terminal(printer: Printer) -> Progress:
    """With bars where stderr is a terminal that somebody watches; without them in a pipe, a log, or CI."""
    return BarProgress(printer) if _console().is_interactive and not os.environ.get("CI") else Progress(printer)


def _counted(items: Sequence[T], advance: Callable[[], None]) -> Iterator[T]:
    for item in items:
        yield item
        advance()


@contextmanager
def _shown(bar: RichProgress) -> Iterator[None]:
    """The bar, with the lines that are said in the meantime above it."""
    from rich.file_proxy import FileProxy

    with bar, console.through(cast("TextIO", FileProxy(bar.console, console.stderr()))):
        yield


def _console() -> Console:
    from rich.console import Console

    err = console.stderr()
    return Console(file=err, width=console.width(err))


def _bar() -> RichProgress:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    debugging = sys.stderr is console.stderr()  # what others print is shown: above the bar
    return RichProgress(
        *columns, console=_console(), transient=True, redirect_stdout=debugging, redirect_stderr=debugging
    )
