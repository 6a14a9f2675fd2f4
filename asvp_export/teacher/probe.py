"""Finding out by running it what a model takes and returns: sizes, scale, batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from asvp_export.errors import InputError, MachineError
from asvp_export.teacher.architecture import one_line
from asvp_export.teacher.model import SizeRule, natural_images
from asvp_export.teacher.pt2 import Dims

# Powers of two are what strides and windows make; the rest are window sizes seen in transformers.
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 3, 5, 6, 7, 12, 14, 24, 28)


@dataclass(frozen=True)
class Findings:
    """What the probe learned of a model."""

    scale: int
    """Output height by input height."""

    size: SizeRule
    """Valid heights and widths."""

    fixed: Dims
    """The frozen dimensions that were given, with N = 1 added where two images at a time made the model fail."""


class _NotAnImageError(InputError):
    """The output is of a kind that no other input size would change."""


def probe(module: nn.Module, source: str, channels: int, fixed: Dims, data_range: float, device: str) -> Findings:
    """Run a model on small images until its size rule and scale are known: three forwards for a convolutional model.

    Sizes are odd multiples of 1, 2, 4, ... near 48 pixels, not square, so that the first that works shows the smallest
    multiple; then smaller ones are tried at a size just above it, since a minimum size looks like a multiple
    at first. A size works when the output is exactly `scale` times as high and as wide: a model that crops 49 to 48
    does not take 49. The minimum is found by bisection on square images.

    Args:
        module: in evaluation mode, on `device`.
        source: its name, for messages.
        channels: C of its input.
        fixed: dimensions that cannot be changed (N, C, H, W), None where free.
        data_range: the largest pixel value.
        device: where the module is.

    Returns:
        The findings.

    Raises:
        InputError: the output is not an image batch, or no size works (with the model's own error).
        MachineError: memory ran out.
    """
    run = _Runner(module, source, channels, fixed, data_range, device)
    if fixed[2] is not None and fixed[3] is not None:
        scale = run.scale_at(fixed[2], fixed[3])
        if scale is None:
            raise InputError(f"{source} does not run at its own size {fixed[2]}x{fixed[3]}: {run.problem}.")
        return Findings(scale, SizeRule(), run.frozen_batch(fixed[2], fixed[3], scale))
    multiple, height, width, scale = _smallest_multiple(run)
    counts = range(1, height // multiple + 1)
    smallest = counts[-1]
    if run.works(multiple, multiple, scale):
        smallest = 1
    else:
        below = 1
        while smallest - below > 1:
            middle = (below + smallest) // 2
            if run.works(multiple * middle, multiple * middle, scale):
                smallest = middle
            else:
                below = middle
    size = SizeRule(minimum=multiple * smallest, multiple=multiple)
    return Findings(scale, size, run.frozen_batch(height, width, scale))


def _smallest_multiple(run: _Runner) -> tuple[int, int, int, int]:
    """The multiple, a height and a width that work, and the scale."""
    for multiple in _MULTIPLES:
        count = max(1, round(48 / multiple)) | 1
        height, width = multiple * count, multiple * (count + 2)
        scale = run.scale_at(height, width)
        if scale is None:
            continue
        for smaller in (divisor for divisor in range(1, multiple) if multiple % divisor == 0):
            if run.works(height + smaller, width + smaller, scale):
                return smaller, height + smaller, width + smaller, scale
        return multiple, height, width, scale
    raise InputError(
        f"{run.source} takes none of the sizes that were tried (49x51 to 128x384 pixels, {run.channels} channels, "
        f"multiples of 1 to 128); at the last it said: {run.problem}."
    )


class _Runner:
    """Runs the model at one size after another and keeps the last problem in words."""

    def __init__(
        self, module: nn.Module, source: str, channels: int, fixed: Dims, data_range: float, device: str
    ) -> None:
        self.module, self.source, self.channels = module, source, channels
        self.fixed, self.data_range, self.device = fixed, data_range, device
        self.problem = ""

    def scale_at(self, height: int, width: int, batch: int = 1) -> int | None:
        """The scale, or None when this size does not fit (`problem` says why); InputError when no size would."""
        n, _, h, w = self.fixed
        batch, height, width = n or batch, h or height, w or width
        image = natural_images(batch, self.channels, height, width, self.data_range).to(self.device)
        try:
            with torch.no_grad():
                output = self.module(image)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise MachineError(f"Memory ran out while {self.source} ran at {height}x{width} pixels.") from error
        except Exception as error:  # a user's model may raise anything
            self.problem = one_line(error)
            return None
        self._check(output, batch, height, width)
        scale = output.shape[2] // height
        if scale < 1 or tuple(output.shape[2:]) != (scale * height, scale * width):
            self.problem = (
                f"{output.shape[2]}x{output.shape[3]} pixels come out for {height}x{width}, which is no whole scale"
            )
            return None
        if not torch.isfinite(output).all():
            self.problem = f"NaN or Inf comes out for an ordinary image of {height}x{width} in 0..{self.data_range:g}"
            return None
        return scale

    def works(self, height: int, width: int, scale: int) -> bool:
        """Whether this size fits, with this scale."""
        try:
            return self.scale_at(height, width) == scale
        except _NotAnImageError:
            return False

    def frozen_batch(self, height: int, width: int, scale: int) -> Dims:
        """The fixed dimensions, with N = 1 where a batch of two makes the model raise."""
        if self.fixed[0] is None and self.scale_at(height, width, batch=2) != scale:
            return 1, *self.fixed[1:]
        return self.fixed

    def _check(self, output: object, batch: int, height: int, width: int) -> None:
        asked = f"for {batch}x{self.channels}x{height}x{width}"
        if not isinstance(output, torch.Tensor):
            items = f" of {len(output)}" if isinstance(output, (tuple, list, dict)) else ""
            found = f"{type(output).__name__}{items}"
        elif not output.is_floating_point():
            found = f"a tensor of {str(output.dtype)[6:]}"
        elif output.ndim != 4 or output.shape[0] != batch or output.shape[1] not in (1, 3, 4):
            found = f"a tensor of {'x'.join(map(str, output.shape)) or 'no dimensions'}"
        else:
            return
        raise _NotAnImageError(
            f"{self.source} is a teacher whose output is not an image batch: {found} came {asked}. Expected one float "
            f"tensor N,C,H,W with 1, 3 or 4 channels; wrap the model so that it returns its image alone."
        )
