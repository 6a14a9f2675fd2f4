"""Ctrl-C and kills end a command, whatever runs in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.helpers.commands import hear_signals
from tests.helpers.teachers import ROOT

BOUND = 60  # seconds in which a command has to end; it takes less than ten
HEAD = """
import hashlib, os, sys, threading, time
from pathlib import Path
from asvp_export import interrupts
from asvp_export.interrupts import Interruptible, unfinished

seen, main = os.dup(1), threading.main_thread()

def tell(when):
    def wait():
        while not when():
            time.sleep(0.01)
        os.write(seen, b"native\\n")
    threading.Thread(target=wait, daemon=True).start()

def busy():
    clock = time.pthread_getcpuclockid(main.ident)
    first = time.clock_gettime(clock)
    return lambda: time.clock_gettime(clock) > first + 0.5
"""
DEAF = """
unfinished.add(Path("half"))
with Interruptible():
    tell(busy())
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
HELD = """
import signal
with Interruptible():
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
    tell(lambda: True)
    while not came:
        time.sleep(0.01)
    print("held back", flush=True)
    signal.signal(signal.SIGINT, before)
    tell(busy())
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
COMMAND = """
from asvp_export.cli import main as command

clock, since = time.pthread_getcpuclockid(main.ident), {}

def stuck():
    now = time.clock_gettime(clock)
    return any(now > since.setdefault(stop, now) + 1 for stop in tuple(interrupts._stops))

tell(stuck)
command(sys.argv[1:])
"""


def started(folder: Path, code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEAD + code, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_signals,
    )


def ended(running: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """The exit code and the last line on stderr of a command that gets a signal in the midst of native code."""
    assert running.stdout is not None
    with running:
        try:
            for line in running.stdout:
                if line == "native\n":
                    break
            assert running.poll() is None
            running.send_signal(number)
            _, said = running.communicate(timeout=BOUND)
        finally:
            running.kill()
    return running.returncode, said.splitlines()[-1] if said else ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a graph x + 1 + 1 + ..., without end for images of 100 rows and more, and a picture of so many."""
    shape = ["n", 3, "h", "w"]
    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, shape),
        ],
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=2, end=3),
        helper.make_node("Squeeze", ["rows"], ["height"]),
        helper.make_node("Less", ["height", "limit"], ["small"]),
        helper.make_node("Where", ["small", "once", "often"], ["times"]),
        helper.make_node("Loop", ["times", "", "x"], ["y"], body=step),
    ]
    numbers = {"limit": 100, "once": 1, "often": 2**62, "one": np.float32(1)}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "endless.onnx")
    Image.fromarray(np.zeros((120, 130, 3), np.uint8)).save(tmp_path / "picture.png")
    return tmp_path


@pytest.mark.parametrize(
    ("number", "code", "how"),
    [
        (signal.SIGINT, 130, "Interrupted"),
        (signal.SIGTERM, 143, "Ended by SIGTERM"),
        (signal.SIGHUP, 129, "Ended by SIGHUP"),
    ],
)
def test_native_code_that_does_not_stop_is_ended_and_what_was_unfinished_removed(number, code, how, tmp_path: Path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "p.onnx").touch()
    assert ended(started(tmp_path, DEAF), number) == (code, f"Error: {how}; nothing half-written was left.")
    assert not list(tmp_path.iterdir())


def test_a_signal_that_is_held_back_ends_nothing_until_it_is_sent_again(tmp_path: Path):
    running = started(tmp_path, HELD)
    assert running.stdout is not None
    assert running.stdout.readline() == "native\n"
    running.send_signal(signal.SIGINT)
    assert running.stdout.readline() == "held back\n"
    assert ended(running, signal.SIGINT)[0] == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "arguments", [["run", "endless.onnx", "picture.png", "-o", "out.png"], ["layers", "endless.onnx"]]
)
def test_a_graph_without_end_can_be_interrupted_in_the_command_itself(number, arguments, folder: Path):
    before = set(folder.iterdir())
    code, said = ended(started(folder, COMMAND, *arguments), number)
    assert code == 128 + number
    assert said.startswith("Error: ") and said.endswith("; nothing half-written was left.")
    assert set(folder.iterdir()) == before
