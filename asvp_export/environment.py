"""What a result may depend on: versions and the platform."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
)


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


def tool_version() -> str:
    """Version of asvp-export as it is installed."""
    return metadata.version("asvp-export")


def conflicting_onnxruntime() -> str | None:
    """One sentence when several onnxruntime packages are installed over each other, else None."""
    installed = [f"{wheel} {version}" for wheel in _WHEELS if (version := _version(wheel))]
    if len(installed) < 2:
        return None
    return (
        f"Several onnxruntime packages are installed and overwrite each other ({', '.join(installed)}): "
        "uninstall all of them, then install the one you want."
    )
