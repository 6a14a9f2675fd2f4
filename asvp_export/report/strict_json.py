"""The report as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def json_bytes(data: Mapping[str, object]) -> bytes:
    """`strict_json` for a file."""
    # File names may hold bytes that are no text; as \udcXX they are valid JSON.
    return strict_json(data).encode("utf-8", "backslashreplace")


def strict_json(data: Mapping[str, object]) -> str:
    """Indented JSON that ends in a line feed: NaN and infinity become null, keys keep their order.

    Args:
        data: dicts, lists, tuples, strings, numbers, booleans and None.
    """
    return json.dumps(_strict(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
