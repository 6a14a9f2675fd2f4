"""Commands run in the process of the tests, and the form of what they complain of."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from asvp_export import cli
from tests.helpers.teachers import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
"""Of commands in processes of their own: they find the helpers of the tests."""


class Answer(NamedTuple):
    """What came of a command."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Answer:
    """Run a command in this process, which spares it the import of torch."""
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert isinstance(ended.value.code, int)
    return Answer(ended.value.code, out.getvalue(), err.getvalue())


def complaint(answer: Answer) -> str:
    """The one line that says what is wrong, checked for its form; progress may stand before it."""
    assert answer.code == 2, answer
    assert not answer.out and "Traceback" not in answer.err
    lines = [line for line in answer.err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("Error: ") and lines[0].endswith((".", "?"))
    assert 1 <= len(re.findall(r"[.?!](?= [A-Z]|$)", lines[0])) <= 2, lines[0]
    return lines[0]


def hear_signals() -> None:
    """In a child, before its program starts: signals that the tests' own parent ignores (nohup) count anew."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run_apart(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "asvp_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT)
