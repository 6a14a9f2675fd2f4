"""What a model is called with and what it gives: sizes, value range, inputs besides the image, outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, Self, TypeVar

import numpy as np

from asvp_export.errors import InputError

NCHW, NHWC = "nchw", "nhwc"

CHANNELS = (3, 1, 4)
"""Of pictures: colour, grey, packed Bayer."""


class _Tensor(Protocol):
    """What numpy's and PyTorch's arrays have in common."""

    @property
    def ndim(self) -> int: ...

    def swapaxes(self, axis1: int, axis2: int, /) -> Self: ...


_Array = TypeVar("_Array", bound=_Tensor)


def channels_to_end(x: _Array) -> _Array:
    """N,C,H,W as N,H,W,C, a view."""
    return x.swapaxes(1, 2).swapaxes(2, 3)


def channels_to_front(x: _Array) -> _Array:
    """N,H,W,C as N,C,H,W, a view."""
    return x.swapaxes(2, 3).swapaxes(1, 2)


def shape_text(sizes: Iterable[object]) -> str:
    """A shape as messages have it: "1x3x64x96"."""
    return "x".join(map(str, sizes))


def looks_channels_last(sizes: Sequence[object]) -> bool:
    """Whether the sizes of an image input, numbers where they are fixed, speak for N,H,W,C (of a video N,T,H,W,C).

    The last is fixed at 3, 1 or 4, and where the channels would be is no such number: it is free, or larger.
    """
    front = sizes[-3]
    return sizes[-1] in CHANNELS and (not isinstance(front, int) or front > max(CHANNELS))


@dataclass(frozen=True)
class SizeRule:
    """Which heights and widths a model takes; the same rule holds for both."""

    minimum: int = 1
    """The smallest height or width in pixels; itself a multiple of `multiple`."""

    multiple: int = 1
    """Height and width must be multiples of this many pixels."""

    square: bool = False
    """Height and width must be equal."""

    def fit(self, pixels: int) -> int:
        """The smallest valid height or width of at least this many pixels."""
        return -(-max(pixels, self.minimum) // self.multiple) * self.multiple

    def fit_both(self, height: int, width: int) -> tuple[int, int]:
        """The smallest valid height and width of at least these many pixels."""
        if self.square:
            height = width = max(height, width)
        return self.fit(height), self.fit(width)

    def stricter(self, other: SizeRule) -> SizeRule:
        """The rule that satisfies both."""
        multiple = math.lcm(self.multiple, other.multiple)
        minimum = SizeRule(1, multiple).fit(max(self.minimum, other.minimum))
        return SizeRule(minimum, multiple, self.square or other.square)


@dataclass(frozen=True)
class ValueRange:
    """The pixel values that a model takes for black and white."""

    low: float = 0.0
    """Black."""

    high: float = 1.0
    """White."""

    @property
    def peak(self) -> float:
        """From black to white: the peak of a PSNR."""
        return self.high - self.low

    def of(self, unit: np.ndarray) -> np.ndarray:
        """Pictures in 0..1 as values of the model, float32."""
        return unit.astype(np.float32, copy=False) * np.float32(self.peak) + np.float32(self.low)

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """Values of the model as pictures around 0..1, float32."""
        return (values.astype(np.float32, copy=False) - np.float32(self.low)) / np.float32(self.peak)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"

    @classmethod
    def read(cls, value: object) -> ValueRange:
        """A range from what a user gives: "0..255", "-1..1", a pair, or the value of white alone (black is 0 then).

        Raises:
            InputError: it is none, or white is not above black.
        """
        if isinstance(value, ValueRange):
            return value
        bounds: Sequence[object] = (0.0, value)
        if isinstance(value, str):
            bounds = re.split(r"\.\.|,", value) if re.search(r"\.\.|,", value) else (0.0, value)
        elif isinstance(value, tuple | list):
            bounds = value
        try:
            low, high = (float(str(bound)) for bound in bounds)
        except ValueError:
            low, high = math.nan, math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or isinstance(value, bool):
            raise InputError(
                f"The data range is {value!r}; expected 0..1, -1..1 or 0..255 (the values of black and white)."
            )
        return cls(low, high)


@dataclass(frozen=True, eq=False)
class OtherInput:
    """An input that is not the image: a noise map, a noise level, a mask, a state."""

    name: str
    """Its name."""

    example: np.ndarray
    """What it is called with; the values are repeated along the axes that follow the image."""

    follows: tuple[tuple[int, str, Fraction], ...] = ()
    """(axis, "batch" | "height" | "width", size by that of the image): the axes whose size follows the image's."""

    def fitting(self, batch: int, height: int, width: int) -> np.ndarray:
        """The example for an image of this size, wrapped around where it is too small."""
        sizes, array = {"batch": batch, "height": height, "width": width}, self.example
        for axis, dimension, ratio in self.follows:
            length = max(1, int(sizes[dimension] * ratio))
            array = np.take(array, np.arange(length) % array.shape[axis], axis=axis)
        return np.ascontiguousarray(array)


@dataclass(frozen=True)
class Signature:
    """The inputs of a model in order, one of them the image, and the names of its outputs."""

    image_name: str = "input"
    """Name of the image input."""

    channels: int = 3
    """C of the image."""

    frames: int | None = None
    """T of a video model, whose image is N,T,C,H,W; None for N,C,H,W."""

    image_index: int = 0
    """Which input the image is."""

    others: tuple[OtherInput, ...] = ()
    """The other inputs, in order."""

    outputs: tuple[str, ...] = ("output",)
    """Names of the tensors that come out, nested ones flattened."""

    floats: tuple[int, ...] = (0,)
    """Which outputs are of a floating type: those are compared."""

    main: int = 0
    """Which output is the restored image."""

    channels_last: bool = False
    """Whether the model takes and gives N,H,W,C; everywhere else in this package pictures are N,C,H,W."""

    names: tuple[str, ...] = field(init=False)
    """Of all inputs, in order."""

    def __post_init__(self) -> None:
        names = [other.name for other in self.others]
        names.insert(self.image_index, self.image_name)
        object.__setattr__(self, "names", tuple(names))

    @property
    def size_axes(self) -> tuple[int, int]:
        """The axes of height and width in the image, as the model takes it."""
        if self.channels_last:
            return 1, 2
        return (2, 3) if self.frames is None else (3, 4)

    @property
    def dimensions(self) -> tuple[dict[int, str], ...]:
        """For each input: axis to the name of its free size, as the exporter takes them."""
        free = [{axis: _dim(dimension, ratio) for axis, dimension, ratio in other.follows} for other in self.others]
        free.insert(self.image_index, {0: "batch", self.size_axes[0]: "height", self.size_axes[1]: "width"})
        return tuple(free)

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of the floating outputs."""
        return tuple(self.outputs[i] for i in self.floats)

    def image_shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """N,C,H,W, or N,T,C,H,W."""
        return (batch, *(() if self.frames is None else (self.frames,)), self.channels, height, width)

    def to_model(self, image: _Array) -> _Array:
        """An image batch N,C,H,W as the model takes it, a view."""
        return channels_to_end(image) if self.channels_last else image

    def from_model(self, output: _Array) -> _Array:
        """An output of the model as N,C,H,W where it is a batch of pictures or maps, a view."""
        return channels_to_front(output) if self.channels_last and output.ndim == 4 else output

    def others_for(self, image: Sequence[int]) -> tuple[np.ndarray, ...]:
        """The other inputs for an image batch of this shape."""
        return tuple(other.fitting(image[0], *image[-2:]) for other in self.others)


def _dim(dimension: str, ratio: Fraction) -> str:
    if ratio == 1:
        return dimension
    return f"{dimension}_by_{ratio.denominator}" if ratio < 1 else f"{dimension}_times_{ratio.numerator}"


def following(name: str, example: np.ndarray, image: Sequence[int], channels_last: bool = False) -> OtherInput:
    """An input beside the image, with the axes that follow it found from an example of both.

    The first axis follows the batch where it is as long. Of three or more axes the last two follow height and width (of
    four, channels last, the middle two), where both have the same ratio to them: a whole number or one over it.

    Args:
        name: of the input.
        example: its value in one call.
        image: shape of the image in that call, N,C,H,W.
        channels_last: whether four axes of the example are N,H,W,C.
    """
    height = 1 if channels_last and example.ndim == 4 else example.ndim - 2
    lengths = example.shape[max(height, 0) : height + 2]
    follows = []
    if example.ndim and example.shape[0] == image[0]:
        follows.append((0, "batch", Fraction(1)))
    if example.ndim >= 3 and min(lengths) > 1:
        ratios = {Fraction(length, side) for length, side in zip(lengths, image[-2:], strict=True)}
        ratio = ratios.pop()
        if not ratios and 1 in (ratio.numerator, ratio.denominator):
            follows += [(height, "height", ratio), (height + 1, "width", ratio)]
    return OtherInput(name, example, tuple(follows))
