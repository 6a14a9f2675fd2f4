"""The teacher as a value: a module that is ready to run, and what is known of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class SizeRule:
    """Which heights and widths a teacher takes; the same rule holds for both."""

    minimum: int = 1
    """The smallest height or width in pixels; itself a multiple of `multiple`."""

    multiple: int = 1
    """Height and width must be multiples of this many pixels."""

    def accepts(self, pixels: int) -> bool:
        """Whether a height or a width of this many pixels is valid."""
        return pixels >= self.minimum and pixels % self.multiple == 0

    def fit(self, pixels: int) -> int:
        """The smallest valid height or width of at least this many pixels."""
        return -(-max(pixels, self.minimum) // self.multiple) * self.multiple


@dataclass(frozen=True)
class Teacher:
    """A trained image-restoration model that maps N,C,H,W images to N,C',scale*H,scale*W images."""

    module: nn.Module
    """The model: in evaluation mode, float32, gradients off, on `device`. Never changed by this package."""

    source: str
    """The name of the file it came from, without its folder; the class name for a module in memory."""

    sha256: str
    """Of the file's bytes, hexadecimal; for a module in memory: of its state dict."""

    format: str
    """Where it came from: "state-dict", "pt2" (torch.export), "pickle" (a whole module) or "module" (memory)."""

    channels: int
    """Channels C of the input image."""

    scale: int
    """Output height by input height: 1 for restoration, 2 for x2 super-resolution."""

    size: SizeRule
    """Which H and W it takes; where a dimension is `fixed`, that one number is the only valid one."""

    data_range: float
    """The largest pixel value: 1.0 for 0..1, 255.0 for 0..255."""

    fixed: tuple[int | None, int | None, int | None, int | None] = (None, None, None, None)
    """Frozen dimensions of the input (N, C, H, W), None where free. A .pt2 archive always freezes C; one that was
    exported with static sizes freezes N, H and W too. N is 1 where a model refuses to run two images at a time."""

    device: str = "cpu"
    """Where the module's weights are: "cpu", "cuda" or "cuda:1"."""

    def example(self, height: int | None = None, width: int | None = None, batch: int = 1) -> torch.Tensor:
        """A natural-looking input: the same pixels on every call, and no global random state touched.

        Args:
            height: in pixels, rounded up to a valid size; about 64 when not given.
            width: likewise; about 32 more than the height when not given.
            batch: how many images, each of them different. A dimension in `fixed` wins over all three arguments.

        Returns:
            N,C,H,W, float32 in 0..data_range, on the teacher's device.
        """
        n, _, h, w = self.fixed
        h = h or self.size.fit(64 if height is None else height)
        w = w or self.size.fit(h + 32 if width is None else width)
        return natural_images(n or batch, self.channels, h, w, self.data_range).to(self.device)


def natural_images(batch: int, channels: int, height: int, width: int, data_range: float) -> torch.Tensor:
    """Random images with the statistics of photographs: power that falls with frequency, edges, weak colour.

    Args:
        batch: N.
        channels: C.
        height: H in pixels.
        width: W in pixels.
        data_range: the largest value.

    Returns:
        N,C,H,W, float32 in 0..data_range on the CPU; the same for the same arguments.
    """
    generator = torch.Generator().manual_seed(2510)

    def field(count: int, octaves: range) -> torch.Tensor:
        """Smooth noise, [N, count, H, W]; the amplitude halves with each octave."""
        total = torch.zeros(batch, count, height, width)
        for octave in octaves:
            grid = (min(3 * 2**octave, height), min(3 * 2**octave, width))
            noise = torch.randn(batch, count, *grid, generator=generator)
            smooth = functional.interpolate(noise, size=(height, width), mode="bicubic", align_corners=False)
            total += smooth / 2**octave
        return total

    brightness = field(1, range(6)) + 0.8 * torch.sign(field(1, range(2)))  # the signs draw edges of objects
    colour = 0.4 * field(channels, range(2))
    return torch.sigmoid(brightness + colour) * data_range
