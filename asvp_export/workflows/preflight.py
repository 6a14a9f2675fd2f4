"""What is told before the long work."""

from __future__ import annotations

from collections.abc import Iterable

from asvp_export.assumptions import Assumption
from asvp_export.environment import conflicting_onnxruntime
from asvp_export.progress import Printer


def tell(assumptions: Iterable[Assumption], note: Printer) -> None:
    """Printer what was concluded of a model and is not certain."""
    for assumption in assumptions:
        if not assumption.certain:
            note(f"assumed, {assumption}")


def warn_of_two_runtimes(note: Printer) -> None:
    """Printer that several onnxruntime packages overwrite each other, where that is so."""
    if warning := conflicting_onnxruntime():
        note(f"Warning: {warning}")
