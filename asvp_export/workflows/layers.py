"""`layers`: which layers of a model can carry the node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asvp_export.options import LoadOptions
from asvp_export.selection.survey import Layer, candidates
from asvp_export.teacher.load import load_teacher
from asvp_export.teacher.model import Teacher


@dataclass(frozen=True)
class LayersFound:
    """A teacher and its layers."""

    teacher: Teacher
    """The model, with what was concluded of it."""

    layers: tuple[Layer, ...]
    """Those that can carry the node."""

    refused: Mapping[str, str]
    """The others, and why not."""


def layers(model: Path | Teacher, load: LoadOptions) -> LayersFound:
    """List the layers of a model that can carry the node, with their spectra and the node's cost.

    Args:
        model: a file, or a teacher that is loaded.
        load: how a file is loaded.

    Raises:
        InputError: the model cannot be used.
    """
    teacher = model if isinstance(model, Teacher) else load_teacher(model, load)
    found, refused = candidates(teacher)
    return LayersFound(teacher, tuple(found), refused)
