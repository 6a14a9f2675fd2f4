"""Settings for all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Small decompositions, thousands of them: on a busy machine numpy's threads wait for each other ten times as long as they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # criterion, spectra: helpers beside the tests

settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile("repeatable")
