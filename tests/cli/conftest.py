"""The folder in which the commands run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.workshop import fill_the_workshop


@pytest.fixture(scope="session")
def filled_workshop(tmp_path_factory) -> Path:
    """A folder with teachers, pictures, exported files and much that is none of these."""
    folder = tmp_path_factory.mktemp("workshop")
    with contextlib.chdir(folder):
        fill_the_workshop()
    return folder


@pytest.fixture
def workshop(filled_workshop) -> Iterator[Path]:
    """That folder, and commands run in it; a test takes away what it writes there."""
    with contextlib.chdir(filled_workshop):
        yield filled_workshop
