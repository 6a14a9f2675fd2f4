"""Benchmarks can be started: what they import is there, on a machine without a GPU too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.commands import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]


def test_every_benchmark_imports_from_the_root_of_the_repository():
    """In one process of its own: they import each other, and tests, by the names that `python -m` gives them."""
    names = sorted(f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py"))
    assert len(names) > 15
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
