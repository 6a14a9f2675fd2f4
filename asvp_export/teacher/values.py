"""In which values a model works: 0..1, -1..1 or 0..255, where running it shows."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch.nn import functional

from asvp_export.assumptions import Assumption
from asvp_export.signature import Signature, ValueRange
from asvp_export.teacher.model import natural_inputs

_UNIT, _SIGNED, _WIDE = ValueRange(0.0, 1.0), ValueRange(-1.0, 1.0), ValueRange(0.0, 255.0)

_Concluded = tuple[ValueRange, tuple[Assumption, ...]]


class Runner(Protocol):
    """A model that can be run on image batches."""

    device: str
    """Where it takes them."""

    @property
    def signature(self) -> Signature:
        """What it takes."""
        ...

    def main_output(self, image: torch.Tensor) -> torch.Tensor | None:
        """Its restored image, channels first; None where it raises."""
        ...


def detected_range(run: Runner, height: int, width: int) -> _Concluded:
    """The range in which a model works, where it shows; 0..1 otherwise.

    A model whose outputs never leave a range, whatever goes in, works in that range. Else it works in 0..255 where its
    biases do harm in 0..1 and none there: the output does not follow a picture at all, or is the picture plus one
    constant, or a flat picture comes out with a pattern. Else it works in 0..1, which is certain where flat pictures or
    photographs come out better than in 0..255.

    Args:
        run: the model.
        height: a height that it takes.
        width: a width that it takes.

    Returns:
        The range, and what was concluded from what.
    """
    if bounded := _bound(run, height, width):
        return _concluded(bounded, "the output stays in this range for any input", True)
    (wide, _), (far, centred) = (_distances(run, height, width, values) for values in (_WIDE, _UNIT))
    wide_ripple, ripple = (_ripple(run, height, width, values) for values in (_WIDE, _UNIT))
    if wide < 0.25 and far > max(4 * wide, 0.5):
        return _concluded(_WIDE, "the output follows the picture in this range, and not in 0..1", False)
    if wide < 0.1 and far > max(3 * wide, 0.15) and centred < far / 2:
        return _concluded(
            _WIDE, "the output follows the picture in this range, and in 0..1 is the picture plus a constant", False
        )
    if wide < 0.25 and wide < far and ripple > max(20 * wide_ripple, 0.015):
        return _concluded(_WIDE, "a flat picture stays flat in this range, and gets a pattern in 0..1", False)
    if far < 0.25 and far < 1.25 * wide:
        return _concluded(_UNIT, "the output follows the picture in this range", True)
    if ripple < 0.01 and wide_ripple > 3 * ripple:
        return _concluded(_UNIT, "a flat picture stays flat in this range, and less so in 0..255", True)
    return _concluded(_UNIT, "it is the usual range, and no test of the model points to another", False)


def _concluded(values: ValueRange, because: str, certain: bool) -> _Concluded:
    return values, (Assumption("value range", str(values), because, certain, "--data-range LOW..HIGH"),)


def _bound(run: Runner, height: int, width: int) -> ValueRange | None:
    """The range that the output keeps to when loud noise goes in."""
    noise = torch.randn(run.signature.image_shape(1, height, width), generator=torch.Generator().manual_seed(0))
    loud = run.main_output((1e4 * noise).to(run.device))
    if loud is None or not torch.isfinite(loud).all():
        return None
    low, high = float(loud.min()), float(loud.max())
    if -1.001 < low < -0.5 and 0.5 < high < 1.001:
        return _SIGNED
    if -0.001 < low < 50 and 200 < high < 255.001:
        return _WIDE
    return _UNIT if low > -0.001 and high < 1.001 else None


def _distances(run: Runner, height: int, width: int, values: ValueRange) -> tuple[float, float]:
    """How far the output is from the image, resized, in units of the image's contrast; and without each channel's mean.

    Infinite where the output is another thing.
    """
    nothing = float("inf"), float("inf")
    image = natural_inputs(run.signature, 1, height, width, values).to(run.device)
    output = run.main_output(image)
    if output is None or output.ndim != 4 or image.ndim != 4 or output.shape[1] not in (1, image.shape[1]):
        return nothing
    resized = functional.interpolate(image, size=output.shape[-2:], mode="bilinear", align_corners=False)
    resized = resized if output.shape[1] == resized.shape[1] else resized.mean(1, keepdim=True)
    difference, contrast = output.float() - resized, (resized - resized.mean()).norm()
    centred = difference - difference.mean((2, 3), keepdim=True)
    distances = float(difference.norm() / contrast), float(centred.norm() / contrast)
    return distances if all(map(math.isfinite, distances)) else nothing


def _ripple(run: Runner, height: int, width: int, values: ValueRange) -> float:
    """Root mean square of what comes out of a grey picture beside its mean, away from the rim, as a share of the range.

    Infinite where nothing finite comes.
    """
    grey = torch.full(run.signature.image_shape(1, height, width), values.low + values.peak / 2)
    output = run.main_output(grey.to(run.device))
    if output is None or not torch.isfinite(output).all():
        return float("inf")
    rows, columns = (slice(side // 4, -(side // 4) or None) for side in output.shape[-2:])
    middle = output[..., rows, columns].float()
    return float((middle - middle.mean((-2, -1), keepdim=True)).square().mean().sqrt()) / values.peak
