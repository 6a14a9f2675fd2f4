"""Commands run in the process of the tests, and the form of what they complain of."""

from __future__ import annotations

import contextlib
import io
import re
import signal
from typing import NamedTuple

import pytest

from asvp_export import cli


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
