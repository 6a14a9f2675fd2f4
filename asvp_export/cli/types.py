"""The kinds of values that options take on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from asvp_export.option_groups import Shown, value_type
from asvp_export.options import Size

PATH = click.Path(path_type=Path)


class SizeType(click.ParamType):
    """HxW, as (height, width)."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """See click."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch("0*([1-9][0-9]{0,8})x0*([1-9][0-9]{0,8})", str(value).lower())
        if match is None:
            self.fail(f"{value!r} is not a size; height x width was expected, such as 256x384.", param, ctx)
        return int(match[1]), int(match[2])


class WordOrNumber(click.ParamType):
    """A number, or one of some words."""

    def __init__(self, number: type[int] | type[float], words: tuple[str, ...]) -> None:
        self.number, self.words = number, words
        self.name = "|".join((*words, "INTEGER" if number is int else "FLOAT"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | str:
        """See click."""
        if value in self.words:
            return value
        try:
            return self.number(value)
        except ValueError:
            self.fail(f"{value!r} is neither {' nor '.join(self.words)} nor a number.", param, ctx)


class JsonObject(click.ParamType):
    """A JSON object."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """See click."""
        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(
                f"{value!r} is not JSON ({error}); an object was expected, such as '{{\"scale\": 2}}'.", param, ctx
            )
        if not isinstance(parsed, dict):
            self.fail(f"{value!r} is JSON but not an object; names and values were expected.", param, ctx)
        return parsed


def type_of(hint: Any, about: Shown) -> click.ParamType | type:
    """What click converts a value with, by the type that an option has in Python."""
    kind = value_type(hint)
    if kind is Path:
        return PATH
    if kind == Size:
        return SizeType()
    if getattr(kind, "__origin__", None) is dict:
        return JsonObject()
    words = tuple(word for word in about.choices if word)
    if kind in (int, float):
        if words:
            return WordOrNumber(kind, words)
        if about.least is None:
            return kind
        if kind is int:
            return click.IntRange(min=int(about.least), min_open=True)
        return click.FloatRange(min=about.least, min_open=True)
    return click.Choice(words) if words else str
