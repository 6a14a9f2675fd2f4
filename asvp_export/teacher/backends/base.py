"""What a teacher can do, whether its layers are modules or tensors of a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import onnx
import torch
from torch import nn

from asvp_export.operator import Perturbation
from asvp_export.signature import shape_text

TRACED = (61, 91)
"""Height and width that are traced. They are no multiple of a window, so that padding gets into the graph; at 64 x 96
there would be none."""

Take = Callable[[str, torch.Tensor], None]
"""Called with a layer's name and one of its feature maps."""


@dataclass(frozen=True)
class LayerNames:
    """The layers of a teacher and what they are called, whether they can carry a node or not."""

    sites: dict[str, str]
    """Layer name to the module or the tensor behind which its node goes. The root module, "", cannot be chosen."""

    aliases: dict[str, str]
    """Every name under which a layer can be asked for, to the one under which it goes."""

    kinds: dict[str, str]
    """The class of each module, or the operator that makes each tensor."""

    elsewhere: dict[str, str] = field(default_factory=dict)
    """Names in the file that are no layers, and what they are."""

    separator: str = "."
    """What stands between the parts of a name."""


@dataclass
class LayerOutputs:
    """What the calls of one layer returned in one run."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    """Of each call's output."""

    problem: str = ""
    """Why the output of a call cannot carry a node."""

    tensors: set[tuple[int, int]] = field(default_factory=set)
    """Identity and version of each output: an in-place ReLU returns the same tensor in a new version."""


@dataclass(frozen=True)
class Insertion:
    """A copy of a teacher's model that carries nodes."""

    module: nn.Module
    """What `Backend.insert` made; the nodes are forward hooks on its parts."""

    nodes: Mapping[str, Perturbation]
    """Layer name to its node, in the order in which layers are called first."""

    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Values in the place of the teacher's own, by name."""


@dataclass(frozen=True)
class Taps:
    """A module whose feature maps can be read and replaced, by forward hooks on its parts."""

    module: nn.Module
    """The one to run."""

    parts: Mapping[str, Sequence[nn.Module]]
    """Layer to the parts that give its feature maps."""

    followers: Sequence[tuple[Collection[str], nn.Module]]
    """Layers, and a part with weights: the next one behind each of them, where it is the first of these to be called
    after it."""


@dataclass(frozen=True)
class ExportSettings:
    """Which model an export writes."""

    opset: int | None = None
    """Of the default domain, 18 to 26; None: that of an ONNX original, else the default."""

    static: tuple[int, int] | None = None
    """Height and width to freeze, with a batch of 1; None leaves batch, height and width free."""

    data_folder: Path | None = None
    """Where a module's weights are written if they are over 2 GiB, so that memory holds them once; None: they go into
    the model, whatever their size."""

    traced_at: tuple[int, int] = TRACED
    """Height and width at which a module is traced where they are free."""


class Backend(Protocol):
    """A teacher that can run; `asvp_export.teacher.backends.open_backend` makes it.

    What a run raises is what the model raises: RuntimeError and MemoryError of a graph, anything of a module.
    """

    traced: bool
    """Whether an export traces it: then the file has the names of its layers, and sizes may freeze on the way. A graph
    goes out as it stands."""

    trainable: bool
    """Whether gradients reach its weights."""

    @property
    def names(self) -> LayerNames:
        """Its layers."""
        ...

    @property
    def half(self) -> bool:
        """Whether its weights are float16."""
        ...

    @property
    def opset(self) -> int:
        """The opset of what it is exported to."""
        ...

    @property
    def data_folder(self) -> Path | None:
        """Where the data lies that a file to be exported refers to."""
        ...

    def outputs(self, image: torch.Tensor) -> dict[str, LayerOutputs]:
        """Run once and note what each layer returned, in the order in which the outputs appear.

        Args:
            image: [N, C, H, W].
        """
        ...

    def excluded(self, reached: Collection[str]) -> dict[str, str]:
        """Layers that cannot carry a node whatever they return, and why.

        Args:
            reached: those that returned something in a run.
        """
        ...

    def layer_times(self, layers: Collection[str]) -> dict[str, float]:
        """Milliseconds of each layer's first call on the example image, the median of a few runs."""
        ...

    def look(
        self, layers: Sequence[str], inputs: Sequence[tuple[torch.Tensor, ...]], take: Take, at_once: int = 64
    ) -> None:
        """Hand each feature map of some layers over, call by call and input by input; none is kept.

        Args:
            layers: by name.
            inputs: all inputs of the model, each time.
            take: gets the maps.
            at_once: how many of a graph's tensors may be in memory together.
        """
        ...

    def insert(
        self, layers: Collection[str], weights: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[nn.Module, dict[str, nn.Module]]:
        """A copy of the model in which the output of some layers can be replaced.

        Args:
            layers: by name.
            weights: values that take the place of the copy's own, by name.

        Returns:
            A drop-in replacement of the teacher's module, and for each layer the part of it whose output, after the
            forward hooks, is what the readers of the layer get.
        """
        ...

    def tap(self, module: nn.Module, sites: Mapping[str, Sequence[str]]) -> Taps:
        """Open a module for reading and replacing feature maps.

        Args:
            module: a copy that `insert` made; of a graph any other too.
            sites: layer to the modules, or tensors, that give its feature maps.
        """
        ...

    def export(self, inserted: Insertion, settings: ExportSettings) -> onnx.ModelProto:
        """Write a copy with nodes as ONNX, with the operator's function body attached.

        Args:
            inserted: made by `insert`, with the nodes on it.
            settings: which file is wanted.

        Returns:
            A model with the inputs and outputs of the teacher's signature, no doc strings, and no metadata.

        Raises:
            InputError: an opset that is not written, or a teacher whose sizes cannot be left free.
            AsvpError: the exporter does not take the module.
        """
        ...

    def check_insertable(self) -> None:
        """Refuse a graph of a version that nodes cannot go into.

        Raises:
            InputError: it is one.
        """
        ...

    def parameters(self) -> dict[str, torch.Tensor]:
        """The weights that may be replaced, by name; of a graph only their shapes are there."""
        ...

    def multiply_adds(self, image: torch.Tensor) -> float:
        """Multiply-adds of convolutions and matrix products in one run."""
        ...

    def halved(self, module: nn.Module) -> AbstractContextManager[nn.Module]:
        """Within the block: a copy that `insert` made, with its nodes, in float16 weights and feature maps.

        Raises:
            InputError, AsvpError: a graph that cannot become one.
        """
        ...

    def release(self, module: nn.Module | None = None) -> None:
        """Give back the memory in which a runtime holds the weights; the next run takes it again.

        Args:
            module: a copy that `insert` made, whose memory is given back too.
        """
        ...


def dimensions_problem(shape: Sequence[int]) -> str:
    """Why an output with so many dimensions cannot carry a node, "" where it can."""
    if len(shape) >= 3:
        return ""
    return f"returns a {len(shape)}-D tensor ({shape_text(shape) or 'no dimensions'}), not a feature map"
