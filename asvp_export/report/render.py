"""What the pages share: tables, and HTML with everything inside, which asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from asvp_export.environment import tool_version

MOST_BYTES = 5_000_000

Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A column of a `Table`."""

    name: str
    """Its head."""

    form: str = ""
    """Format specification of its numbers (".2f"); "" leaves them as they are."""

    unit: str = ""
    """What stands behind each number ("dB")."""

    def show(self, value: Cell) -> str:
        """A cell as text; a dash where there is no value, or it is not finite."""
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return "\N{EN DASH}"
        if isinstance(value, str):
            return value
        return f"{value:{self.form}}" + (f" {self.unit}" if self.unit else "")


@dataclass(frozen=True)
class Table:
    """A table of the page; the first column names the rows."""

    columns: Sequence[Column | str]
    """The heads; a plain word is a column of text."""

    rows: Sequence[Sequence[Cell]]
    """As many cells each as there are columns."""

    intro: str = ""
    """One or two sentences above it."""

    outro: str = ""
    """What its words mean, in small print below it."""

    details: Sequence[str] = ()
    """In small print under the name of each row; none, or one for each."""

    @property
    def heads(self) -> list[Column]:
        """The columns."""
        return [Column(column) if isinstance(column, str) else column for column in self.columns]

    @property
    def cells(self) -> list[list[tuple[str, str]]]:
        """Row by row: the head and the text."""
        return [
            [(head.name, head.show(value)) for head, value in zip(self.heads, row, strict=True)] for row in self.rows
        ]


def render_within(
    template: str, *, title: str, dispensable: Mapping[str, list[Any]], script: str = "", **content: object
) -> str:
    """A page under 5 MB: while it is larger, the last item of the first list that has any is left out.

    Args:
        template: as for `render`, and so are the others.
        dispensable: lists that the template asks for, by name, the first to be shortened first.
    """
    while True:
        page = render(template, title=title, script=script, **content, **dispensable)
        shortened = next((items for items in dispensable.values() if items), None)
        if shortened is None or len(page.encode("utf-8", "replace")) < MOST_BYTES:
            return page
        shortened.pop()


def render(template: str, *, title: str, script: str = "", **content: object) -> str:
    """A page of its template in templates/, with the style sheet inside and a policy that lets nothing else in.

    Args:
        template: name of the file; it extends base.html.
        title: of the page.
        script: name of the only script that runs in it, "" for none.
        content: what the template asks for.
    """
    style, code = _source("page.css"), _source(script) if script else ""
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    if script:
        policy += f"; script-src {_hash(code)}"
    common = {
        "title": title,
        "style": Markup(style),
        "script": Markup(code),
        "policy": policy,
        "version": tool_version(),
    }
    return _templates().get_template(template).render(common | content)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("asvp_export.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    loader = _templates().loader
    assert loader
    return loader.get_source(_templates(), name)[0]


def _hash(text: str) -> str:
    """The text's source expression for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
