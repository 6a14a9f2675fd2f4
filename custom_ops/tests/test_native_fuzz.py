"""The fuzzers of custom_ops/fuzz, from seeds made here: 20 seconds each, or as many as ASVP_FUZZ_SECONDS says."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.native import LEVELS, build, onnxruntime_library

SECONDS = int(os.environ.get("ASVP_FUZZ_SECONDS", "20"))
SEED = os.environ.get("ASVP_FUZZ_SEED", "1")
LIMITS = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=2048"]  # seconds an input, MiB, bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ASVP_SANITIZED" in os.environ, reason="the fuzzers bring sanitizers of their own"),
]


@cache
def clang() -> str:
    """A Clang whose libFuzzer and sanitizers are there; CXX may name it."""
    named = [os.environ.get("CXX", ""), "clang++", *(f"clang++-{version}" for version in range(25, 10, -1))]
    program = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'
    command = ["-x", "c++", "-", "-fsanitize=fuzzer,address,undefined", "-o", "/dev/null"]
    for name in filter(shutil.which, filter(None, named)):
        if not subprocess.run([name, *command], input=program, text=True, capture_output=True).returncode:
            return name
    # GCC has no libFuzzer, and the project needs no Clang otherwise, so a machine may well have none.
    pytest.skip("there is no clang++ with libFuzzer and the sanitizers (Debian: clang, libclang-rt-14-dev)")


def fuzz(target: str, seconds: int, folder: Path, **settings: str) -> None:
    """Run one fuzzer; what it finds is kept in build/fuzz."""
    program = (
        build(
            "fuzz",
            f"-DCMAKE_CXX_COMPILER={clang()}",
            "-DASVP_SANITIZE=address",
            "-DASVP_FUZZ=ON",
            target=f"fuzz_{target}",
        )
        / f"fuzz_{target}"
    )
    generator = random.Random(SEED)
    for number in range(64):  # a fuzzer reads any bytes as choices, so that these are cases of every kind
        (folder / str(number)).write_bytes(generator.randbytes(generator.choice([16, 64, 256, 1024])))
    command = [program, f"-max_total_time={seconds}", f"-seed={SEED}", *LIMITS, "-print_final_stats=1"]
    done = subprocess.run(
        # By a shell: a child counts the most memory that its parent ever had, which in pytest can be gigabytes.
        ["sh", "-c", '"$@"; exit $?', "sh", *command, f"-artifact_prefix={program.parent}/{target}-", folder],
        env={**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", **settings},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr[-6000:]
    executed = int(re.findall(r"number_of_executed_units: *(\d+)", done.stderr)[-1])
    edges = int(re.findall(r"cov: (\d+)", done.stderr)[-1])
    peak = int(re.findall(r"peak_rss_mb: *(\d+)", done.stderr)[-1])
    name = " ".join(filter(None, [target, settings.get("ASVP_CPU_KERNELS")]))
    print(f"{name}: {executed} inputs in {seconds} s, {edges} edges, at most {peak} MiB, no finding")
    assert executed > 64


@pytest.mark.parametrize("level", LEVELS)
def test_the_c_abi_refuses_or_is_right(level, tmp_path):
    fuzz("abi", max(1, SECONDS // len(LEVELS)), tmp_path, ASVP_CPU_KERNELS=level)


def test_cuda_s_kernels_are_right_as_a_cpu_runs_them(tmp_path):
    fuzz("abi_cuda_emulated", SECONDS, tmp_path)


def test_the_custom_op_refuses_by_name_or_gives_the_bits_of_the_c_abi(tmp_path):
    fuzz("attributes", SECONDS, tmp_path, ASVP_ONNXRUNTIME=onnxruntime_library())
