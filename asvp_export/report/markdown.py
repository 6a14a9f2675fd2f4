"""Markdown of text that anybody may have written: what Markdown and HTML would interpret is escaped."""

from __future__ import annotations

import re
from typing import Any


def visible(text: str) -> str:
    """Text without what cannot be printed; bytes of a file name that are no text stay as they are."""
    return "".join(
        letter if letter.isprintable() or "\udc80" <= letter <= "\udcff" else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def plain(text: str) -> str:
    """Text in which what Markdown and HTML would interpret is escaped, but for bars: `table` does that."""
    return re.sub(r"([\\`*_{}\[\]<>#~&])", r"\\\1", visible(text))


def code(text: str) -> str:
    """A code span, whatever the text holds."""
    text = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table(heads: tuple[str, ...], rows: Any) -> str:
    """A table; the bars in its cells, which are Markdown already, are escaped."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
