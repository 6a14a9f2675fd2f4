"""Tables in pages, between marks."""

from __future__ import annotations

import re
from pathlib import Path


def fill(page: Path, tables: dict[str, str]) -> None:
    """Put each table between `<!-- its name -->` and `<!-- end -->`."""
    text = page.read_text()
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = mark.subn(lambda match, table=table: match[1] + table + match[2], text)
        assert count == 1, name
    page.write_text(text)
