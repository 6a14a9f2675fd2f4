"""Both gates over a file, on every execution path that its users may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from asvp_export.errors import InputError
from asvp_export.onnx_graph.metadata import INLINE
from asvp_export.parity.cases import Case
from asvp_export.parity.expected import Expected
from asvp_export.parity.verify import GateResult, Thresholds, score, worse
from asvp_export.progress import Printer, reporter
from asvp_export.runtime.session import PROVIDERS, library_unused, run_model, session
from asvp_export.runtime.tiles import Tiling, run_tiled, seam_energy
from asvp_export.signature import ValueRange


@dataclass(frozen=True)
class GateInputs:
    """What a file is run on, and what its outputs are held against."""

    cases: Sequence[Case]
    """The inputs."""

    expected: Expected
    """Their outputs; without those of a protected model there is no fidelity."""

    data_range: ValueRange
    """The model's values for black and white."""


def judge(
    path: Path,
    inputs: GateInputs,
    thresholds: Thresholds,
    provider: str,
    portable: str = "",
    progress: Printer = lambda line: None,
) -> tuple[GateResult | None, GateResult]:
    """Run a file by its function body and, where the native library serves the provider, by it too; the worse counts.

    Args:
        path: the ONNX file.
        inputs: what it is run on.
        thresholds: dB that fidelity and preservation have to reach.
        provider: of onnxruntime, "cpu" or "cuda".
        portable: of the file's metadata; no kernel takes the place of an inlined body.
        progress: shows how far the runs are.

    Returns:
        Fidelity, None where there is no protected model, and preservation.

    Raises:
        InputError, MachineError: as for `session` and `run_model`.
    """
    cases, expected = inputs.cases, inputs.expected
    fidelity, preservation = {}, {}
    for execution_path in _execution_paths(provider, portable):
        opened = session(path, provider, library=execution_path == "library")
        with reporter(progress).track(cases, f"file by the {execution_path}") as tracked:
            outputs = [case.pictures(run_model(opened, *case.inputs)) for case in tracked]
        del opened  # before the next one: each holds the weights
        settings = (inputs.data_range, expected.names)
        pairs = zip(cases, expected.original, outputs, strict=True)
        preservation[execution_path] = score(pairs, thresholds.preservation, *settings)
        if expected.protected:
            pairs = zip(cases, expected.protected, outputs, strict=True)
            fidelity[execution_path] = score(pairs, thresholds.fidelity, *settings)
    return worse(fidelity) if fidelity else None, worse(preservation)


def judge_tiled(
    path: Path, inputs: GateInputs, min_psnr: float, tiling: Tiling, main: int, provider: str
) -> tuple[GateResult, float]:
    """Run a file tile by tile, as on a machine with little memory, against the original's run on the whole image.

    Args:
        path: the ONNX file.
        inputs: what it is run on; cases of one picture that is larger than a tile count.
        min_psnr: dB that the worst has to reach.
        tiling: a size that the model takes.
        main: which floating output is the restored image.
        provider: of onnxruntime, "cpu" or "cuda".

    Returns:
        The verdict, and the worst seam energy (`asvp_export.runtime.tiles.seam_energy`).

    Raises:
        InputError: no picture is larger than a tile, or the model's output cannot be put together from tiles.
    """
    cases, expected = inputs.cases, inputs.expected
    if any(case.others for case in cases) or any(case.input.ndim != 4 for case in cases):
        raise InputError(
            "Tiles were asked for; only a model whose single input is one picture runs in tiles. Leave --tile out."
        )
    large = [
        (case, outputs[main])
        for case, outputs in zip(cases, expected.original, strict=True)
        if case.batch == 1 and max(case.input.shape[2:]) > tiling.size
    ]
    if not large:
        raise InputError(f"No picture is larger than a tile of {tiling.size}; use larger ones, or a smaller tile.")
    opened, pairs, seams = session(path, provider), [], [math.nan]

    def run(x: np.ndarray, case: Case) -> np.ndarray:
        tile = replace(case, input=x)
        return tile.pictures(run_model(opened, *tile.inputs))[main]

    for case, whole in large:
        tiled = run_tiled(partial(run, case=case), case.input, tiling)
        pairs.append((case, [whole], [tiled]))
        scale = whole.shape[2] / case.input.shape[2]
        seams.append(seam_energy(whole, tiled, Tiling(round(tiling.size * scale), round(tiling.overlap * scale))))
    return score(pairs, min_psnr, inputs.data_range, (expected.names[main],)), float(np.nanmax(seams))


def library_notes(provider: str, portable: str = "") -> tuple[str, ...]:
    """What a reader of the verdict has to know where the library was left out."""
    if portable == INLINE:
        return ("The operator's body is inlined: the file runs by its own nodes, never by the native kernel.",)
    unused = library_unused([PROVIDERS[provider]])
    return (f"{unused} The file was run by its function body alone.",) if unused else ()


def _execution_paths(provider: str, portable: str) -> tuple[str, ...]:
    return ("function",) if library_notes(provider, portable) else ("function", "library")
