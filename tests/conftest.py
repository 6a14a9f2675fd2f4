"""Settings for all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Small decompositions, thousands of them: on a busy machine numpy's threads wait for each other ten times as long as they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # criterion, spectra: helpers beside the tests


@pytest.fixture(params=["library", "body"])
def kernels(request, monkeypatch) -> str:
    """The test runs twice: with the native library, and as on a machine where there is none."""
    if request.param == "body":
        monkeypatch.setenv("ASVP_DISABLE_NATIVE", "1")
    return request.param


settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile("repeatable")
