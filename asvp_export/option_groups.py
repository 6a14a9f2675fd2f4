"""How options are declared: in groups, whose values are checked when one is made. Importable without PyTorch."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from asvp_export.errors import InputError


@dataclass(frozen=True)
class Shown:
    """How the command line shows an option."""

    help: str
    """What it does, in a sentence or two."""

    metavar: str = ""
    """What stands for its value; "" for what its type says."""

    choices: tuple[str, ...] = ()
    """The words that it takes; with a number as its type, beside numbers."""

    least: float | None = None
    """It has to be over this number."""

    flag: str = ""
    """Its name on the command line; "" for that of the field."""

    short: str = ""
    """Its name of one letter, with the dash; "" where it has none."""

    heading: str = ""
    """What it stands under in a command's help; "" for its group's title."""


def option(default: Any, help: str, **shown: Any) -> Any:
    """A field that is an option."""
    return field(default=default, metadata={"shown": Shown(help, **shown)})


def shown(option_field: Field[Any]) -> Shown:
    """How a field is shown."""
    return option_field.metadata["shown"]


def flag_of(option_field: Field[Any]) -> str:
    """What it is called on the command line."""
    return shown(option_field).flag or f"--{option_field.name.replace('_', '-')}"


def value_type(hint: Any) -> Any:
    """The type of one value: without None, and what a tuple of any length holds."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        hint = parts[0]
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        return get_args(hint)[0]
    return hint


@dataclass(frozen=True)
class Options:
    """A group of options; values are checked, and brought to their types, when it is made.

    Raises:
        InputError: a word that is not among the choices, or a number out of range.
    """

    title: ClassVar[str] = ""
    """The heading over them in a command's help."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for option_field in fields(self):
            value, hint = getattr(self, option_field.name), hints[option_field.name]
            if value is None:
                continue
            name = option_field.name.replace("_", " ")
            if value_type(hint) is Path and isinstance(value, str):
                object.__setattr__(self, option_field.name, Path(value))
            elif isinstance(value, list):
                object.__setattr__(self, option_field.name, tuple(value))
            _check(name, value, shown(option_field), numeric=value_type(hint) in (int, float))


def grouped(keywords: Mapping[str, Any], known: Any, *groups: type[Options]) -> tuple[Any, ...]:
    """The groups from the keywords of a public function.

    Args:
        keywords: name to value.
        known: the typed dictionary of those that the function has.
        *groups: to be made.

    Raises:
        TypeError: a name that is not known.
        InputError: a value that does not do.
    """
    names: frozenset[str] = known.__optional_keys__
    if unknown := set(keywords) - names:
        raise TypeError(f"there is no option {min(unknown)!r}; {', '.join(sorted(names))} are known")
    return tuple(
        group(**{option.name: keywords[option.name] for option in fields(group) if option.name in keywords})
        for group in groups
    )


def _check(name: str, value: object, shown_as: Shown, numeric: bool) -> None:
    if shown_as.choices and isinstance(value, str) and value not in shown_as.choices:
        expected = (*(("a number",) if numeric else ()), *filter(None, shown_as.choices))
        raise InputError(f"The {name} {value!r} was asked for; {' or '.join(expected)} was expected.")
    if (
        shown_as.least is not None
        and isinstance(value, int | float)
        and not (math.isfinite(value) and value > shown_as.least)
    ):
        raise InputError(f"The {name} {value:g} was asked for; a number above {shown_as.least:g} was expected.")
