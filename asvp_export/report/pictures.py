"""What a report page shows of a visual sample: pictures as data URIs, and the radial power spectrum."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from asvp_export.parity.metrics import ssim_map

if TYPE_CHECKING:
    from asvp_export.parity.evidence import VisualSample

_SIDES = (512, 448, 384, 320, 256, 192, 128)
_FACTORS = (*(digit * 10**power for power in range(3) for digit in (1, 2, 5)), 1000)
_SPANS = tuple(digit / 10**power for power in range(7, 0, -1) for digit in (1, 2, 5))
_UNCLIPPED = 99.0  # per cent of the values that a factor or a span does not clip

# matplotlib's magma at 0, 1/4, 1/2, 3/4 and 1: lighter at every step, so that it survives a grey print.
_MAGMA = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)], np.float64)
_NOT_FINITE = (255, 0, 255)


@dataclass(frozen=True)
class Picture:
    """A picture inside a page."""

    data: str
    """A data URI, WebP without loss."""

    width: int
    """In pixels."""

    height: int
    """In pixels."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is seen of one visual sample, all of the same pixels."""

    original: Picture
    """The original's output."""

    protected: Picture
    """The file's output."""

    difference: Picture
    """|difference| times the factor."""

    factor: int
    """1, 2, 5, 10, ..., 1000: the largest that leaves 99 % of the values unclipped."""

    similarity: Picture | None
    """1 - SSIM, black at 0; None where a value is not finite."""

    least_ssim: float
    """The SSIM, and less, that is drawn brightest."""

    offset: tuple[int, int]
    """The row and the column of the whole output at which the pixels begin."""

    not_finite: int
    """How many values of the file's output are NaN or infinite; drawn in magenta."""


def draw(sample: VisualSample, most_bytes: int) -> Pictures:
    """Encode a visual sample, cut smaller around its largest differences until it fits.

    Args:
        sample: the outputs.
        most_bytes: of all its pictures together, before base64; 128 x 128 pixels are drawn however large they come out.
    """
    side = _SIDES[0]
    while True:
        top, left = _largest(sample, side)
        cut = (slice(None), slice(top, top + side), slice(left, left + side))
        offset = (sample.corner[0] + top, sample.corner[1] + left)
        drawn = _draw(sample.original[cut], sample.protected[cut], sample.peak, offset)
        pictures = (drawn.original, drawn.protected, drawn.difference, drawn.similarity)
        size = sum(len(picture.data) for picture in pictures if picture) * 3 / 4
        if size <= most_bytes or side == _SIDES[-1]:
            return drawn
        fitting_side = max(drawn.original.width, drawn.original.height) * math.sqrt(most_bytes / size)
        side = next((smaller for smaller in _SIDES if smaller < side and smaller <= fitting_side), _SIDES[-1])


def _largest(sample: VisualSample, side: int) -> tuple[int, int]:
    """Where the cut begins that has the largest difference in its middle, as far as the borders let it."""
    difference = np.nan_to_num(np.abs(sample.protected - sample.original).sum(axis=0), posinf=0.0)
    row, column = np.unravel_index(int(np.argmax(difference)), difference.shape)
    height, width = difference.shape
    top, left = (
        min(max(0, int(at) - side // 2), max(0, length - side)) for at, length in ((row, height), (column, width))
    )
    return top, left


def _draw(original: np.ndarray, protected: np.ndarray, peak: float, offset: tuple[int, int]) -> Pictures:
    finite = bool(np.isfinite(original).all() and np.isfinite(protected).all())
    shown = [visible(output) for output in (original, protected)]
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = np.abs(shown[1].astype(np.float64) - shown[0])
    factor = factor_for(difference)
    similarity, span = None, 1.0
    if finite:
        unlike = np.maximum(0.0, 1 - ssim_map(original, protected, peak))
        span = next((step for step in _SPANS if np.percentile(unlike, _UNCLIPPED) <= step), 1.0)
        similarity = encoded(_magma(unlike / span))
    return Pictures(
        encoded(pixel_bytes(shown[0])),
        encoded(pixel_bytes(shown[1])),
        encoded(pixel_bytes(difference * factor)),
        factor,
        similarity,
        1 - span,
        offset,
        int(np.count_nonzero(~np.isfinite(protected))),
    )


def visible(output: np.ndarray) -> np.ndarray:
    """The channels of an output that a picture shows, [1 or 3, H, W]: the first three, or the first."""
    return output[:3] if output.shape[0] >= 3 else output[:1]


def factor_for(difference: np.ndarray) -> int:
    """By how much to multiply differences so that they can be seen: 99 % of them stay within white."""
    finite = difference[np.isfinite(difference)]
    largest = float(np.percentile(finite, _UNCLIPPED)) if finite.size else 0.0
    return max((factor for factor in _FACTORS if factor * largest <= 1), default=1)


def radial_power(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The power of an image by spatial frequency, all directions together.

    The mean is taken out and a Hann window laid on, so that the borders do not pass for high frequencies; the powers
    of white noise are then all alike, its variance.

    Args:
        image: [C, H, W], finite.

    Returns:
        Frequencies in cycles per pixel, up to 0.5, and the mean power at each, over channels; float64. Empty for an
        image with a side under 8 pixels.
    """
    height, width = image.shape[1:]
    if min(height, width) < 8:
        return np.zeros(0), np.zeros(0)
    window = np.hanning(height)[:, None] * np.hanning(width)
    values = image.astype(np.float64)
    values = (values - values.mean(axis=(1, 2), keepdims=True)) * window
    power = np.square(np.abs(np.fft.fft2(values))).mean(axis=0) / np.square(window).sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    count = min(64, min(height, width) // 2)
    bins = np.minimum((radius * 2 * count).astype(int), count)  # the corners, over 0.5, in a bin of their own
    sums, sizes = (np.bincount(bins.ravel(), weights, count + 1)[1:count] for weights in (power.ravel(), None))
    middles = (np.arange(1, count) + 0.5) / (2 * count)  # without the first, which the mean was taken out of
    full = sizes > 0
    return middles[full], sums[full] / sizes[full]


def pixel_bytes(shown: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 of values in 0..1, [1 or 3, H, W]; magenta where one is not finite."""
    finite = np.isfinite(shown).all(axis=0)
    pixels = np.rint(np.clip(np.nan_to_num(shown), 0, 1) * 255).astype(np.uint8)
    pixels = np.array(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0), order="C")
    pixels[~finite] = _NOT_FINITE
    return pixels


def _magma(shares: np.ndarray) -> np.ndarray:
    at = np.clip(shares, 0, 1) * (len(_MAGMA) - 1)
    channels: Sequence[np.ndarray] = [np.interp(at, range(len(_MAGMA)), _MAGMA[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def encoded(pixels: np.ndarray) -> Picture:
    """Bytes, [H, W] or [H, W, 3], for a page."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, quality=50, method=2)
    return Picture(
        f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}", pixels.shape[1], pixels.shape[0]
    )
