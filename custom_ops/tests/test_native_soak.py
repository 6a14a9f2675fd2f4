"""Heavy use of libasvp on the C API of onnxruntime (soak.cpp): seconds; ASVP_SOAK=full is what the documents have."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.native import build, onnxruntime_library

FULL = os.environ.get("ASVP_SOAK") == "full"
# COUNT of soak.cpp. Full: 8 threads x 10,000 runs twice, 100,000 runs, 10,000 sessions.
COUNTS = {
    "threads": 10_000 if FULL else 100,
    "memory": 100_000 if FULL else 5_000,
    "sessions": 10_000 if FULL else 300,
    "fork": 100 if FULL else 2,
    "copies": 100 if FULL else 2,
}
# onnxruntime is built without the sanitizers: what it does by itself looks like races, and what it keeps like leaks.
SANITIZERS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1"},
}

pytestmark = pytest.mark.skipif("ASVP_SANITIZED" in os.environ, reason="the programs bring sanitizers of their own")


def soak(folder: Path, copy: Path, part: str, count: int, **settings: str) -> None:
    shutil.copy(folder / "libasvp.so", copy)
    command = [folder / "asvp_soak", onnxruntime_library(), folder / "libasvp.so", copy, part, str(count)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(part)
    print(done.stdout, end="")


@pytest.mark.parametrize("part", COUNTS)
def test_heavy_use_changes_no_bit_and_keeps_no_memory(folder, tmp_path, part):
    soak(folder, tmp_path / "libcopy.so", part, COUNTS[part])


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("part", ["threads", "sessions", "copies"])
def test_sanitizers_find_nothing_in_heavy_use(sanitizer, part, tmp_path):
    folder = build(f"tests-{sanitizer}", f"-DASVP_SANITIZE={sanitizer}")
    soak(folder, tmp_path / "libcopy.so", part, 2, **SANITIZERS[sanitizer])
