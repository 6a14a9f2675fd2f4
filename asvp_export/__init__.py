"""Export image-restoration teachers to ONNX with an ASVP defence inside, and verify the file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asvp_export.errors import AsvpError, InputError, MachineError
    from asvp_export.gate import check
    from asvp_export.graph.describe import describe
    from asvp_export.graph.protect import Protected
    from asvp_export.layers.survey import Layer, candidates
    from asvp_export.operator.native import library_path
    from asvp_export.operator.reference import reference
    from asvp_export.operator.schema import Perturbation
    from asvp_export.parity.result import ParityResult
    from asvp_export.pipeline import export
    from asvp_export.plan.apply import apply
    from asvp_export.plan.plan import Plan
    from asvp_export.protection import protect
    from asvp_export.report.card import write_card
    from asvp_export.report.manifest import verify, write_manifest
    from asvp_export.report.page import write_page
    from asvp_export.restoration import restore
    from asvp_export.runtime.session import InferenceSession
    from asvp_export.signature import Signature, SizeRule, ValueRange
    from asvp_export.teacher.load import load
    from asvp_export.teacher.model import Teacher

# Names are imported when first used: `asvp-export --help` must not wait for torch.
_HOME = {
    "AsvpError": "errors",
    "InferenceSession": "runtime.session",
    "InputError": "errors",
    "Layer": "layers.survey",
    "MachineError": "errors",
    "ParityResult": "parity.result",
    "Plan": "plan.plan",
    "Perturbation": "operator.schema",
    "Protected": "graph.protect",
    "Signature": "signature",
    "SizeRule": "signature",
    "Teacher": "teacher.model",
    "ValueRange": "signature",
    "apply": "plan.apply",
    "candidates": "layers.survey",
    "check": "gate",
    "describe": "graph.describe",
    "export": "pipeline",
    "library_path": "operator.native",
    "load": "teacher.load",
    "protect": "protection",
    "reference": "operator.reference",
    "restore": "restoration",
    "verify": "report.manifest",
    "write_card": "report.card",
    "write_manifest": "report.manifest",
    "write_page": "report.page",
}

# One list of names; pyright wants them written out, and the imports above tell it what they are.
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'asvp_export' has no attribute {name!r}")
    value = getattr(import_module(f"asvp_export.{_HOME[name]}"), name)
    globals()[name] = value
    return value
