"""`inspect`: what stands in a shipped file, and whether it is what was shipped."""

from __future__ import annotations

from asvp_export.onnx_graph.describe import describe as inspect
from asvp_export.report.manifest import Verification
from asvp_export.report.manifest import verify as verify_manifest

__all__ = ["Verification", "inspect", "verify_manifest"]
