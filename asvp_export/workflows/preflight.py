"""What happens before the long work: the model is opened, and the user told what was concluded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from torch import nn

from asvp_export.assumptions import Assumption
from asvp_export.environment import conflicting_onnxruntime
from asvp_export.errors import InputError
from asvp_export.insertion.protected import Protected
from asvp_export.option_groups import Options, flag_of
from asvp_export.options import LoadOptions
from asvp_export.progress import Printer
from asvp_export.teacher.load import load_teacher
from asvp_export.teacher.model import Teacher

Model = Teacher | nn.Module | str | Path
"""A teacher, or what `load` makes one of."""


def stem_of(model: Protected | Model) -> str:
    """What files that belong to a model are called: its file's stem, or its class."""
    if isinstance(model, Protected):
        model = model.teacher
    if isinstance(model, nn.Module):
        return type(model).__name__
    return Path(model.source if isinstance(model, Teacher) else model).stem


def teacher_of(model: Model, load: LoadOptions, progress: Printer, note: Printer) -> Teacher:
    """Load a model, where it is not a teacher already, and say what was concluded of it and is not certain.

    Raises:
        InputError: the model cannot be used, or a teacher came with options for loading one.
    """
    if isinstance(model, Teacher):
        refuse_options("A teacher was given", load)
        return model
    progress(f"loading {Path(model).name if isinstance(model, str | Path) else type(model).__name__}")
    teacher = load_teacher(model, load)
    note_assumptions(teacher.assumptions, note)
    return teacher


def refuse_options(opening: str, *groups: Options) -> None:
    """Refuse options that would say nothing here.

    Args:
        opening: what was given in their place, as the beginning of a sentence.
        *groups: which have to be as they are by default.

    Raises:
        InputError: one of them is not.
    """
    for option in _changed(groups):
        raise InputError(f"{opening}, and {option.name} as well, which then has no effect; leave one of the two out.")


def flags_of(*groups: Options) -> list[str]:
    """The flags of the options that are not as they are by default."""
    return [flag_of(option) for option in _changed(groups)]


def refuse_flags(flags: Iterable[str], reason: str) -> None:
    """Refuse options that would say nothing here.

    Args:
        flags: of the options that were given.
        reason: why they say nothing, and what to do, as the rest of a sentence.

    Raises:
        InputError: there is one.
    """
    for flag in flags:
        raise InputError(f"{flag} was given, and {reason}")


def _changed(groups: Iterable[Options]) -> Iterator[Field[Any]]:
    for group in groups:
        default = type(group)()
        for option in fields(group):
            if getattr(group, option.name) != getattr(default, option.name):
                yield option


def note_assumptions(assumptions: Iterable[Assumption], note: Printer) -> None:
    """Say what was concluded of a model and is not certain."""
    for assumption in assumptions:
        if not assumption.certain:
            note(f"assumed, {assumption}")


def warn_of_two_runtimes(note: Printer) -> None:
    """Say that several onnxruntime packages overwrite each other, where that is so."""
    if warning := conflicting_onnxruntime():
        note(f"Warning: {warning}")
