"""Settings for all tests."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # criterion, spectra: helpers beside the tests

settings.register_profile("repeatable", derandomize=True, print_blob=True)
settings.load_profile("repeatable")
