"""Maps of every element type, and what is right for them: what the tests of the kernels share."""

from __future__ import annotations

import numpy as np
import torch

from tests.helpers.criterion import REFERENCE32, REFERENCE64, as_matrices, check
from tests.helpers.native import Kernels
from tests.helpers.spectra import matrix

TOLERANCES = {np.float32: REFERENCE32, np.float64: REFERENCE64}
TYPES = [np.float32, np.float16, np.uint16, np.float64]  # uint16: the bits of bfloat16


def to_type(values: np.ndarray, dtype) -> np.ndarray:
    if dtype != np.uint16:
        return values.astype(dtype)
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def widened(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint16:
        return x.astype(np.float64)
    return torch.from_numpy(x).view(torch.bfloat16).double().numpy()


def filled(shape, dtype, seed=0) -> np.ndarray:
    return to_type(np.random.default_rng(seed).standard_normal(shape), dtype)


def exact(x: np.ndarray, rank: int, gain: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The float64 result in x's shape, and for each sample whether its leading space is defined."""
    results, clear = [], []
    for m in as_matrices(x, axis):
        left, values, right = np.linalg.svd(m, full_matrices=False)
        r = min(rank, len(values))
        following = values[r] if r < len(values) else 0.0
        clear.append(values[r - 1] - following > 1e-6 * values[0])
        values[:r] *= gain
        results.append((left * values) @ right)
    channels_first = np.stack(results).reshape(x.shape[0], x.shape[axis], *np.delete(x.shape, (0, axis)))
    return np.moveaxis(channels_first, 1, axis), np.array(clear)


def steps_off(y: np.ndarray, wide: np.ndarray, dtype) -> np.ndarray:
    """Distance in units in the last place, beyond what float64 itself leaves where terms cancel."""
    info = torch.finfo(torch.float16 if dtype == np.float16 else torch.bfloat16)
    ulp = 2 ** np.floor(np.log2(np.maximum(np.abs(wide), info.tiny))) * info.eps
    return np.maximum(np.abs(y - wide) - 1e-12 * np.abs(wide).max(), 0) / ulp


def check_both_layouts(kernels: Kernels, dtype, c: int, length: int) -> None:
    """Four components of a C x L map, two of its tokens, against the criterion."""
    kind = "image" if c % 2 else "decaying"
    x = matrix(kind, c, length, np.random.default_rng(c)).astype(dtype)[None]
    check(x, kernels.perturb(x, 4, 3.0, threads=2), 4, 3.0, 1.0, 1, TOLERANCES[dtype])
    tokens = np.ascontiguousarray(x.transpose(0, 2, 1))
    check(tokens, kernels.perturb(tokens, 2, 3.0, axis=-1), 2, 3.0, 1.0, -1, TOLERANCES[dtype])
