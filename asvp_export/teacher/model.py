"""The teacher as a value: a module that is ready to run, and what is known of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn
from torch.nn import functional

from asvp_export.assumptions import Assumption
from asvp_export.signature import Signature, SizeRule, ValueRange


@dataclass(frozen=True)
class Architecture:
    """What is stated of a recognised architecture (`asvp_export.teacher.spandrel`)."""

    name: str
    """Its name, such as "Swin2SR"."""

    purpose: str
    """What it is for: "SR", "FaceSR", "Restoration" or "Inpainting"."""

    tiling: str
    """Whether an image may be cut into tiles: "supported", "discouraged" (it looks at the whole image) or "internal"
    (it cuts the image itself)."""

    supports_half: bool
    """Whether it is known to work in float16."""

    channels: int
    """Channels C of the image."""

    scale: int
    """Output height by input height."""

    size: SizeRule
    """Which heights and widths it takes."""

    masked: bool = False
    """Whether it takes a second input, a mask N,1,H,W with 1 where the image is to be filled in."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained image-restoration model: from an image batch, and perhaps other inputs, to one or more outputs."""

    module: nn.Module
    """The model: in evaluation mode, float32, gradients off, on `device`. Never changed by this package."""

    source: str
    """The name of the file it came from, without its folder; the class name for a module in memory."""

    sha256: str
    """Of the file's bytes, hexadecimal; for a module in memory: of its state dict."""

    format: str
    """Where it came from: "state-dict", "pt2" (torch.export), "onnx", "torchscript", "pickle" (a whole module) or
    "module" (memory)."""

    signature: Signature
    """Its inputs, which of them is the image, and its outputs."""

    scale: int | Fraction
    """Height of the main output by that of the image: 1 for restoration, 2 for x2 super-resolution."""

    size: SizeRule
    """Which H and W it takes; where a dimension is in `static_shape`, that one number is the only valid one."""

    data_range: ValueRange
    """The pixel values for black and white."""

    static_shape: tuple[int | None, int | None, int | None, int | None] = (None, None, None, None)
    """Frozen dimensions of the image (N, C, H, W, in whatever layout the model takes it), None where free. A .pt2
    archive always freezes C; one that was exported with static sizes freezes N, H and W too. N is 1 where a model
    refuses to run two images at a time."""

    device: str = "cpu"
    """Where the module's weights are: "cpu", "cuda" or "cuda:1"."""

    architecture: Architecture | None = None
    """What is stated of its architecture, where that was recognised from the state dict."""

    assumptions: tuple[Assumption, ...] = ()
    """What `load` concluded where it could have concluded something else, and the options that override it."""

    @property
    def channels(self) -> int:
        """Channels C of the image."""
        return self.signature.channels

    def example(self, height: int | None = None, width: int | None = None, batch: int = 1) -> torch.Tensor:
        """A natural-looking image: the same pixels on every call, and no global random state touched.

        Args:
            height: in pixels, rounded up to a valid size; about 64 when not given.
            width: likewise; about 32 more than the height when not given (the same for a model of square images).
            batch: how many images, each of them different. A dimension in `static_shape` wins over all three arguments.

        Returns:
            N,C,H,W (a video model: N,T,C,H,W), float32 in the data range, on the teacher's device.
        """
        n, _, h, w = self.static_shape
        tall = self.size.fit(64 if height is None else height)
        wide = self.size.fit(tall + 32 if width is None else width)
        if self.size.square and h is w is None:
            tall = wide = tall if width is None else max(tall, wide)
        return natural_inputs(self.signature, n or batch, h or tall, w or wide, self.data_range).to(self.device)

    def inputs(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All inputs for an image batch, in order, on the image's device."""
        return with_others(self.signature, image)


def with_others(signature: Signature, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the model is called with: an image batch, laid out as the model takes it, among the inputs that fit it.

    Args:
        signature: of the model.
        image: the image batch, N,C,H,W.
    """
    others = [torch.from_numpy(example).to(image.device) for example in signature.others_for(image.shape)]
    return (*others[: signature.image_index], signature.to_model(image).contiguous(), *others[signature.image_index :])


def named_outputs(result: object, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors in what a model returned, by name: keys and fields as they are, positions in a sequence as numbers.

    Args:
        result: a tensor, or tuples, lists and mappings of tensors; None and other values are left out.
        name: of the whole.
    """
    if isinstance(result, torch.Tensor):
        return {name or "output": result}
    if isinstance(result, Mapping):
        items: Iterator[tuple[str, object]] = ((str(key), value) for key, value in result.items())
    elif isinstance(result, tuple | list):
        fields = getattr(result, "_fields", None)
        items = zip(fields or map(str, range(len(result))), result, strict=True)
    else:
        return {}
    prefix = f"{name}." if name else "" if isinstance(result, Mapping) or hasattr(result, "_fields") else "output."
    tensors: dict[str, torch.Tensor] = {}
    for key, value in items:
        tensors |= named_outputs(value, prefix + key)
    return tensors


def natural_inputs(signature: Signature, batch: int, height: int, width: int, values: ValueRange) -> torch.Tensor:
    """Random images with the statistics of photographs, as the model takes them; the frames of a video pan over one."""
    frames = signature.frames or 1
    wide = natural_images(batch, signature.channels, height, width + 2 * (frames - 1))
    video = torch.stack([wide[..., 2 * t : 2 * t + width] for t in range(frames)], dim=1)
    return (video if signature.frames else video[:, 0]).contiguous() * values.peak + values.low


def natural_images(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Random images with the statistics of photographs: power that falls with frequency, edges, weak colour.

    Args:
        batch: N.
        channels: C.
        height: H in pixels.
        width: W in pixels.

    Returns:
        N,C,H,W, float32 in 0..1 on the CPU; the same for the same arguments.
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
    return torch.sigmoid(brightness + colour)
