"""Export image-restoration teachers to ONNX with an ASVP defence inside, and verify the file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asvp_export.errors import AsvpError, InputError, MachineError
    from asvp_export.insertion.apply import apply
    from asvp_export.insertion.plan import Plan
    from asvp_export.insertion.protected import Protected
    from asvp_export.operator.native import library_path
    from asvp_export.operator.reference import reference
    from asvp_export.operator.schema import Perturbation
    from asvp_export.parity.result import ParityResult
    from asvp_export.runtime.session import InferenceSession
    from asvp_export.selection.survey import Layer
    from asvp_export.signature import Signature, SizeRule, ValueRange
    from asvp_export.teacher.load import load
    from asvp_export.teacher.model import Teacher
    from asvp_export.workflows.audit import audit
    from asvp_export.workflows.check import check
    from asvp_export.workflows.export import export
    from asvp_export.workflows.inspect import inspect, verify_manifest
    from asvp_export.workflows.layers import layers
    from asvp_export.workflows.protect import protect
    from asvp_export.workflows.run import run

# Names are imported when first used: `asvp-export --help` must not wait for torch.
_HOME = {
    "audit": "workflows.audit",
    "inspect": "workflows.inspect",
    "layers": "workflows.layers",
    "run": "workflows.run",
    "verify_manifest": "workflows.inspect",
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
    "check": "workflows.check",
    "export": "workflows.export",
    "library_path": "operator.native",
    "load": "teacher.load",
    "protect": "workflows.protect",
    "reference": "operator.reference",
}

# One list of names; pyright wants them written out, and the imports above tell it what they are.
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'asvp_export' has no attribute {name!r}")
    value = getattr(import_module(f"asvp_export.{_HOME[name]}"), name)
    globals()[name] = value
    return value
