"""How far two batches of images are apart: PSNR and SSIM."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

IDENTICAL_DB = 200.0
"""What identical images score, and the most that any do: JSON knows no infinity."""

_SIGMA, _RADIUS = 1.5, 5  # the 11 x 11 Gaussian window of Wang et al. 2004


def psnr(expected: np.ndarray, tested: np.ndarray, peak: float) -> float:
    """Peak signal-to-noise ratio, 10 log10(peak^2 / mse), of the worst sample, in float64.

    Args:
        expected: N, C, H, W.
        tested: the same shape.
        peak: the range of the values.

    Returns:
        dB, at most 200.0 (identical); NaN where a value is NaN or infinite.
    """
    _check(expected, tested)
    if not (np.isfinite(expected).all() and np.isfinite(tested).all()):
        return float("nan")
    worst = max(_mean_square(a, b) for a, b in zip(expected, tested, strict=True))
    if worst == 0:
        return IDENTICAL_DB
    return min(IDENTICAL_DB, float(20 * np.log10(peak) - 10 * np.log10(worst)))


def _mean_square(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))


def ssim(expected: np.ndarray, tested: np.ndarray, peak: float) -> float:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004), mean over samples and channels.

    Computed in float64. The window is their Gaussian, sigma 1.5, 11 x 11; images with a side under 11 get the
    Gaussian that fits, cut at the same 3.5 sigma.

    Args:
        expected: N, C, H, W.
        tested: the same shape.
        peak: the range of the values.

    Returns:
        At most 1.0 (identical); NaN where a value is NaN or infinite.
    """
    _check(expected, tested)
    if not (np.isfinite(expected).all() and np.isfinite(tested).all()):
        return float("nan")
    return float(np.mean([_similarity(a, b, peak) for a, b in zip(expected, tested, strict=True)]))


def ssim_map(expected: np.ndarray, tested: np.ndarray, peak: float) -> np.ndarray:
    """SSIM at each pixel, as in `ssim`, mean over channels.

    Args:
        expected: C, H, W, finite.
        tested: the same shape, finite.
        peak: the range of the values.

    Returns:
        [H, W] float64, at most 1.0.
    """
    return _similarity(expected, tested, peak, full=True)[1].mean(axis=0)


def _similarity(a: np.ndarray, b: np.ndarray, peak: float, full: bool = False) -> Any:
    """SSIM of one image, C, H, W; with `full`, the pair of it and [C, H, W]."""
    radius = min(_RADIUS, (min(a.shape[1:]) - 1) // 2)
    return structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        channel_axis=0,
        data_range=peak,
        gaussian_weights=True,
        sigma=_SIGMA if radius == _RADIUS else radius / 3.5,
        use_sample_covariance=False,
        full=full,
    )


def as_images(output: np.ndarray) -> np.ndarray:
    """An output of any rank as N, C, H, W: a video's frames count as images, what is no image becomes rows."""
    if output.ndim == 5:
        return output.reshape(-1, *output.shape[2:])
    return output if output.ndim == 4 else output.reshape(output.shape[0] if output.ndim > 1 else 1, 1, 1, -1)


def peak_of(expected: np.ndarray, data_range: float) -> float:
    """The larger of the data range and the range of the expected values themselves."""
    finite = expected[np.isfinite(expected)].astype(np.float64)
    return max(data_range, float(np.ptp(finite))) if finite.size else data_range


def _check(expected: np.ndarray, tested: np.ndarray) -> None:
    if expected.ndim != 4 or expected.shape != tested.shape or not expected.size:
        raise ValueError(f"two N, C, H, W arrays of one shape were expected, found {expected.shape} and {tested.shape}")
