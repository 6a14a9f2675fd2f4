"""Progress: lines anywhere, a bar where somebody watches, and a clean terminal after Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asvp_export.progress import Progress, for_terminal, reporter
from tests.helpers.teachers import arch, weights

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals")


def test_a_plain_function_gets_a_line_a_stage_and_nothing_for_the_steps():
    lines = []
    progress = reporter(lines.append)
    progress("verifying on 3 inputs")
    with progress.track([1, 2, 3], "verifying") as tracked:
        assert list(tracked) == [1, 2, 3]
    assert lines == ["verifying on 3 inputs"]
    assert reporter(progress) is progress


def test_without_a_terminal_there_is_no_bar():
    assert type(for_terminal(print)) is Progress


WATCHED = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "FORCE_COLOR")}


def test_ctrl_c_during_the_bar_leaves_a_clean_terminal_and_no_file(tmp_path: Path):
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "asvp_export",
        weights("lowlight"),
        f"--arch={arch('lowlight')}",
        "--layers=after_body",
    ]
    running = subprocess.Popen(
        [*command, f"--output={tmp_path / 'p.onnx'}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
        env={**WATCHED, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = ""
    while "file by the" not in seen:  # the bar of the second stage
        seen += os.read(ours, 4096).decode()
    running.send_signal(signal.SIGINT)
    try:
        while more := os.read(ours, 4096):
            seen += more.decode()
    except OSError:  # Linux's word for the end of a terminal
        pass
    os.close(ours)
    assert running.wait() == 130
    assert "verifying: 17 inputs from 8 images" in seen and "/17" in seen
    assert seen.rstrip().endswith("Error: Interrupted; nothing half-written was left.")
    hidden, shown = seen.rfind("\x1b[?25l"), seen.rfind("\x1b[?25h")
    assert 0 <= hidden < shown, "the cursor stays hidden"
    assert "file by the" not in seen[shown:], "the bar stays behind"
    assert not list(tmp_path.iterdir())
