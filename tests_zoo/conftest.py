"""The slow suite: spandrel imported, the tests shared out, what was measured written down."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.teachers import save_pictures
from tests.helpers.zoo import import_spandrel

ROOT = Path(__file__).resolve().parents[1]


import_spandrel()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """ZOO_SHARD=2/4: the second quarter of the tests."""
    shard, _, shards = os.environ.get("ZOO_SHARD", "").partition("/")
    if shards:
        items[:] = items[int(shard) - 1 :: int(shards)]


@pytest.fixture
def photographs(tmp_path) -> Callable[[int, int], Path]:
    """Two real photographs, cut to a height and a width."""
    return lambda height, width: save_pictures(tmp_path / "photographs", count=2, height=height, width=width)


@pytest.fixture(scope="session")
def note():
    """Write what was measured for benchmarks/bench_zoo.py, into ZOO_RESULTS (build/zoo by default)."""
    folder = Path(os.environ.get("ZOO_RESULTS", ROOT / "build" / "zoo"))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name, row: (folder / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
