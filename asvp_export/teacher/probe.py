"""Finding out by running it what a model takes and returns: inputs, sizes, values, outputs, batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import nn

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError, MachineError, summary
from asvp_export.shortage import is_out_of_memory
from asvp_export.signature import CHANNELS, Signature, SizeRule, ValueRange, shape_text
from asvp_export.teacher.child import Child, StoppedError
from asvp_export.teacher.main_output import MainOutput, is_picture
from asvp_export.teacher.model import named_outputs, natural_inputs, with_others
from asvp_export.teacher.onnx_model import OnnxModule
from asvp_export.teacher.pt2 import Dims
from asvp_export.teacher.values import detected_range

# Powers of two are what strides and windows make; the rest are window sizes seen in transformers.
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 3, 5, 6, 7, 12, 14, 24, 28)

_FRAMES = (5, 7, 3)  # of a video model, tried when no image batch is taken


@dataclass(frozen=True)
class Findings:
    """What the probe learned of a model."""

    signature: Signature
    """Its inputs and outputs."""

    scale: int | Fraction
    """Height of the main output by that of the image."""

    size: SizeRule
    """Valid heights and widths."""

    data_range: ValueRange
    """The values of black and white: as asked for, or as detected."""

    static_shape: Dims
    """The frozen dimensions that were given, with N = 1 added where two images at a time made the model fail."""

    assumptions: tuple[Assumption, ...] = ()
    """What was concluded where there was an alternative."""

    other_layout: bool = False
    """Whether it takes such an image channels last as well, and gives one of the same size."""


@dataclass(frozen=True)
class _Shrinkage:
    """How the main output's sides follow from the image's: side * scale - border."""

    scale: Fraction
    border: int

    def of(self, side: int) -> Fraction:
        return side * self.scale - self.border


class _NotAnImageError(InputError):
    """The output is of a kind that no other input size would change."""


@dataclass(frozen=True)
class Subject:
    """A model to be found out about."""

    module: nn.Module
    """In evaluation mode, on `device`."""

    source: str
    """Its name, for messages."""

    device: str = "cpu"
    """Where the module is."""

    call: Callable[..., object] | None = None
    """What is called in the module's stead (`asvp_export.teacher.child`); None: itself."""

    main_output: str | None = None
    """Name or position of the output that is the restored picture; None: chosen (`MainOutput`)."""


def probe(
    subject: Subject,
    signature: Signature | None,
    fixed: Dims,
    data_range: ValueRange | None,
    stated: SizeRule = SizeRule(),  # noqa: B008  frozen
    channels_last: bool = False,
) -> Findings:
    """Run a model on small images until its inputs, size rule, values and scale are known.

    Sizes are odd multiples of 1, 2, 4, ... near 48 pixels, not square, so that the first that works shows the smallest
    multiple. Smaller multiples are then tried at a size just above it, since a minimum size looks like a multiple at
    first. A size works when the main output is exactly `scale` times as high and as wide, or that less a border which
    is the same at every size (a convolution without padding): a model that crops 49 to 48 does not take 49. The minimum
    is found by bisection on square images.

    Args:
        subject: the model.
        signature: its inputs; None: one image batch, whose channels (3, 1 or 4) or frames are found by trying.
        fixed: dimensions that cannot be changed (N, C, H, W), None where free.
        data_range: the values of black and white; None: detected, see `asvp_export.teacher.values`.
        stated: what its architecture states of sizes. Only such sizes are tried; where they do not all work, the
            stricter rule is found as ever.
        channels_last: the layout that is tried where no signature says it.

    Returns:
        The findings.

    Raises:
        InputError: no output is an image batch, or no size works (with the model's own error).
        StoppedError: a run took too long.
        MachineError: memory ran out.
    """
    run, problems = None, []
    for layout in [signature] if signature else _layouts(fixed[1], channels_last):
        run = _Runner(subject, layout, fixed, data_range or ValueRange())
        try:
            shrinkage, size, height, width = _sizes(run, stated)
        except _NotAnImageError:
            raise
        except InputError as error:
            problems.append(error)
            continue
        _check_repeatable(run, height, width)
        run.freeze_batch(height, width, shrinkage)
        values, about_values = (data_range, ()) if data_range else detected_range(run, height, width)
        fraction = shrinkage.scale
        scale = fraction.numerator if fraction.denominator == 1 else fraction
        assumptions = (*run.main.assumptions, *about_values, *_about_sizes(run, shrinkage, size, fixed))
        other_layout = run.takes_channels_last(height, width, shrinkage)
        return Findings(run.signature, scale, size, values, run.static_shape, assumptions, other_layout)
    raise problems[0]


def _check_repeatable(run: _Runner, height: int, width: int) -> None:
    """Two runs on one image have to agree: what draws random numbers cannot be held against an exported file."""
    image = natural_inputs(run.signature, 1, height, width, run.values).to(run.device)
    first, second = run.main_output(image), run.main_output(image)
    if first is None or second is None:
        return
    peak = max(run.values.peak, float(first.max() - first.min()))
    change = float((first - second).abs().max()) / peak
    if change > 1e-4:  # what reordered float32 sums leave is a hundred times smaller
        raise _NotAnImageError(
            f"{run.source} gives a different output each time it runs on the same image (by up to {change:.1g} of its "
            "range): its forward draws random numbers, so an exported file cannot be verified. Give a module whose "
            "forward takes its noise as an input."
        )


def _layouts(channels: int | None, channels_last: bool) -> Iterator[Signature]:
    """Image batches of the channel counts, then videos, that are tried in turn."""
    for count in CHANNELS if channels is None else (channels,):
        yield Signature(channels=count, channels_last=channels_last)
    for frames in () if channels_last else _FRAMES:
        yield Signature(channels=channels or 3, frames=frames)


def _sizes(run: _Runner, stated: SizeRule) -> tuple[_Shrinkage, SizeRule, int, int]:
    """How the output follows from the image, the size rule, and a height and a width that work."""
    _, _, height, width = run.static_shape
    if height is not None and width is not None:
        shrinkage = run.shrinkage(height, width)
        if shrinkage is None:
            raise InputError(f"{run.source} does not run at its own size {height}x{width}: {run.problem}.")
        return shrinkage, SizeRule(), height, width
    try:
        multiple, height, width, shrinkage, square = _smallest_multiple(run, stated)
    except InputError:
        least = stated.minimum  # a model of one size alone, stated as its least
        alone = run.shrinkage(least, least) if least > 1 else None
        if alone is None:
            raise
        run.static_shape = (run.static_shape[0], run.static_shape[1], least, least)
        return alone, SizeRule(), least, least
    smallest, least = min(height, width) // multiple, -(-stated.minimum // multiple)
    if run.works(multiple * least, multiple * least, shrinkage):
        smallest = least
    else:
        below = least
        while smallest - below > 1:
            middle = (below + smallest) // 2
            if run.works(multiple * middle, multiple * middle, shrinkage):
                smallest = middle
            else:
                below = middle
    return shrinkage, SizeRule(multiple * smallest, multiple, square), height, width


def _smallest_multiple(run: _Runner, stated: SizeRule) -> tuple[int, int, int, _Shrinkage, bool]:
    """The multiple, a height and a width that work, what they become, and whether they have to be equal."""
    multiples = dict.fromkeys(math.lcm(stated.multiple, multiple) for multiple in _MULTIPLES)
    sizes: list[str] = []
    for square, multiple in itertools.product((True,) if stated.square else (False, True), multiples):
        count = max(1, round(48 / multiple), -(-stated.minimum // multiple)) | 1
        height, width = multiple * count, multiple * (count if square else count + 2)
        sizes.append(f"{height}x{width}")
        shrinkage = run.shrinkage(height, width, multiple)
        if shrinkage is None:
            continue
        for smaller in (part for part in range(stated.multiple, multiple, stated.multiple) if multiple % part == 0):
            if run.works(height + smaller, width + smaller, shrinkage):
                return smaller, height + smaller, width + smaller, shrinkage, square
        return multiple, height, width, shrinkage, square
    raise InputError(
        f"{run.source} takes none of the sizes that were tried ({sizes[0]} to {sizes[-1]} pixels, "
        f"{run.signature.channels} channels, multiples of {min(multiples)} to {max(multiples)}); at the last it said: "
        f"{run.problem}."
    )


class _Runner:
    """Runs the model at one size after another and keeps the last problem in words."""

    def __init__(self, subject: Subject, signature: Signature, fixed: Dims, values: ValueRange) -> None:
        self.module, self.source, self.device = subject.module, subject.source, subject.device
        self.call = subject.call or subject.module
        self.main = MainOutput(subject.module, subject.source, subject.main_output)
        self.signature, self.static_shape, self.values = signature, fixed, values
        self.problem = ""

    def main_output(self, image: torch.Tensor) -> torch.Tensor | None:
        """The main output, or None where the model raises (`problem` says why); the outputs' names are noted."""
        size = shape_text(image.shape)
        try:
            inputs = with_others(self.signature, image)
            with torch.no_grad():
                outputs = named_outputs(self.call(*inputs))
        except (StoppedError, MachineError):
            raise
        except Exception as error:  # a user's model may raise anything
            if is_out_of_memory(error):
                raise MachineError(f"Memory ran out while {self.source} ran on {size}.") from error
            self.problem = summary(error)
            return None
        outputs = {name: self.signature.from_model(tensor) for name, tensor in outputs.items()}
        self._note(outputs, image, inputs)
        return list(outputs.values())[self.signature.main]

    def shrinkage(self, height: int, width: int, multiple: int = 0) -> _Shrinkage | None:
        """What becomes of the sides, or None when this size does not fit; InputError when no size would.

        A border shows only in other sizes: those that are larger by one and three times the `multiple` are tried.
        """
        n, _, h, w = self.static_shape
        height, width = h or height, w or width
        sides = self._sides(n or 1, height, width)
        if sides is None:
            return None
        scale = Fraction(sides[0], height)
        if scale > 0 and scale * width == sides[1] and 1 in (scale.numerator, scale.denominator):
            return _Shrinkage(scale, 0)
        if multiple:
            return self._with_border(sides, height, width, multiple)
        nearest = Fraction(
            max(1, round(scale))
        )  # at one size only: the nearest whole scale, and the same border on both sides
        borders = height * nearest - sides[0], width * nearest - sides[1]
        return _Shrinkage(nearest, int(borders[0])) if borders[0] == borders[1] else self._unclear(sides, height, width)

    def _with_border(self, sides: tuple[int, int], height: int, width: int, multiple: int) -> _Shrinkage | None:
        """The border shows in a second size; cropping to a multiple, which looks alike there, in the third."""
        larger = self._sides(1, height + multiple, width + multiple)
        largest = self._sides(1, height + 3 * multiple, width + 3 * multiple) if larger else None
        if larger is None or largest is None:
            return None
        scale = Fraction(larger[0] - sides[0], multiple)
        border = height * scale - sides[0]
        shrinkage = _Shrinkage(scale, int(border))
        sizes = ((height, width), (height + multiple, width + multiple), (height + 3 * multiple, width + 3 * multiple))
        fits = all(
            (shrinkage.of(h), shrinkage.of(w)) == measured
            for (h, w), measured in zip(sizes, (sides, larger, largest), strict=True)
        )
        if scale > 0 and 1 in (scale.numerator, scale.denominator) and border.denominator == 1 and fits:
            return shrinkage
        return self._unclear(sides, height, width)

    def _unclear(self, sides: tuple[int, int], height: int, width: int) -> None:
        self.problem = f"the output for {height}x{width} has {sides[0]}x{sides[1]} pixels, which is not a whole scale"

    def _sides(self, batch: int, height: int, width: int) -> tuple[int, int] | None:
        """Height and width of the main output, or None where the model does not run or its output is not finite."""
        output = self.main_output(natural_inputs(self.signature, batch, height, width, self.values).to(self.device))
        if output is None:
            return None
        if not torch.isfinite(output).all():
            self.problem = f"the output has NaN or Inf for an ordinary image of {height}x{width} in {self.values}"
            return None
        return output.shape[-2], output.shape[-1]

    def works(self, height: int, width: int, shrinkage: _Shrinkage, batch: int = 1) -> bool:
        """Whether this size fits, with these sides coming out."""
        try:
            sides = self._sides(batch, height, width)
        except _NotAnImageError:
            return False
        return sides is not None and min(sides) > 0 and sides == (shrinkage.of(height), shrinkage.of(width))

    def freeze_batch(self, height: int, width: int, shrinkage: _Shrinkage) -> None:
        """Freeze N at 1 where a batch of two makes the model fail, also with one noise level for both, say."""
        if self.static_shape[0] is not None or self.works(height, width, shrinkage, batch=2):
            return
        signature = self.signature
        common = [replace(o, follows=tuple(f for f in o.follows if f[1] != "batch")) for o in signature.others]
        if common:
            self.signature = replace(signature, others=tuple(common))
            if self.works(height, width, shrinkage, batch=2):
                return
        self.signature, self.static_shape = signature, (1, *self.static_shape[1:])

    def takes_channels_last(self, height: int, width: int, shrinkage: _Shrinkage) -> bool:
        """Whether a model that takes this size as N,C,H,W takes it as N,H,W,C too: a run does not tell the layout."""
        signature = self.signature
        if signature.channels_last or signature.frames or self.static_shape[2] or self.static_shape[3]:
            return False
        self.signature = replace(signature, channels_last=True)
        try:
            return self.works(height, width, shrinkage)
        finally:
            self.signature = signature

    def _note(self, outputs: dict[str, torch.Tensor], image: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
        """Take in which outputs there are, channels first, and which of them is the restored picture."""
        tensors, size = list(outputs.values()), shape_text(image.shape)
        if not any(is_picture(tensor, image.shape[0]) for tensor in tensors):
            kinds = "; ".join(f"{shape_text(t.shape) or 'no dimensions'} {str(t.dtype)[6:]}" for t in tensors)
            raise _NotAnImageError(
                f"{self.source} gives {kinds or 'no tensor'} for {size}, which is not an image batch. Expected a "
                "float tensor N,C,H,W (or N,T,C,H,W) among its outputs."
            )
        names = ["output"] if len(outputs) == 1 else list(outputs)
        if isinstance(self.module, OnnxModule):
            names = list(self.module.output_names)
        input_names = set(self.signature.names)
        names = tuple(f"{name}_out" if name in input_names else name for name in names)
        floats = tuple(i for i, tensor in enumerate(tensors) if tensor.is_floating_point())
        main = self.main.choose(dict(zip(names, tensors, strict=True)), image, inputs)
        self.signature = replace(self.signature, outputs=names, floats=floats, main=main)


def _about_sizes(run: _Runner, shrinkage: _Shrinkage, size: SizeRule, fixed: Dims) -> tuple[Assumption, ...]:
    """What was concluded of sizes, scale and batches, all of it by running the model."""
    _, _, height, width = run.static_shape
    scale = f"{shrinkage.scale}" + (f", less a border of {shrinkage.border} pixels" if shrinkage.border else "")
    if height is not None and width is not None:
        only = f"{height}x{width}"
        assumptions = [
            Assumption("sizes", only, "the model is fixed to it", True),
            Assumption("scale", scale, f"its output at {only}, the only size, has this scale", not shrinkage.border),
        ]
    else:
        rule = [f"multiples of {size.multiple}"] if size.multiple > 1 else []
        rule += [f"at least {size.minimum}"] if size.minimum > size.multiple else []
        rule += ["height and width equal"] if size.square else []
        crash = run.call.crashed_below(size.minimum) if isinstance(run.call, Child) else ""
        because = "it runs at all sizes that were tried"
        if size != SizeRule():
            because = crash or "it runs at these sizes, and not at the other sizes that were tried"
        assumptions = [  # a service that is handed such a picture is gone: a crash is told in any case
            Assumption("sizes", ", ".join(rule) or "any", because, not crash),
            Assumption("scale", scale, "its output has this scale at each size that was tried", True),
        ]
    if run.static_shape[0] is not None:
        because = "the model is fixed to it" if fixed[0] is not None else "the model fails on two images at a time"
        assumptions.append(Assumption("batch", str(run.static_shape[0]), because, True))
    return tuple(assumptions)
