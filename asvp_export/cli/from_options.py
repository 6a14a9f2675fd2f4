"""Click's options from the groups of `asvp_export.options`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import click

from asvp_export.cli.command import Option
from asvp_export.cli.types import type_of
from asvp_export.option_groups import Options, flag_of, shown


def takes(
    name: str, group: type[Options], only: Collection[str] = ()
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the options of a group; it gets them as one object, or each by itself.

    Args:
        name: of the command's parameter that gets the object; "": each option is a parameter.
        group: the options.
        only: names of those that the command has; none: all.
    """
    hints = get_type_hints(group)
    selected = [field for field in fields(group) if not only or field.name in only]

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def gathered(**arguments: Any) -> int:
            values = {field.name: arguments.pop(field.name) for field in selected}
            chosen = {key: value for key, value in values.items() if value is not None}
            made = group(**chosen)
            taken = {name: made} if name else {field.name: getattr(made, field.name) for field in selected}
            return command(**taken, **arguments)

        parameters: list[click.Parameter] = gathered.__dict__.setdefault("__click_params__", [])
        parameters.extend(reversed([_option(field, hints[field.name], group.title) for field in selected]))
        return gathered

    return decorate


def _option(field: Field[Any], hint: Any, heading: str) -> Option:
    about = shown(field)
    heading = about.heading or heading
    flag = flag_of(field)
    if hint is bool:
        return Option([flag, field.name], heading=heading, is_flag=True, help=about.help)
    required = field.default is MISSING
    default = None if required else field.default or None
    default = str(default) if isinstance(default, Path) else default
    return Option(
        [*filter(None, [about.short]), flag, field.name],
        required=required,
        heading=heading,
        type=type_of(hint, about),
        metavar=about.metavar or None,
        **({} if required else {"default": default}),  # click takes any default for an answer, None too
        show_default=default is not None,
        multiple=get_origin(hint) is tuple,
        help=about.help,
    )
