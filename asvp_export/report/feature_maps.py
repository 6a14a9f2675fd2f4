"""What an attacker sees at a protected layer, as pictures for a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from asvp_export.insertion.feature_maps import FeatureMaps
from asvp_export.report.pictures import Picture, encoded, factor_for, pixel_bytes


@dataclass(frozen=True)
class MapPicture:
    """One of the pictures of a layer."""

    title: str
    """"Clean", "Exposed", "Readers" or "Left over", the last with what it is multiplied by for the eye."""

    caption: str
    """The numbers below it."""

    picture: Picture


@dataclass(frozen=True)
class LayerMaps:
    """The pictures of a layer."""

    layer: str
    """Its name."""

    channel: str
    """Which channel of how many."""

    size: str
    """Height and width of the map, and what a pixel is the mean of."""

    pictures: tuple[MapPicture, ...]
    """Three or four: without an inverse the readers' map is the exposed one."""


def layer_maps(maps: Mapping[str, FeatureMaps | None]) -> list[LayerMaps]:
    """The pictures of each layer whose map lies on a grid of height and width."""
    return [_of_layer(name, layer) for name, layer in maps.items() if layer]


def without_grid(maps: Mapping[str, FeatureMaps | None]) -> str:
    """A sentence about the layers whose maps cannot be drawn; "" where there are none."""
    names = [name for name, layer in maps.items() if layer is None]
    if not names:
        return ""
    return f"Not drawn: {', '.join(names)}. These maps do not lie on a grid of height and width."


def _of_layer(name: str, maps: FeatureMaps) -> LayerMaps:
    size = f"height {maps.size[0]}, width {maps.size[1]}"
    if maps.step > 1:
        size += f", each pixel the mean of {maps.step} x {maps.step} values"
    return LayerMaps(name, f"channel {maps.channel} of {maps.channels}", size, tuple(_pictures(maps)))


def _pictures(maps: FeatureMaps) -> Iterator[MapPicture]:
    yield MapPicture("Clean", _values(maps.clean), _in_own_range(maps.clean))
    change = f"{_values(maps.exposed)}; change {_number(maps.exposed_change)}"
    if maps.readers is None:
        change += "; the readers get this map too"
    yield MapPicture("Exposed", change, _in_own_range(maps.exposed))
    if maps.readers is not None:
        change = f"{_values(maps.readers)}; change {_number(maps.readers_change)}"
        yield MapPicture("Readers", change, _in_own_range(maps.readers))
    if math.isfinite(maps.strength) and (span := np.ptp(maps.clean)) > 0:
        shares = np.abs(maps.left_over)[None] / span
        times = factor_for(shares)
        change = f"at {_number(maps.factor)} times the exposed map; change {_number(maps.strength)}"
        yield MapPicture(f"Left over \N{MULTIPLICATION SIGN} {times}", change, encoded(pixel_bytes(times * shares)))


def _in_own_range(values: np.ndarray) -> Picture:
    finite = values[np.isfinite(values)]
    low, span = (finite.min(), np.ptp(finite)) if finite.size else (0.0, 0.0)
    return encoded(pixel_bytes((values - low)[None] / (span or 1.0)))


def _values(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "no finite value"
    lost = values.size - finite.size
    shown = f"{_number(finite.min())} to {_number(finite.max())}"
    return f"{shown}; {lost} values are not finite: magenta" if lost else shown


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "no number"
