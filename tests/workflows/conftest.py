"""Pictures and teachers that are exported."""

from __future__ import annotations

from pathlib import Path

import pytest

import asvp_export
from tests.helpers.teachers import example, recurrent, save_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def lowlight() -> asvp_export.Teacher:
    return example("lowlight")


@pytest.fixture(scope="session")
def small() -> asvp_export.Teacher:
    return asvp_export.load(recurrent())
