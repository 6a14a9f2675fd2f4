"""The five degradations that the example teachers undo, and that an audit makes an attacker's pictures with.

All work on display-referred values in 0..1 (no linearisation) and end by rounding to 8 bit, as in a file.
The same seed and file name give the same picture.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from scipy.ndimage import zoom
from scipy.signal import fftconvolve
from torch.nn import functional as F


def bicubic(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize H,W,3 as Pillow's BICUBIC does (a = -0.5, widened to antialias when shrinking), not clipped."""
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    y = F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True, align_corners=False)
    return y[0].permute(1, 2, 0).numpy()


def smooth_field(height: int, width: int, rng: np.random.Generator, cells: int = 3) -> np.ndarray:
    """A smooth random field (H,W) spanning 0..1: a cells x cells random grid, enlarged by cubic splines."""
    grid = rng.random((cells, cells))
    field = np.asarray(zoom(grid, (height / cells, width / cells), order=3, mode="nearest", grid_mode=True))
    return (field - field.min()) / (field.max() - field.min() + 1e-12)


def depth(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth depth (H,W) in 0..1: half a random field, half ground that recedes to the top."""
    slope = np.linspace(1.0, 0.0, height)[:, None]
    return 0.5 * smooth_field(height, width, rng) + 0.5 * slope


def sr_x2(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bicubic down-sampling by 2 with antialiasing; odd sizes lose their last row or column first."""
    del rng  # the same for every seed
    height, width = clean.shape[0] // 2 * 2, clean.shape[1] // 2 * 2
    return bicubic(clean[:height, :width], 0.5)


def lowlight(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Under-exposure e * J^gamma, gamma 1.8..2.6, e 0.5..0.9, then shot noise and read noise.

    The shot noise is Poisson, 400..1200 photons at white; the read noise Gaussian, sigma 0.004..0.012.
    """
    dark = rng.uniform(0.5, 0.9) * clean ** rng.uniform(1.8, 2.6)
    photons = rng.uniform(400, 1200)
    return rng.poisson(dark * photons) / photons + rng.normal(0.0, rng.uniform(0.004, 0.012), clean.shape)


def underwater(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """I_c = J_c exp(-b_c z) + B_c (1 - exp(-b_c z)): attenuation and back-scatter over z = 0.5..3 m.

    b (per metre) is 0.45..0.8 for red, 0.12..0.3 for green, 0.08..0.2 for blue; the water's colour B is
    0.05..0.2, 0.35..0.6, 0.45..0.7; sensor noise of sigma 0.005 is added.
    """
    attenuation = rng.uniform((0.45, 0.12, 0.08), (0.8, 0.3, 0.2))
    water = rng.uniform((0.05, 0.35, 0.45), (0.2, 0.6, 0.7))
    metres = 0.5 + 2.5 * depth(clean.shape[0], clean.shape[1], rng)[..., None]
    transmission = np.exp(-attenuation * metres)
    return clean * transmission + water * (1.0 - transmission) + rng.normal(0.0, 0.005, clean.shape)


def dehaze(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Atmospheric scattering I = J t + A (1 - t), t = exp(-b z), z = 0.3..1, b 0.8..2, airlight A 0.75..0.95.

    The airlight is grey within 0.02 a channel; sensor noise of sigma 0.005 is added.
    """
    airlight = rng.uniform(0.75, 0.95) + rng.uniform(-0.02, 0.02, 3)
    distance = 0.3 + 0.7 * depth(clean.shape[0], clean.shape[1], rng)[..., None]
    transmission = np.exp(-rng.uniform(0.8, 2.0) * distance)
    return clean * transmission + airlight * (1.0 - transmission) + rng.normal(0.0, 0.005, clean.shape)


def streak(length: float, width: float, angle: float) -> np.ndarray:
    """The image of one drop: a line of Gaussian cross-section, `angle` radians from vertical, peak 1."""
    radius = int(np.ceil(length / 2 + 2 * width))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    return np.exp(-0.5 * (across / width) ** 2) / (1.0 + np.exp(2.0 * (np.abs(along) - length / 2)))


def derain(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """I = J + S (0.9 - J), S in 0..0.8: three layers of bright streaks within 30 degrees of vertical.

    Each layer has its own length (10..40 pixels), width (sigma 0.5..1.1), strength (0.3..0.7) and density.
    """
    wind = rng.uniform(-np.pi / 6, np.pi / 6)
    rain = np.zeros(clean.shape[:2])
    for _ in range(3):
        kernel = streak(rng.uniform(10, 40), rng.uniform(0.5, 1.1), wind + rng.normal(0.0, 0.04))
        drops = rng.random(clean.shape[:2]) < rng.uniform(0.0006, 0.002)
        drops = drops * rng.uniform(0.4, 1.0, clean.shape[:2])
        rain += rng.uniform(0.3, 0.7) * fftconvolve(drops, kernel, mode="same")
    rain = np.clip(rain, 0.0, 0.8)[..., None]
    return clean + rain * (0.9 - clean)


DEGRADATIONS = {
    "sr_x2": sr_x2,
    "lowlight": lowlight,
    "underwater": underwater,
    "dehaze": dehaze,
    "derain": derain,
}


def degrade(task: str, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Degrade one clean picture.

    Args:
        task: a key of DEGRADATIONS.
        clean: H,W,3 float32 in 0..1.
        rng: the source of every random choice.

    Returns:
        The teacher's input, float32 in 0..1 in steps of 1/255: H,W,3, for sr_x2 H/2,W/2,3.
    """
    degraded = DEGRADATIONS[task](clean, rng)
    return (np.round(np.clip(degraded, 0.0, 1.0) * 255.0) / 255.0).astype(np.float32)


def generator(task: str, name: str, seed: int = 0) -> np.random.Generator:
    """The generator for one named picture: the order and number of the others do not matter."""
    return np.random.default_rng([seed, zlib.crc32(f"{task}/{name}".encode())])
