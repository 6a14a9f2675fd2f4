"""pyproject.toml takes no version lower than those with which the core was run: docs/results/compatibility.md."""

from __future__ import annotations

import re

import pytest
from packaging.version import Version

from benchmarks.versions import SHOWN, floor
from tests.helpers.teachers import ROOT

LOWEST, TORCH, TESTS = "lowest", "torch", "tests"


def rows() -> list[dict[str, str]]:
    """Of the table, by the names of its columns."""
    lines = (ROOT / "docs" / "results" / "compatibility.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header = next(names for names in cells if names[0] == "versions")
    return [dict(zip(header, row, strict=True)) for row in cells if row[0] in (LOWEST, "newest")]


@pytest.mark.parametrize("package", SHOWN)
def test_every_floor_is_the_lowest_version_that_was_run(package):
    run = [Version(row[package]).release for row in rows() if row["versions"] == LOWEST]
    asked = Version(floor(package)).release
    assert min(run)[: len(asked)] == asked
    assert not any(min(run)[len(asked) :]), "a later release of that version was run"


def test_both_packages_of_onnxruntime_have_one_floor():
    assert floor("onnxruntime-gpu") == floor("onnxruntime")


def test_each_set_was_run_with_two_versions_of_pytorch_and_passed():
    for name in (LOWEST, "newest"):
        chosen = [row for row in rows() if row["versions"] == name]
        assert len({row[TORCH] for row in chosen}) == 2
        assert all(re.fullmatch(r"\d+ passed", row[TESTS]) for row in chosen), chosen
