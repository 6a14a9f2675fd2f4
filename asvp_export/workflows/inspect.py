"""`inspect`: what stands in a shipped file, and whether it is what was shipped."""

from __future__ import annotations

from pathlib import Path

from asvp_export.onnx_graph.describe import describe
from asvp_export.report.manifest import Verification, verify_manifest

__all__ = ["Verification", "inspect", "verify_manifest"]


def inspect(protected: str | Path) -> dict[str, object]:
    """Say what stands in a shipped file: inputs, outputs, opsets, nodes with their attributes, provenance.

    Args:
        protected: an ONNX file.

    Returns:
        What `asvp-export inspect --json` prints.

    Raises:
        InputError: it is no ONNX file, or its metadata cannot be read.
    """
    return describe(protected)
