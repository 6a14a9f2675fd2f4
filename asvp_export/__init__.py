"""Export image-restoration teachers to ONNX with an ASVP defence inside, and verify the file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asvp_export.errors import AsvpError, InputError, MachineError
    from asvp_export.insertion.apply import apply
    from asvp_export.insertion.plan import Plan
    from asvp_export.insertion.protected import Protected
    from asvp_export.onnx_graph.describe import describe
    from asvp_export.operator.native import library_path
    from asvp_export.operator.reference import reference
    from asvp_export.operator.schema import Perturbation
    from asvp_export.parity.result import ParityResult
    from asvp_export.parity.shipped import check
    from asvp_export.plan.protection import protect
    from asvp_export.report.card import write_card
    from asvp_export.report.manifest import verify, write_manifest
    from asvp_export.report.page import write_page
    from asvp_export.runtime.restoration import restore
    from asvp_export.runtime.session import InferenceSession
    from asvp_export.selection.survey import Layer, candidates
    from asvp_export.signature import Signature, SizeRule, ValueRange
    from asvp_export.teacher.load import load
    from asvp_export.teacher.model import Teacher
    from asvp_export.workflows.publication import export

# Names are imported when first used: `asvp-export --help` must not wait for torch.
_HOME = {
    "AsvpError": "errors",
    "InferenceSession": "runtime.session",
    "InputError": "errors",
    "Layer": "selection.survey",
    "MachineError": "errors",
    "ParityResult": "parity.result",
    "Plan": "insertion.plan",
    "Perturbation": "operator.schema",
    "Protected": "insertion.protected",
    "Signature": "signature",
    "SizeRule": "signature",
    "Teacher": "teacher.model",
    "ValueRange": "signature",
    "apply": "insertion.apply",
    "candidates": "selection.survey",
    "check": "parity.shipped",
    "describe": "onnx_graph.describe",
    "export": "workflows.publication",
    "library_path": "operator.native",
    "load": "teacher.load",
    "protect": "plan.protection",
    "reference": "operator.reference",
    "restore": "runtime.restoration",
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
