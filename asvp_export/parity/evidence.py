"""What can be looked at beside the numbers: pictures of the worst inputs, feature maps and their singular values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from asvp_export.insertion.feature_maps import FeatureMapMeter, FeatureMaps
from asvp_export.insertion.protected import Protected, observed
from asvp_export.insertion.spectrum import SingularValues, SpectrumMeter
from asvp_export.operator import native
from asvp_export.parity.cases import Case
from asvp_export.parity.expected import Expected, torch_outputs
from asvp_export.parity.metrics import peak_of
from asvp_export.parity.verify import GateResult, ImageScore, compared
from asvp_export.runtime.session import run_model, session
from asvp_export.signature import ValueRange

MOST_PICTURES = 6
MOST_SIDE = 512  # pixels; a larger output is shown where it differs most


@dataclass(frozen=True, eq=False)
class VisualSample:
    """One picture of the original and of the protected file, both as they came out."""

    score: ImageScore
    """How the whole input came out."""

    original: np.ndarray
    """[C, H, W] of the original's output, at most 512 pixels a side, in 0..1 for black to white."""

    protected: np.ndarray
    """The same pixels of the file's output in onnxruntime."""

    peak: float
    """Of the whole output's PSNR and SSIM, in the same units."""

    output_size: tuple[int, int]
    """Height and width of the output that the pixels were cut from."""

    corner: tuple[int, int]
    """The row and the column at which they were cut."""

    part: str = ""
    """Which part of the output this is, where it has several: "image 2 of 2", "frame 1 of 5"."""


@dataclass(frozen=True)
class Evidence:
    """What a report page shows of a run."""

    samples: tuple[VisualSample, ...]
    """At most six different pictures, the worst preserved first."""

    singular_values: dict[str, SingularValues]
    """By layer, in PyTorch, on the input of the first visual sample."""

    singular_values_of: str
    """That input's name."""

    feature_maps: Mapping[str, FeatureMaps | None] = field(default_factory=dict)
    """By layer, at most 24, on the same input; None where a map does not lie on a grid of height and width."""


def gather(
    path: Path,
    protected: Protected,
    cases: Sequence[Case],
    expected: Expected,
    preservation: GateResult,
    provider: str,
) -> Evidence:
    """Run a verified file once more on the inputs that it preserves worst, and keep what is seen.

    Memory holds one input's outputs beyond what is returned.

    Args:
        path: the file that was verified.
        protected: what it was made from.
        cases: the inputs.
        expected: their outputs.
        preservation: the verdict on them.
        provider: of onnxruntime, "cpu" or "cuda".

    Raises:
        InputError, MachineError: as for `session` and `run_model`.
    """
    signature = protected.teacher.signature
    main = signature.floats.index(signature.main)
    worst = _worst(cases, preservation, expected.names[main])
    samples = tuple(_visual_samples(path, worst, cases, expected, main, protected.teacher.data_range, provider))
    shown = cases[worst[0][0]]
    height, width = shown.input.shape[-2:]
    spectra = SpectrumMeter(protected.nodes)
    maps = FeatureMapMeter(protected.nodes, (height, width), len(shown.input))

    def meters(layer: str, *tensors: torch.Tensor) -> None:
        spectra(layer, *tensors)
        maps(layer, *tensors)

    if protected.nodes:
        with observed(protected, meters), native.reference_only():
            list(torch_outputs(protected.module, [shown], protected.teacher.device))
    return Evidence(samples, spectra.by_layer, f"{shown.name}, {shown.size}", maps.by_layer)


def _worst(cases: Sequence[Case], preservation: GateResult, output: str) -> list[tuple[int, ImageScore]]:
    """Which cases to show, worst first and each picture once; batches only where there is nothing else."""
    scores = [score for score in preservation.per_image if score.output == output]
    numbered = [(i % len(cases), score) for i, score in enumerate(scores)]  # path after path, each in the cases' order
    single = [entry for entry in numbered if entry[1].batch == 1] or numbered
    ranked = sorted(single, key=lambda entry: entry[1].psnr if math.isfinite(entry[1].psnr) else -math.inf)
    chosen = {score.name: (index, score) for index, score in reversed(ranked)}
    return sorted(chosen.values(), key=ranked.index)[:MOST_PICTURES]


def _visual_samples(
    path: Path,
    worst: Sequence[tuple[int, ImageScore]],
    cases: Sequence[Case],
    expected: Expected,
    main: int,
    values: ValueRange,
    provider: str,
) -> Iterator[VisualSample]:
    execution_paths = {score.execution_path for _, score in worst}
    opened = {name: session(path, provider, library=name == "library") for name in execution_paths}
    for index, score in worst:
        original = expected.original[index][main]
        if original.ndim >= 4:
            tested = cases[index].pictures(run_model(opened[score.execution_path], *cases[index].inputs))[main]
            yield _visual_sample(cases[index], score, original, tested, values)


def _visual_sample(
    case: Case, score: ImageScore, original: np.ndarray, output: np.ndarray, values: ValueRange
) -> VisualSample:
    frames = original.shape[1] if original.ndim == 5 else 1
    expected, tested = compared(case, original, output)
    differences = [np.abs(a - b) for a, b in zip(expected[::frames], tested[::frames], strict=True)]
    sample = int(np.argmax([_size(difference) for difference in differences]))
    pieces = [f"image {sample + 1} of {case.batch}"] if case.batch > 1 else []
    pieces += [f"frame 1 of {frames}"] if frames > 1 else []
    top, left = _window(differences[sample])
    cut = (slice(None), slice(top, top + MOST_SIDE), slice(left, left + MOST_SIDE))
    return VisualSample(
        score,
        values.to_unit(expected[sample * frames][cut]),
        values.to_unit(tested[sample * frames][cut]),
        peak_of(expected, values.peak) / values.peak,
        expected.shape[2:],
        (top, left),
        ", ".join(pieces),
    )


def _size(difference: np.ndarray) -> float:
    mean = float(np.mean(difference, dtype=np.float64))
    return mean if math.isfinite(mean) else math.inf


def _window(difference: np.ndarray) -> tuple[int, int]:
    """Where the 512 x 512 pixels with the largest mean square difference begin; [C, H, W] in."""
    square = np.square(np.nan_to_num(difference.astype(np.float64), posinf=0.0)).sum(axis=0)
    total = np.pad(square.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = (min(MOST_SIDE, side) for side in square.shape)
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(top), int(left)
