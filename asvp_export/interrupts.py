"""Ctrl-C and kills while native code runs: it is asked to stop, and a command that cannot stop ends all the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from asvp_export.console import echo, no_gaps, stderr

GRACE = 5.0
"""Seconds that a command has to stop by itself."""

unfinished: set[Path] = set()
"""Folders that are removed when a command ends without leaving its blocks."""

_LOOK = 0.05  # seconds between two requests
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

_stops: set[Callable[[], object]] = set()


@contextlib.contextmanager
def stoppable(stop: Callable[[], object]) -> Iterator[None]:
    """Native code runs within the block.

    Args:
        stop: asks it to return soon; called from another thread, any number of times.
    """
    _stops.add(stop)
    try:
        yield
    finally:
        _stops.discard(stop)


class Ended(SystemExit):
    """A signal that ends a process."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def sentence(number: int) -> str:
    """What a command says that a signal ends."""
    ending = "Interrupted" if number == signal.SIGINT else f"Ended by {signal.Signals(number).name}"
    return f"{ending}; nothing half-written was left."


class Interruptible:
    """Within the block SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP raise `Ended`, whatever runs.

    Python runs a signal's handler between two steps of Python code. Native code takes one step, which may have no end.
    So a thread learns of the signal too (native code lets other threads run): it asks the code to stop, and where that
    does not help within `GRACE`, it removes the unfinished folders and ends the process with the same sentence and
    code. A second signal spares the cleaning up, and ends the process when that takes longer than `GRACE`.

    Signals that were ignored before stay ignored; one that has another handler for a while is left to that.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._handled, self._exited = threading.Event(), threading.Event()
        self._writing: socket.socket | None = None

    def __enter__(self) -> Interruptible:
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            return self
        no_gaps()
        reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        with contextlib.suppress(RuntimeError):  # no memory for a thread: native code is not asked to stop, that is all
            threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exited.set()
        if self._writing is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writing.close()  # ends the thread

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._handled.is_set():
            return
        self._handled.set()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Ended(number)

    def _watch(self, reading: socket.socket) -> None:
        with reading:
            waited_for = self._handled
            while data := reading.recv(1):
                number = data[0]
                if number not in self._before or signal.getsignal(number) != self._handle:
                    continue
                for _ in range(round(GRACE / _LOOK)):
                    for stop in tuple(_stops):
                        stop()
                    if waited_for.wait(_LOOK) or self._exited.is_set():
                        break
                else:
                    _end(number)
                waited_for = self._exited


def _end(number: int) -> NoReturn:
    for folder in tuple(unfinished):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(Exception):
        shown = "\x1b[?25h" if stderr().isatty() else ""  # the cursor, which a bar hides
        echo(f"{shown}Error: {sentence(number)}", err=True)
    os._exit(128 + number)
