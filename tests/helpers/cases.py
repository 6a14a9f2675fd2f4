"""Random cases of the operator: types, layouts, shapes, spectra, scales, ranks, gains and energies, from one seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.helpers.criterion import as_matrices
from tests.helpers.oracle import to_type, widened
from tests.helpers.spectra import SPECTRA, matrix

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "float64": np.float64}  # uint16: bits
LIMITS = {  # of each type: largest, smallest normal, smallest subnormal, half the distance of 1 and its successor
    "float32": (float(np.finfo(np.float32).max), 2.0**-126, 2.0**-149, 2.0**-24),
    "float16": (65504.0, 2.0**-14, 2.0**-24, 2.0**-11),
    "bfloat16": (float(np.finfo(np.float32).max), 2.0**-126, 2.0**-133, 2.0**-8),
    "float64": (float(np.finfo(np.float64).max), 2.0**-1022, 2.0**-1074, 2.0**-53),
}
LAYOUTS = ("NCHW", "NCHW", "NC", "NLC", "NHWC", "NHCW", "strided")
GAINS = (0.25, 0.5, 1.0, 1.1, 1.5, 3.0, 10.0, 100.0, 1000.0)
ENERGIES = (1.0, 1.0, 1.0, 0.3, 0.5, 0.9, 0.999)
SCALES = ("one", "one", "usual", "usual", "subnormal", "huge")
A_SETTING = 64  # cases: sessions of the function body are slow to open
SMALL, LARGE = (24, 200), (96, 1500)  # most channels, most positions


@dataclass(frozen=True)
class Setting:
    """What cases that share a session of the function body have in common."""

    dtype: str
    layout: str
    rank: int
    gain: float
    energy: float


@dataclass(frozen=True)
class Case:
    """A batch of maps under a setting."""

    setting: Setting
    maps: np.ndarray  # [N, C, L] in the type (bfloat16 as its bits)
    height: int  # divides L: how the positions are laid out
    poisoned: int | None  # the sample that holds NaN or infinity
    usual: bool  # magnitudes that docs/concepts/operator.md speaks of, 1e-20 to 1e18


def settings(count: int, rng: np.random.Generator) -> Iterator[Setting]:
    """Types, layouts and gains in turn (4, 7 and 9 of them: all combinations come in 252), the rest by chance."""
    for i in range(count):
        dtype, layout, gain = list(TYPES)[i % len(TYPES)], LAYOUTS[i % len(LAYOUTS)], GAINS[i % len(GAINS)]
        rank = int(rng.choice([*[1, 1, 1, 2, 2, 3, 4, 4] * 2, *rng.integers(5, 9, 3), rng.integers(9, 33)]))
        # A node's float attributes are float32.
        gain, energy = (float(np.float32(value)) for value in (gain, rng.choice(ENERGIES)))
        yield Setting(dtype, layout, rank, gain, energy)


def cases(count: int, seed: int) -> Iterator[tuple[Setting, list[Case]]]:
    """`count` cases by their settings; the same for the same count and seed."""
    rng = np.random.default_rng(seed)
    groups = max(24, -(-count // A_SETTING))
    for i, setting in enumerate(settings(groups, rng)):
        share = count // groups + (i < count % groups)
        yield setting, [_case(setting, rng) for _ in range(share)]


def _case(setting: Setting, rng: np.random.Generator) -> Case:
    most_channels, most_length = LARGE if rng.random() < 0.03 else SMALL
    n, c = int(rng.integers(1, 4)), int(rng.integers(1, most_channels + 1))
    height = 1 if setting.layout == "NC" else int(rng.integers(1, 14))
    width = 1 if setting.layout == "NC" else int(rng.integers(1, max(2, most_length // height + 1)))
    kinds = rng.choice((*SPECTRA, "near", "near"), n)
    raw = np.stack([matrix(kind, c, height * width, rng) for kind in kinds])
    kind = str(rng.choice(SCALES))
    maps = to_type(_scaled(raw, kind, setting, rng), TYPES[setting.dtype])
    poisoned = int(rng.integers(n)) if rng.random() < 0.08 else None
    if poisoned is not None:
        position = (poisoned, rng.integers(c), rng.integers(height * width))
        maps[position] = to_type(np.array([rng.choice([np.nan, np.inf, -np.inf])]), TYPES[setting.dtype])[0]
    return Case(setting, maps, height, poisoned, kind in ("one", "usual"))


def _scaled(raw: np.ndarray, kind: str, setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """The maps at a magnitude of the kind, such that the result fits into the type."""
    largest, normal, least, _ = LIMITS[setting.dtype]
    # No entry of the result, nor of any projection, is over the gain times the longest column.
    raw = raw / (np.linalg.norm(raw, axis=1).max() or 1.0)
    room = largest / max(1.0, setting.gain)
    if kind == "huge":
        return raw * (room * rng.choice([0.9, 0.4, 1e-2]))
    if kind == "subnormal":
        return raw * float(np.exp(rng.uniform(np.log(3 * least), np.log(normal))))
    if setting.dtype == "float16":
        return raw * (room * 10.0 ** rng.uniform(-3, -0.5))
    return raw if kind == "one" else raw * 10.0 ** rng.uniform(-20, 18)


def laid_out(case: Case) -> tuple[np.ndarray, int]:
    """The maps as an array in the case's layout, contiguous but for "strided", and its channel axis."""
    n, c, length = case.maps.shape
    spread = case.maps.reshape(n, c, case.height, length // case.height)
    match case.setting.layout:
        case "NC":
            return np.ascontiguousarray(case.maps[:, :, 0]), 1
        case "NLC":
            return np.ascontiguousarray(case.maps.transpose(0, 2, 1)), -1
        case "NHWC":
            return np.ascontiguousarray(spread.transpose(0, 2, 3, 1)), -1
        case "NHCW":
            return np.ascontiguousarray(spread.transpose(0, 2, 1, 3)), 2
        case "strided":  # every third position, channels with a gap, samples apart
            around = np.zeros((n, c, 2, length, 3), case.maps.dtype)
            around[:, :, 0, :, 1] = case.maps
            return around[:, :, 0, :, 1], 1
    return np.ascontiguousarray(spread), 1


def taken_back(y: np.ndarray, case: Case, axis: int) -> np.ndarray:
    """[N, C, L] in float64."""
    return as_matrices(widened(y), axis) if y.ndim > 2 else widened(y)[:, :, None]
