"""Running a model tile by tile: for images that do not fit into memory whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from asvp_export.errors import InputError
from asvp_export.options import TileOptions
from asvp_export.signature import SizeRule

_LEAST_WEIGHT = 1e-3  # of a pixel on a tile's rim, where another tile counts for more


@dataclass(frozen=True)
class Tiling:
    """Tiles that overlap; in the overlap their outputs are blended linearly."""

    size: int
    """Height and width of a tile, pixels of the input."""

    overlap: int = TileOptions.overlap
    """How many pixels two neighbours share."""

    width: int | None = None
    """The width where it is not `size`."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap <= min(self.sides) // 2:
            raise InputError(
                f"Tiles of {self.size} with an overlap of {self.overlap} were asked for; the overlap can be 0 to half "
                "the tile."
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.size, self.width or self.size

    def fitting(self, rule: SizeRule) -> Tiling:
        """Square ones, their size rounded up to one that the model takes."""
        return Tiling(rule.fit(self.size), self.overlap)

    def starts(self, side: int, axis: int = 0) -> list[int]:
        """Where the tiles begin along the height (axis 0) or the width (1) of an image; the last one ends with it."""
        tile = self.sides[axis]
        if side <= tile:
            return [0]
        return [*range(0, side - tile, tile - self.overlap), side - tile]


def run_tiled(run: Callable[[np.ndarray], np.ndarray], x: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Run a model over an image tile by tile.

    Args:
        run: from [1, C, h, w] to [1, C', s h, s w], with one scale s.
        x: [1, C, H, W].
        tiling: a size that the model takes.

    Returns:
        [1, C', s H, s W] of the output's dtype.

    Raises:
        InputError: the output is no image, or another size than a multiple of the tile's.
    """
    total = weights = np.zeros(0)
    kind = x.dtype
    rows, columns = tiling.sides
    for top in tiling.starts(x.shape[2]):
        for left in tiling.starts(x.shape[3], axis=1):
            tile = x[:, :, top : top + rows, left : left + columns]
            y = run(np.ascontiguousarray(tile))
            scale = _scale(tile, y)
            if not total.size:
                kind = y.dtype
                total = np.zeros((1, y.shape[1], round(x.shape[2] * scale), round(x.shape[3] * scale)))
                weights = np.zeros(total.shape[2:])
            fade = round(tiling.overlap * scale)
            window = _ramp(y.shape[2], fade)[:, None] * _ramp(y.shape[3], fade)
            down, right = round(top * scale), round(left * scale)
            area = slice(down, down + y.shape[2]), slice(right, right + y.shape[3])
            total[0, :, *area] += y[0] * window
            weights[area] += window
    return (total / weights).astype(kind)


def seam_energy(whole: np.ndarray, tiled: np.ndarray, tiling: Tiling) -> float:
    """How much more the error jumps where tiles meet than elsewhere; 1: no more, NaN: nothing to compare.

    With d the difference of the two outputs: the mean of (d(p) - d(q))^2 over neighbouring pixels p, q of which one
    lies where a tile begins or ends, over the mean for all neighbours.

    Args:
        whole: [1, C, s H, s W], of one run.
        tiled: the same shape, of `run_tiled`.
        tiling: as it was run, in pixels of the output.
    """
    difference = tiled.astype(np.float64) - whole
    at_seams, everywhere = [], []
    for axis in (2, 3):
        jumps = np.square(np.diff(difference, axis=axis)).mean(axis=tuple(i for i in range(4) if i != axis))
        everywhere.append(jumps)
        at_seams.append(jumps[_seams(jumps.size + 1, tiling)])
    seams, jumps_anywhere = np.concatenate(at_seams), np.concatenate(everywhere)
    return float(seams.mean() / jumps_anywhere.mean()) if seams.size and jumps_anywhere.mean() > 0 else float("nan")


def _seams(side: int, tiling: Tiling) -> np.ndarray:
    """Indices of the pairs (i, i + 1) that a tile's first or last row separates; sizes are those of the output."""
    starts = tiling.starts(side)
    edges = set(starts[1:]) | {start + tiling.size for start in starts[:-1]}
    return np.array(sorted(edge - 1 for edge in edges if 0 < edge < side), dtype=int)


def _scale(tile: np.ndarray, y: np.ndarray) -> float:
    scale = y.shape[2] / tile.shape[2] if y.ndim == 4 else 0.0
    if not scale or y.shape[2:] != (round(scale * tile.shape[2]), round(scale * tile.shape[3])):
        raise InputError(
            f"The model's output has shape {y.shape} for a tile of {tile.shape}; tiles need an output at one whole "
            "scale, with no border cut off. Run it on the whole image."
        )
    return scale


def _ramp(side: int, fade: int) -> np.ndarray:
    """1 inside, nearly 0 at the end of the overlap; the image's own rim has no other tile, so weights cancel there."""
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    return np.maximum(np.minimum(distance / fade, 1.0), _LEAST_WEIGHT) if fade else np.ones(side)
