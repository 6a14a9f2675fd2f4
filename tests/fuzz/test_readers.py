"""A short run of each fuzzer, with one seed: `make fuzz` runs them for longer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers.teachers import ROOT

READERS = [
    *("state-dict", "pickle", "pt2", "pt2-graph", "torchscript", "torchscript-code", "torchscript-pickle"),
    *("onnx", "picture", "npz", "npy", "inputs", "plan", "plan-weights", "manifest", "report", "metadata", "arch-args"),
]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: Linux has it")
@pytest.mark.parametrize("reader", READERS)
def test_what_is_read_is_refused_by_an_error_of_ours_or_understood(reader, tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.readers", reader, "--seconds", "20", "--seed", "1"]
    done = subprocess.run(  # by a shell: a child counts the most memory that its parent ever had
        ["sh", "-c", '"$@"; exit $?', "sh", *command, "--findings", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: Linux has it")
def test_every_reader_has_a_run():
    code = "from tests.fuzz.readers import TARGETS; print(*TARGETS)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == READERS
