"""The verdict: from pairs of outputs to a gate that passes or fails."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal

import numpy as np

from asvp_export.errors import InputError
from asvp_export.parity.cases import Case
from asvp_export.parity.metrics import IDENTICAL_DB, as_images, peak_of, psnr, ssim
from asvp_export.signature import ValueRange, shape_text

# How |difference| / peak is counted: decades between 1e-8 and 1, and what lies beside them.
_DECADES = range(-8, 1)
_LABELS = ("exactly 0", "under 1e-8", *(f"1e{d} to 1e{d + 1}" for d in _DECADES[:-1]), "over 1", "not finite")


@dataclass(frozen=True)
class ImageScore:
    """How one input came out."""

    name: str
    """File name of the image, or of the images of a batch."""

    size: str
    """Size of the input without padding, "HxW"."""

    batch: int
    """How many images the input held."""

    psnr: float
    """dB of the worst sample, at most 200 (identical); NaN when an output was not finite."""

    ssim: float
    """Mean over the samples, at most 1; NaN when an output was not finite, or is no image."""

    execution_path: str = "function"
    """What ran the nodes: the "function" body in the file, or the "library"."""

    output: str = "output"
    """Name of the output."""

    def as_dict(self) -> dict[str, str | int | float | None]:
        """The score for a report: rounded down, NaN as None."""
        return {
            "name": self.name,
            "size": self.size,
            "batch": self.batch,
            "way": self.execution_path,  # the key that readers of reports know
            "output": self.output,
            "psnr": _rounded_down(self.psnr, "0.01"),
            "ssim": _rounded_down(self.ssim, "0.00001"),
        }


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What the worst output of each gate has to reach."""

    fidelity: float
    """DB against the protected model in PyTorch."""

    preservation: float
    """DB against the original."""


@dataclass(frozen=True)
class GateResult:
    """The verdict of one gate over all its inputs."""

    min_psnr: float
    """dB of the worst input; NaN when an output was not finite."""

    mean_psnr: float
    """Mean of the inputs' dB; NaN when an output was not finite."""

    min_ssim: float
    """SSIM of the worst input; NaN when an output was not finite."""

    threshold: float
    """dB that every input had to reach."""

    passed: bool
    """Whether every input reached the threshold."""

    per_image: tuple[ImageScore, ...]
    """The scores, in the order of the inputs."""

    decades: tuple[int, ...] = ()
    """How many output values differ by how much, for `failure_text`: |difference| / peak by decade."""

    def as_dict(self) -> dict[str, object]:
        """The verdict for a report: dB to 0.01, SSIM to 0.00001, both rounded down, NaN as None."""
        return {
            "min_psnr": _rounded_down(self.min_psnr, "0.01"),
            "mean_psnr": _rounded_down(self.mean_psnr, "0.01"),
            "min_ssim": _rounded_down(self.min_ssim, "0.00001"),
            "threshold": self.threshold,
            "passed": self.passed,
            "per_image": [image.as_dict() for image in self.per_image],
        }


def check_threshold(decibels: float) -> None:
    """Refuse a threshold that is no number or that nothing reaches.

    Raises:
        InputError: says what was asked for and what can be.
    """
    if not (math.isfinite(decibels) and decibels <= IDENTICAL_DB):
        raise InputError(
            f"The minimum PSNR asked for is {decibels!r} dB; at most {IDENTICAL_DB:g} dB was expected, which is what "
            "identical images score."
        )


def score(
    pairs: Iterable[tuple[Case, Sequence[np.ndarray], Sequence[np.ndarray]]],
    threshold: float,
    data_range: ValueRange,
    names: Sequence[str] = ("output",),
) -> GateResult:
    """Compare outputs with what was expected of them.

    The peak of a pair is the larger of the data range and the expected output's own range. Pairs are consumed
    one by one.

    Args:
        pairs: each case with the expected and the tested outputs, as many as there are names.
        threshold: dB that every output of every case has to reach.
        data_range: the model's values for black and white.
        names: of the outputs.

    Raises:
        InputError: there is nothing to compare, or the shapes do not agree.
    """
    scores, decades = [], np.zeros(len(_LABELS), dtype=np.int64)
    for case, expected_outputs, tested_outputs in pairs:
        if len(expected_outputs) != len(tested_outputs):
            raise InputError(
                f"The tested model gives {len(tested_outputs)} floating outputs, the original "
                f"{len(expected_outputs)}: these are not the same model."
            )
        for name, expected, tested in zip(names, expected_outputs, tested_outputs, strict=True):
            is_image = expected.ndim >= 4
            expected, tested = compared(case, expected, tested)
            peak = peak_of(expected, data_range.peak)
            similar = ssim(expected, tested, peak) if is_image else math.nan
            scores.append(
                ImageScore(case.name, case.size, case.batch, psnr(expected, tested, peak), similar, output=name)
            )
            decades += _decades(expected, tested, peak)
    if not scores:
        raise InputError("There is nothing to compare: no image was given.")
    decibels = [image.psnr for image in scores]
    return GateResult(
        min_psnr=float(np.min(decibels)),
        mean_psnr=float(np.mean(decibels)),
        min_ssim=_least_ssim(scores),
        threshold=threshold,
        passed=all(math.isfinite(value) and value >= threshold for value in decibels),
        per_image=tuple(scores),
        decades=tuple(decades.tolist()),
    )


def _least_ssim(scores: Sequence[ImageScore]) -> float:
    """Of the outputs that are images; NaN where there is none, or an output was not finite."""
    of_images = [image.ssim for image in scores if not (math.isnan(image.ssim) and math.isfinite(image.psnr))]
    return float(np.min(of_images)) if of_images else math.nan


def worse(by_path: Mapping[str, GateResult]) -> GateResult:
    """One verdict from those of several execution paths of a file: the worst input of all counts, every score stays.

    Args:
        by_path: what ran the nodes ("function", "library") to the verdict; all with the same threshold and as many
            inputs.
    """
    results = tuple(by_path.values())
    return GateResult(
        min_psnr=float(np.min([result.min_psnr for result in results])),
        mean_psnr=float(np.mean([result.mean_psnr for result in results])),
        min_ssim=_least_ssim([score for result in results for score in result.per_image]),
        threshold=results[0].threshold,
        passed=all(result.passed for result in results),
        per_image=tuple(
            replace(score, execution_path=path) for path, result in by_path.items() for score in result.per_image
        ),
        decades=tuple(np.sum([result.decades for result in results], axis=0).tolist()),
    )


def least_psnr(
    cases: Sequence[Case],
    expected_outputs: Iterable[Sequence[np.ndarray]],
    tested_outputs: Iterable[Sequence[np.ndarray]],
    data_peak: float,
) -> float:
    """DB of the worst of all outputs of all cases; -inf where one is not finite."""
    decibels = []
    for case, originals, outputs in zip(cases, expected_outputs, tested_outputs, strict=True):
        for original, output in zip(originals, outputs, strict=True):
            expected, tested = compared(case, original, output)
            decibels.append(psnr(expected, tested, peak_of(expected, data_peak)))
    return -math.inf if any(map(math.isnan, decibels)) else min(decibels)


def compared(case: Case, expected: np.ndarray, tested: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both outputs as N, C, H, W without what the padding became."""
    if tested.shape != expected.shape:
        raise InputError(
            f"The tested model gives {_shape(tested)} for {case.name}, the original {_shape(expected)}: "
            "these are not the same model."
        )
    if expected.size == 0:
        raise InputError(
            f"The original gives an empty output, {_shape(expected)}, for {case.name}, so there is nothing to compare."
        )
    is_image = expected.ndim >= 4
    expected, tested = as_images(expected), as_images(tested)
    if not is_image:
        return expected, tested
    inner = (case.height, case.width)
    rows, columns = (
        slice(max(1, side * part // padded))
        for side, part, padded in zip(expected.shape[2:], inner, case.input.shape[-2:], strict=True)
    )
    return expected[:, :, rows, columns], tested[:, :, rows, columns]


def _shape(array: np.ndarray) -> str:
    return shape_text(array.shape) or "a single number"


def _decades(expected: np.ndarray, tested: np.ndarray, peak: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # inf - inf
        relative = np.abs(tested.astype(np.float64) - expected.astype(np.float64)).ravel() / peak
    finite = relative[np.isfinite(relative)]
    zero = np.count_nonzero(finite == 0)
    edges = [-np.inf, *(10.0**decade for decade in _DECADES), np.inf]
    counts, _ = np.histogram(finite[finite > 0], bins=edges)
    return np.array([zero, *counts, relative.size - finite.size], dtype=np.int64)


def failure_text(gate: str, result: GateResult, most: int = 8) -> str:
    """Why a gate failed, for people: a sentence, the inputs worst first, the distribution of the differences.

    Args:
        gate: "fidelity" or "preservation".
        result: its verdict.
        most: how many inputs to list.
    """
    failed = [image for image in result.per_image if not image.psnr >= result.threshold]
    if not failed:
        return f"{gate}: all {len(result.per_image)} comparisons reach {result.threshold:g} dB."
    ranked = sorted(failed, key=lambda image: -math.inf if math.isnan(image.psnr) else image.psnr)
    count = f"{len(failed)} of {len(result.per_image)} comparisons"
    lines = [f"{gate}: {count} do not reach {result.threshold:g} dB, the worst is at {_decibels(ranked[0])}."]
    lines += [
        f"  {_decibels(image):>14} {image.name} {image.size}, batch {image.batch}, {image.output}, "
        f"{image.execution_path}"
        for image in ranked[:most]
    ]
    if len(ranked) > most:
        lines.append(f"  and {len(ranked) - most} more")
    total = sum(result.decades)
    if total:
        lines.append("  |difference| / peak, share of all output values:")
        lines += [
            f"  {label:>14} {count / total:7.2%} {'#' * math.ceil(40 * count / total)}"
            for label, count in zip(_LABELS, result.decades, strict=True)
            if count
        ]
    return "\n".join(lines)


def _decibels(image: ImageScore) -> str:
    value = _rounded_down(image.psnr, "0.01")
    return "NaN" if value is None else f"{value:.2f} dB"


def _rounded_down(value: float, step: str) -> float | None:
    """Rounded so that a report never overstates; None for what JSON cannot hold."""
    if not math.isfinite(value):
        return None
    return float(Decimal(repr(float(value))).quantize(Decimal(step), ROUND_FLOOR))
