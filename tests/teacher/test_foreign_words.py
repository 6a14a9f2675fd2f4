"""What a model and the libraries print is not ours: stdout and stderr hold our words alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.commands import ENVIRONMENT, run_apart

NOISY = """
import ctypes, logging, os, sys, warnings
from torch import nn

libc = ctypes.CDLL(None)
logging.getLogger("foreign").warning("logged")

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        print("printed")
        print("complained", file=sys.stderr)
        print("original", file=sys.__stderr__)
        warnings.warn("warned")
        os.write(1, b"written to 1")
        os.write(2, b"written to 2")
        libc.printf(b"buffered")
        return x + 0.1 * self.a(x)
"""
FOREIGN = ("logged", "printed", "complained", "original", "warned", "written to 1", "written to 2", "buffered")


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    torch.manual_seed(0)  # with other weights a note on the value range is printed
    (tmp_path / "nets.py").write_text(NOISY)
    torch.save(nn.Conv2d(3, 3, 1).state_dict(prefix="a."), tmp_path / "noisy.pt")
    return tmp_path


def test_nothing_foreign_is_on_stdout_and_stderr(noisy: Path):
    done = run_apart("layers", "noisy.pt", "--arch=nets.py:Noisy", "--json", cwd=noisy)
    assert (done.returncode, done.stderr) == (0, "")
    assert [layer["name"] for layer in json.loads(done.stdout)["layers"]] == ["a"]


def test_debug_shows_it_on_stderr(noisy: Path):
    done = run_apart("layers", "noisy.pt", "--arch=nets.py:Noisy", "--json", "--debug", cwd=noisy)
    assert done.returncode == 0
    assert [layer["name"] for layer in json.loads(done.stdout)["layers"]] == ["a"]
    assert [word for word in FOREIGN if word not in done.stderr] == []


def test_our_words_are_seen_among_foreign_ones(noisy: Path):
    done = run_apart("noisy.pt", "--arch=nets.py:Noisy", "--layers=a", "--gain=1.01", "--output=p.onnx", cwd=noisy)
    assert done.returncode == 0, done.stderr
    assert "loading noisy.pt ..." in done.stderr and "verifying: " in done.stderr and "passed  p.onnx" in done.stdout
    assert not any(word in done.stdout + done.stderr for word in FOREIGN)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell of memory")
def test_closed_descriptors_are_no_obstacle(noisy: Path):
    command = f"{sys.executable} -m asvp_export layers noisy.pt --arch nets.py:Noisy --json"
    done = subprocess.run(["sh", "-c", f"{command} 2>&-"], capture_output=True, text=True, cwd=noisy, env=ENVIRONMENT)
    assert done.returncode == 0 and json.loads(done.stdout)
    done = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, text=True, cwd=noisy, env=ENVIRONMENT)
    assert "Traceback" not in done.stderr and not any(word in done.stderr for word in FOREIGN)
