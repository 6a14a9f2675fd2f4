"""What the machine has too little of is said in one sentence, with exit code 3, whatever a library makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch

from asvp_export.errors import InputError
from asvp_export.images import list_images, photographs, read_image
from asvp_export.onnx_graph.describe import MOST_MODEL_BYTES
from asvp_export.shortage import shortage
from asvp_export.teacher.checkpoint import read_safetensors
from asvp_export.untrusted import read_regular
from tests.helpers.commands import ENVIRONMENT, Answer, call
from tests.helpers.teachers import arch, weights

resource = pytest.importorskip("resource", reason="Windows has no such limits")

HUNGRY = """
import torch

class Hungry(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 3, padding=1)

    def forward(self, x):
        return super().forward(x) + torch.empty(2**50).sum()

def hungry():
    return Hungry()

def greedy():
    torch.empty(2**50)
"""


def limited(which: int, most: int) -> Answer:
    """`layers` on an example in a process of its own, under a limit."""
    done = subprocess.run(
        [sys.executable, "-m", "asvp_export", "layers", weights("lowlight"), f"--arch={arch('lowlight')}", "--quiet"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: resource.setrlimit(which, (most, most)),
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("mebibytes", [50, 600, 1199])
def test_too_few_addresses_are_refused_before_native_libraries_end_the_process_without_a_word(mebibytes):
    answer = limited(resource.RLIMIT_AS, mebibytes * 2**20)
    assert answer.code == 3
    assert answer.err.count("\n") == 1 and f"may use {mebibytes} MiB of address space (ulimit -v)" in answer.err


@pytest.mark.parametrize("most", [6, 9])
def test_too_few_open_files_are_said_to_be_that(most):
    answer = limited(resource.RLIMIT_NOFILE, most)
    assert answer.code == 3
    assert answer.err == (
        f"Error: This process may not open more files than {most} at once; raise the limit (ulimit -n) and run again.\n"
    )


@pytest.mark.parametrize("kind", ["picture", "weights"])
def test_a_file_that_cannot_be_opened_for_that_is_not_to_be_replaced(kind):
    path = list_images(photographs())[0] if kind == "picture" else weights("lowlight")
    read = read_image if kind == "picture" else read_safetensors
    assert read(path) is not None
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest_free:  # noqa: PTH123
        number = lowest_free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        with pytest.raises(InputError, match="open files") as raised:
            read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "may not open more files" in shortage(raised.value)


@pytest.mark.parametrize(("factory", "sentence"), [("hungry", "Memory ran out while"), ("greedy", "ran out of memory")])
def test_a_lack_of_memory_is_no_fault_of_the_model(factory, sentence, tmp_path: Path):
    (tmp_path / "nets.py").write_text(HUNGRY)
    torch.save(torch.nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "weights.pt")
    answer = call("layers", tmp_path / "weights.pt", f"--arch={tmp_path / 'nets.py'}:{factory}")
    assert answer.code == 3 and sentence in answer.err and "Traceback" not in answer.err, answer.err


def test_reading_a_small_file_takes_little_memory_however_large_it_might_be(tmp_path: Path):
    (tmp_path / "small").write_bytes(b"small")
    tracemalloc.start()
    try:
        assert read_regular(tmp_path / "small", "file", MOST_MODEL_BYTES) == b"small"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
