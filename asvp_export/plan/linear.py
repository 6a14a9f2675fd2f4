"""Consumers that are linear in what they read: their least-squares problem, whatever kind of layer they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True)
class Consumer:
    """A layer that reads a protected tensor and is linear in it, y = W x + b."""

    weight: str
    """Name of W: a parameter of the module, an initializer of the graph."""

    bias: str | None
    """Name of b; None where there is none."""

    kind: str
    """"conv", "transposed" (convolution) or "linear"."""

    shape: tuple[int, ...]
    """Of the weight: (out, in / groups, *kernel); transposed (in, out / groups, *kernel); linear (out, in)."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    """Zeros on both sides of each spatial axis."""
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    input_major: bool = False
    """Of a linear one: W is stored (in, out)."""

    level: int = 0
    """How many consumers lie before it on one path; those of one level do not see each other's outputs."""

    calls: int = 1
    """How often one forward calls it."""

    @property
    def outputs(self) -> int:
        """How many channels come out."""
        if self.kind == "linear":
            return self.shape[1 if self.input_major else 0]
        return self.shape[1] * self.groups if self.kind == "transposed" else self.shape[0]

    @property
    def unknowns(self) -> int:
        """How many numbers are solved for each output channel, the bias among them."""
        return self._columns + (self.bias is not None)

    @property
    def _columns(self) -> int:
        taps = 1
        for side in self.shape[2:]:
            taps *= side
        if self.kind == "linear":
            return self.shape[0 if self.input_major else 1]
        return (self.shape[0] // self.groups if self.kind == "transposed" else self.shape[1]) * taps

    def rows(self, x: torch.Tensor, most: int | None = None) -> torch.Tensor:
        """The design matrix of an input: [groups, positions, unknowns], float64, the last column ones for a bias.

        A transposed convolution is a convolution of the input with zeros between its values, by the turned kernel.

        Args:
            x: what the consumer reads.
            most: how many positions are taken, drawn without order but the same for inputs of one size; None: all.
        """
        columns = x.reshape(1, -1, x.shape[-1]) if self.kind == "linear" else self._patches(x)
        if most is not None and columns.shape[1] > most:
            drawn = np.random.default_rng(columns.shape[1]).choice(columns.shape[1], most, replace=False)
            columns = columns[:, torch.from_numpy(np.sort(drawn)).to(columns.device)]
        columns = columns.double()
        if self.bias is None:
            return columns
        return torch.cat([columns, columns.new_ones(*columns.shape[:2], 1)], dim=2)

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride, padding, dilation = self.shape[2:], self.stride, self.padding, self.dilation
        if self.kind == "transposed":
            x, padding, stride = self._stuffed(x), (0,) * len(kernel), (1,) * len(kernel)
        if len(kernel) == 1:  # torch unfolds pictures only
            x, kernel, stride, padding, dilation = (
                x[..., None],
                (*kernel, 1),
                (*stride, 1),
                (*padding, 0),
                (*dilation, 1),
            )
        patches = functional.unfold(x, kernel, dilation, padding, stride)  # N, channels * taps, positions
        grouped = patches.unflatten(1, (self.groups, -1))
        return grouped.permute(1, 0, 3, 2).flatten(1, 2)

    def _stuffed(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros between the values, and around them what the turned kernel reaches; padding takes from it."""
        shape = [*x.shape[:2], *((side - 1) * s + 1 for side, s in zip(x.shape[2:], self.stride, strict=True))]
        wide = x.new_zeros(shape)
        wide[(..., *(slice(None, None, s) for s in self.stride))] = x
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.shape[2:], strict=True)]
        sides = [(r - p, r - p + o) for r, p, o in zip(reach, self.padding, self.output_padding, strict=True)]
        return functional.pad(wide, [amount for pair in reversed(sides) for amount in pair])

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Weight and bias as the solution of the problem: [groups, unknowns, outputs / groups], float64."""
        weight = weight.double()
        if self.kind == "linear":
            packed = (weight if self.input_major else weight.T)[None]
        elif self.kind == "conv":
            packed = weight.unflatten(0, (self.groups, -1)).flatten(2).transpose(1, 2)
        else:
            turned = weight.flip(list(range(2, weight.ndim))).unflatten(0, (self.groups, -1))  # g, in/g, out/g, *kernel
            packed = turned.transpose(1, 2).flatten(2).transpose(1, 2)
        if bias is None:
            return packed
        return torch.cat([packed, bias.double().reshape(self.groups, 1, -1)], dim=1)

    def unpack(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The inverse of `pack`."""
        bias = packed[:, -1].flatten() if self.bias is not None else None
        packed = packed[:, : self._columns]
        if self.kind == "linear":
            return (packed[0] if self.input_major else packed[0].T).contiguous(), bias
        if self.kind == "conv":
            return packed.transpose(1, 2).reshape(self.shape).contiguous(), bias
        inputs, kernel = self.shape[0] // self.groups, self.shape[2:]
        turned = packed.transpose(1, 2).unflatten(2, (inputs, *kernel)).transpose(1, 2)  # g, in/g, out/g, *kernel
        return turned.flatten(0, 1).flip(list(range(2, turned.ndim - 1))).contiguous(), bias


def reaches(target: str) -> str:
    """Why a layer cannot be compensated: nothing on the way to the target can be re-solved."""
    return f"it reaches {target} without a layer to re-solve"


def not_linear(reader: str) -> str:
    """Why a layer cannot be compensated: what reads it is not linear."""
    return f"{reader} reads it, which is not linear"


def reads_others(weight: str) -> str:
    """Why a layer cannot be compensated: what reads it is used for other maps too."""
    return f"{weight} also reads maps that are not protected"


def consumers_by_layer(
    linear: Mapping[str, tuple[Consumer, frozenset[str]]], layers: Iterable[str], reasons: dict[str, str]
) -> dict[str, list[Consumer]]:
    """Layer to its linear consumers, without the layers that cannot be compensated.

    Args:
        linear: by the name of the weight: a consumer, and the layers that it reads.
        layers: all of them.
        reasons: layer to why it cannot be compensated; the layers that nothing reads are added.
    """
    consumers = {
        layer: [consumer for consumer, carried in linear.values() if layer in carried]
        for layer in layers
        if layer not in reasons
    }
    reasons |= {layer: "nothing reads it" for layer, readers in consumers.items() if not readers}
    return {layer: readers for layer, readers in consumers.items() if readers}


@dataclass
class Consumers:
    """What reads the protected tensors."""

    by_layer: dict[str, list[Consumer]] = field(default_factory=dict)
    """Layer to its linear consumers, in the order of the forward; none where one of its readers is not linear."""

    reasons: dict[str, str] = field(default_factory=dict)
    """Layer to why it cannot be compensated."""

    behind: tuple[str, ...] = ()
    """Every parameter that is used behind a protected tensor."""

    def of(self, layers: Sequence[str]) -> list[Consumer]:
        """The consumers of these layers, each once, in the order of the forward."""
        by_weight = {consumer.weight: consumer for layer in layers for consumer in self.by_layer.get(layer, ())}
        return sorted(by_weight.values(), key=lambda consumer: consumer.level)
