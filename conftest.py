"""Settings and fixtures for the tests of the toolchain (tests/) and of the native library (custom_ops/tests/)."""

from __future__ import annotations

import os
from pathlib import Path

# The tests make thousands of small decompositions; on a busy machine numpy's threads would mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Where several processes share the tests, a second thread in each (PyTorch's, onnxruntime's) would only wait as well.
# Tests of threads ask for their own.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "ORT_INTRA_OP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.helpers")

from tests.helpers.native import build

settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(params=["library", "body"])
def kernels(request, monkeypatch) -> str:
    """The test runs twice: with the native library, and as on a machine where there is none."""
    if request.param == "body":
        monkeypatch.setenv("ASVP_DISABLE_NATIVE", "1")
    return request.param


@pytest.fixture(scope="session")
def folder() -> Path:
    """The native library and the helpers of its tests, built from the sources as they are now; or with sanitizers."""
    return build("tests-address", "-DASVP_SANITIZE=address") if os.environ.get("ASVP_SANITIZED") else build("tests")


@pytest.fixture(scope="session")
def library(folder) -> str:
    """Libasvp as onnxruntime takes it."""
    return str(folder / "libasvp.so")


@pytest.fixture(scope="session")
def reduced(folder):
    """A library that has the op in float32 on one provider only; its kernel writes 42."""
    return lambda provider: str(folder / f"libasvp_float32_on_{provider}.so")
