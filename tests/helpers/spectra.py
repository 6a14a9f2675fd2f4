"""Matrices of known spectra, and a hypothesis strategy over them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

GAINS = st.sampled_from([0.25, 1.5, 3.0, 10.0])
ENERGIES = st.sampled_from([1.0, 1.0, 0.5, 0.9, 0.999])
SPECTRA = ("flat", "decaying", "steep", "clustered", "deficient", "repeated", "zero", "noise", "image")


def singular_values(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "flat":
        return np.linspace(1.0, 0.98, count)
    if kind == "decaying":
        return 0.7 ** np.arange(count)
    if kind == "steep":
        return 10.0 ** -np.arange(count)
    if kind == "clustered":
        return np.sort(np.where(np.arange(count) < count // 2, 1.0, 0.1) * (1 + 1e-4 * rng.random(count)))[::-1]
    if kind == "deficient":
        return np.where(np.arange(count) < max(1, count // 3), 1.0 + rng.random(count), 0.0)
    if kind == "repeated":
        return np.where(np.arange(count) < (count + 1) // 2, 2.0, 1.0)
    if kind == "near":  # any mixture of gaps: equal, about the 1e-2 of the criterion, decades
        steps = rng.choice(
            [1.0, 1 - 1e-6, 1 - 9e-3, 1 - 1.1e-2, 0.9, 0.1, 1e-3], count, p=[0.15, 0.1, 0.2, 0.3, 0.15, 0.07, 0.03]
        )
        return np.cumprod(steps)
    return np.zeros(count)


def matrix(kind: str, c: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """C x L, float64, with the named spectrum in descending order."""
    if kind == "noise":
        return rng.standard_normal((c, length))
    if kind == "image":  # as behind a ReLU: positive, the first component nearly all
        return np.maximum(rng.standard_normal((c, length)) * 0.2 + rng.random((c, 1)), 0)
    count = min(c, length)
    left = np.linalg.qr(rng.standard_normal((c, count)))[0]
    right = np.linalg.qr(rng.standard_normal((length, count)))[0]
    return (left * np.sort(singular_values(kind, count, rng))[::-1]) @ right.T


@st.composite
def feature_maps(draw: st.DrawFn, largest_channels: int = 24, largest_length: int = 200) -> tuple[np.ndarray, int]:
    """A batch as float64 [N, C, H, W] (axis 1), [N, L, C] or [N, H, W, C] (axis -1), and its channel axis."""
    n = draw(st.integers(1, 3))
    c = draw(st.integers(1, largest_channels))
    height = draw(st.integers(1, 14))
    width = draw(st.integers(1, largest_length // height))
    kind = st.sampled_from(SPECTRA)
    scale = draw(st.sampled_from([1.0, 1.0, 1e-18, 1e-6, 1e6, 1e18]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = np.stack([matrix(draw(kind), c, height * width, rng) for _ in range(n)]) * scale
    layout = draw(st.sampled_from(["NCHW", "NLC", "NHWC"]))
    if layout == "NCHW":
        return batch.reshape(n, c, height, width), 1
    tokens = np.ascontiguousarray(batch.transpose(0, 2, 1))
    return (tokens, -1) if layout == "NLC" else (tokens.reshape(n, height, width, c), -1)
