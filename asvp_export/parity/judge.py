"""Both gates over a file, in every way in which its users may run it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from asvp_export.errors import InputError
from asvp_export.graph.metadata import INLINE
from asvp_export.parity.cases import Case
from asvp_export.parity.expected import Expected
from asvp_export.parity.verify import GateResult, score, worse
from asvp_export.progress import Say, reporter
from asvp_export.runtime.session import PROVIDERS, library_unused, run_model, session
from asvp_export.runtime.tiles import Tiling, run_tiled, seam_energy
from asvp_export.signature import ValueRange


def judge(
    path: Path,
    cases: Sequence[Case],
    expected: Expected,
    thresholds: tuple[float, float],
    data_range: ValueRange,
    provider: str,
    portable: str = "",
    progress: Say = lambda line: None,
) -> tuple[GateResult | None, GateResult]:
    """Run a file by its function body and, where the native library serves the provider, by the library; the worse counts.

    Args:
        path: the ONNX file.
        cases: the inputs.
        expected: their outputs; without those of a protected model fidelity is None.
        thresholds: dB that fidelity and preservation have to reach.
        data_range: the model's values for black and white.
        provider: of onnxruntime, "cpu" or "cuda".
        portable: of the file's metadata; no kernel takes the place of an inlined body.
        progress: shows how far the runs are.

    Returns:
        Fidelity and preservation.

    Raises:
        InputError, MachineError: as for `session` and `run_model`.
    """
    fidelity, preservation = {}, {}
    for way in _ways(provider, portable):
        opened = session(path, provider, library=way == "library")
        with reporter(progress).track(cases, f"file by the {way}") as tracked:
            got = [case.pictures(run_model(opened, *case.inputs)) for case in tracked]
        del opened  # before the next one: each holds the weights
        held = (data_range, expected.names)
        preservation[way] = score(zip(cases, expected.original, got, strict=True), thresholds[1], *held)
        if expected.protected:
            fidelity[way] = score(zip(cases, expected.protected, got, strict=True), thresholds[0], *held)
    return worse(fidelity) if fidelity else None, worse(preservation)


def judge_tiled(
    path: Path,
    cases: Sequence[Case],
    expected: Expected,
    min_psnr: float,
    data_range: ValueRange,
    tiling: Tiling,
    main: int,
    provider: str,
) -> tuple[GateResult, float]:
    """Run a file tile by tile, as who has little memory does, against the original's run on the whole image.

    Args:
        path: the ONNX file.
        cases: the inputs; those of one picture that is larger than a tile count.
        expected: their outputs.
        min_psnr: dB that the worst has to reach.
        data_range: the model's values for black and white.
        tiling: a size that the model takes.
        main: which floating output is the restored image.
        provider: of onnxruntime, "cpu" or "cuda".

    Returns:
        The verdict, and the worst seam energy (`asvp_export.runtime.tiles.seam_energy`).

    Raises:
        InputError: no picture is larger than a tile, or the model's output cannot be put together from tiles.
    """
    if any(case.others for case in cases) or any(case.input.ndim != 4 for case in cases):
        raise InputError("Tiles were asked for; they are for models that take one picture and nothing else.")
    large = [(case, outputs[main]) for case, outputs in zip(cases, expected.original, strict=True)
             if case.batch == 1 and max(case.input.shape[2:]) > tiling.size]  # fmt: skip
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
    return score(pairs, min_psnr, data_range, (expected.names[main],)), float(np.nanmax(seams))


def library_notes(provider: str, portable: str = "") -> tuple[str, ...]:
    """What a reader of the verdict has to know where the library was left out."""
    if portable == INLINE:
        return (
            "The operator's body is inlined: the file runs by its own nodes, and no native kernel takes their place.",
        )
    unused = library_unused([PROVIDERS[provider]])
    return (f"{unused} The file was run by its function body alone.",) if unused else ()


def _ways(provider: str, portable: str) -> tuple[str, ...]:
    return ("function",) if library_notes(provider, portable) else ("function", "library")
