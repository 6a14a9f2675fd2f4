"""`layers`: which layers of a model can carry the node."""

from __future__ import annotations

from typing import Unpack

from asvp_export.keywords import LoadKeywords
from asvp_export.option_groups import grouped
from asvp_export.options import LoadOptions
from asvp_export.progress import Printer, silent
from asvp_export.selection.survey import ListedLayers, survey_layers
from asvp_export.workflows.preflight import Model, teacher_of


def layers(model: Model, *, note: Printer = silent, **options: Unpack[LoadKeywords]) -> ListedLayers:
    """List the layers of a model that can carry the node, with their spectra and the node's cost.

    Args:
        model: a teacher, or what `load` takes.
        note: called with what was concluded of the model and is not certain.
        **options: see `asvp_export.options.LoadOptions`.

    Raises:
        InputError: the model cannot be used.
    """
    (load,) = grouped(options, LoadKeywords, LoadOptions)
    return list_layers(model, load, note)


def list_layers(model: Model, load: LoadOptions, note: Printer) -> ListedLayers:
    """`layers`, with the options as an object."""
    teacher = teacher_of(model, load, silent, note)
    carriers, refused = survey_layers(teacher)
    return ListedLayers(teacher, tuple(carriers), refused)
