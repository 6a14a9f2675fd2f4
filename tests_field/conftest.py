"""The slow suite of the field's files: the outcomes are written down for benchmarks/bench_field.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests_field.files import pictures

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pictures that every file restores, by name."""
    return dict(pictures(tmp_path_factory.mktemp("pictures")))


@pytest.fixture(scope="session")
def note():
    """Write what was found of one file into build/field."""
    folder = ROOT / "build" / "field"
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name, row: (folder / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
