"""Rows of measurements in a JSON file that several processes may fill together."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any


def add_row(file: Path, key: str, row: dict[str, Any]) -> None:
    """Add a row, or replace the one of that key; the rows are sorted by key."""
    file.touch()
    with file.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        rows = json.loads(stream.read() or "{}") | {key: row}
        stream.seek(0)
        stream.truncate()
        stream.write(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
