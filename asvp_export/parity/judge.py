"""Both gates over a file, in every way in which its users may run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asvp_export.operator.session import library_unused
from asvp_export.parity.cases import Case
from asvp_export.parity.expected import Expected
from asvp_export.parity.session import PROVIDERS, run_model, session
from asvp_export.parity.verify import GateResult, score, worse
from asvp_export.signature import ValueRange


def judge(
    path: Path,
    cases: Sequence[Case],
    expected: Expected,
    thresholds: tuple[float, float],
    data_range: ValueRange,
    provider: str,
) -> tuple[GateResult | None, GateResult]:
    """Run a file by its function body and, where the native library serves the provider, by the library; the worse counts.

    Args:
        path: the ONNX file.
        cases: the inputs.
        expected: their outputs; without those of a protected model fidelity is None.
        thresholds: dB that fidelity and preservation have to reach.
        data_range: the model's values for black and white.
        provider: of onnxruntime, "cpu" or "cuda".

    Returns:
        Fidelity and preservation.

    Raises:
        InputError, MachineError: as for `session` and `run_model`.
    """
    fidelity, preservation = {}, {}
    for way in _ways(provider):
        opened = session(path, provider, library=way == "library")
        got = [run_model(opened, *case.inputs) for case in cases]
        held = (data_range, expected.names)
        preservation[way] = score(zip(cases, expected.original, got, strict=True), thresholds[1], *held)
        if expected.protected:
            fidelity[way] = score(zip(cases, expected.protected, got, strict=True), thresholds[0], *held)
    return worse(fidelity) if fidelity else None, worse(preservation)


def library_notes(provider: str) -> tuple[str, ...]:
    """What a reader of the verdict has to know where the library was left out."""
    unused = library_unused([PROVIDERS[provider]])
    return (f"{unused} The file was run by its function body alone.",) if unused else ()


def _ways(provider: str) -> tuple[str, ...]:
    return ("function",) if library_notes(provider) else ("function", "library")
