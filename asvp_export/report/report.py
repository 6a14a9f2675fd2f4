"""The report as JSON, and the environment it was made in."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from asvp_export.files import atomic_write


def write_json(path: str | Path, data: Mapping[str, object]) -> None:
    """Write strict JSON, complete or not at all: NaN and infinity become null, keys keep their order.

    Args:
        path: the file.
        data: dicts, lists, tuples, strings, numbers, booleans and None.

    Raises:
        InputError: the folder does not exist or is not writable.
        MachineError: the disk is full.
    """
    # File names may hold bytes that are no text; as \udcXX they are valid JSON.
    atomic_write(path, strict_json(data).encode("utf-8", "backslashreplace"))


def strict_json(data: Mapping[str, object]) -> str:
    """Indented JSON that ends in a line feed; NaN and infinity become null."""
    return json.dumps(_strict(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def environment() -> dict[str, str | int | None]:
    """What a result may depend on, and nothing that names the machine or its user.

    Returns:
        Versions (None: not installed), the platform, and how many processors this process may use.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": _version("torch"),
        "onnx": _version("onnx"),
        "onnxruntime": _version("onnxruntime", "onnxruntime-gpu"),
        "numpy": _version("numpy"),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _version(*packages: str) -> str | None:
    """Version of the first that is installed, read without importing it."""
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None
