"""The CUDA half compiles for every architecture, and the library serves the CPU where there is no GPU."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.native import CMAKE, NVCC, SOURCE, Native, build, problem_of
from tests.helpers.oracle import filled

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc to compile the CUDA half with")


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([CMAKE, "-S", SOURCE, "-B", folder, *options], capture_output=True, text=True)


@pytest.fixture(scope="session")
def folder() -> Path:
    """Where setup.py builds: what the installation has compiled is not compiled again."""
    name = f"native-{sysconfig.get_platform()}"
    return build(name, "-DASVP_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={NVCC}")


@needs_nvcc
def test_every_architecture_compiles_and_the_library_loads_anywhere(folder):
    """Loaded into a process that sees no GPU: the CPU half works, the CUDA half says why it does not."""
    chosen = re.search(r"^CMAKE_CUDA_ARCHITECTURES:\w+=(.*)$", (folder / "CMakeCache.txt").read_text(), re.M)[1]
    known = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    wanted = [name for name in ("75", "80", "86", "89", "90", "100", "120") if f"compute_{name}" in known]
    assert [name.removesuffix("-real") for name in chosen.split(";")] == wanted
    assert not chosen.endswith("-real")  # PTX for what comes after
    script = (
        "import ctypes, sys; l = ctypes.CDLL(sys.argv[1]); l.asvp_cuda_unavailable.restype = ctypes.c_char_p; "
        "print(l.asvp_cuda_unavailable().decode())"
    )
    command = [sys.executable, "-c", script, folder / "libasvp.so"]
    blind = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    seen = subprocess.run(command, capture_output=True, text=True, env=blind)
    assert seen.returncode == 0, seen.stderr
    assert "GPU" in seen.stdout or "driver" in seen.stdout
    assert not seen.stderr


@needs_nvcc
def test_the_cpu_half_is_the_same_with_cuda(folder):
    native = Native(folder)
    x = filled((2, 8, 300), "float32")
    assert (native.perturb(x, 2, 1.0) == x).all()
    native.library.asvp_cuda_unavailable.restype = ctypes.c_char_p
    if native.library.asvp_cuda_unavailable() is not None:
        problem = problem_of(x, 2, 3.0)
        native.library.asvp_workspace_cuda.restype = ctypes.c_size_t
        assert native.library.asvp_workspace_cuda(ctypes.byref(problem)) == 0
        address = ctypes.c_void_p(x.ctypes.data)
        assert (
            native.library.asvp_perturb_cuda(ctypes.byref(problem), address, address, None, ctypes.c_size_t(0), None)
            == 3
        )


@needs_nvcc
def test_nothing_but_the_abi_is_visible(folder):
    shown = subprocess.run(["nm", "-D", "--defined-only", folder / "libasvp.so"], capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in shown.splitlines()}
    assert all(name.startswith("asvp_") or name == "RegisterCustomOps" for name in names), names
    needed = subprocess.run(["ldd", folder / "libasvp.so"], capture_output=True, text=True).stdout
    assert "cuda" not in needed and "stdc++" not in needed


def test_without_nvcc_the_library_is_for_the_cpu_and_one_line_says_so(tmp_path):
    absent = f"-DASVP_NVCC={tmp_path / 'ASVP_NVCC-NOTFOUND'}"
    done = configure(tmp_path / "auto", absent)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "without CUDA" in line], done.stdout
    done = configure(tmp_path / "on", absent, "-DASVP_CUDA=ON")
    assert done.returncode != 0
    assert "nvcc" in done.stderr


def test_an_nvcc_that_does_not_work_is_left_alone(tmp_path):
    broken = tmp_path / "bin" / "nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = configure(tmp_path / "build", f"-DCMAKE_CUDA_COMPILER={broken}")
    assert done.returncode == 0, done.stderr
    assert "without CUDA" in done.stdout
