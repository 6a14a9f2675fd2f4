"""The teacher that is listed and selected from."""

from __future__ import annotations

import pytest
import torch

from asvp_export.teacher.load import load
from asvp_export.teacher.model import Teacher
from tests.helpers.survey_nets import Net


@pytest.fixture
def net() -> Teacher:
    """A small residual teacher with random weights."""
    torch.manual_seed(0)
    return load(Net())
