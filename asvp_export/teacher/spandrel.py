"""Telling the architecture of a bare state dict, with spandrel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError, summary
from asvp_export.signature import Signature, SizeRule, following
from asvp_export.teacher.checkpoint import Weights
from asvp_export.teacher.fitting import Part, guesses, refuse_ties, weights_assumed
from asvp_export.teacher.model import Architecture

_GIVE = "give --arch package.module:factory (or path/nets.py:factory)"


@dataclass(frozen=True)
class Recognised:
    """A module with its weights, and what its architecture states."""

    module: nn.Module
    """Takes the image (and the mask, where it has one), returns the image; layers have the architecture's own names."""

    architecture: Architecture
    """What is known of it."""

    assumptions: tuple[Assumption, ...] = ()
    """Which of the file's weights were taken, where there was something to choose."""


def recognise(state_dicts: Sequence[Weights], path: Path) -> Recognised:
    """Find the architecture that a state dict belongs to, and load the state dict into it.

    spandrel is handed tensors and their names; it never opens the file.

    Args:
        state_dicts: the state dicts in the file, as `checkpoint.find` returns them.
        path: the file, for messages.

    Returns:
        The module and what is known of it.

    Raises:
        InputError: spandrel cannot be imported, knows no such architecture, the weights do not fit the one it sees, or
            it knows several of them, and none is likelier than the others.
    """
    spandrel = _spandrel(path, len(state_dicts[0].state))
    registry = spandrel.MAIN_REGISTRY.architectures("detection")
    candidates = [
        (part, support)
        for weights in state_dicts
        for part in guesses(weights)
        for support in registry
        if support.detect(part.state)
    ]
    failed = ""
    for index, (part, support) in enumerate(candidates):
        try:
            descriptor = support.architecture.load(dict(part.state))
        except Exception as error:  # its loaders compute with names and shapes, and raise whatever that raises
            failed = failed or f"looks like {support.architecture.name}, but does not load as that ({summary(error)})"
            continue
        parts = _apart([part, *(later for later, _ in candidates[index + 1 :])])
        refuse_ties(parts, "spandrel recognises", path)
        because = f"spandrel recognises {support.architecture.name} in these names"
        described = _described(descriptor, spandrel)
        return replace(described, assumptions=weights_assumed(parts, state_dicts, because, "be recognised"))
    problem = failed or "is of an architecture that spandrel does not recognise"
    raise InputError(f"{path}, a state dict of {len(state_dicts[0].state)} tensors, {problem}: {_GIVE}.")


def _apart(parts: Sequence[Part]) -> list[Part]:
    """The first reading and those that share no weights with it."""
    first = parts[0]
    others: dict[str, Part] = {}
    for part in parts[1:]:
        inner = part.prefix.startswith(first.prefix) or first.prefix.startswith(part.prefix)
        if part.weights is not first.weights or not inner:
            others.setdefault(part.key, part)
    return [first, *others.values()]


def spandrel_signature(architecture: Architecture) -> Signature:
    """The inputs of a recognised architecture: the image, and the mask of one that fills in."""
    others = ()
    if architecture.masked:
        mask = np.zeros((1, 1, 64, 64), np.float32)
        mask[..., 16:40, 24:48] = 1
        others = (following("mask", mask, (1, architecture.channels, 64, 64)),)
    return Signature(channels=architecture.channels, others=others)


def _spandrel(path: Path, tensors: int) -> Any:
    try:
        import spandrel  # pyright: ignore[reportMissingImports]  an extra
    except ModuleNotFoundError as error:
        if error.name == "spandrel":
            raise InputError(
                f"{path} is a state dict of {tensors} tensors without its architecture: install asvp-export[spandrel], "
                f"which recognises the common ones, or {_GIVE}."
            ) from error
        raise InputError(
            f"spandrel, which recognises architectures, lacks a package that it needs ({error}): install that, or "
            f"{_GIVE}."
        ) from error
    except Exception as error:  # torchvision raises RuntimeError when it was built for another PyTorch
        raise InputError(
            f"spandrel, which recognises architectures, cannot be imported ({summary(error)}): reinstall torchvision "
            f"so that it fits PyTorch {torch.__version__}, or {_GIVE}."
        ) from error
    return spandrel


def _described(descriptor: Any, spandrel: Any) -> Recognised:
    size = descriptor.size_requirements
    architecture = Architecture(
        name=descriptor.architecture.name,
        purpose=descriptor.purpose,
        tiling=descriptor.tiling.name.lower(),
        supports_half=descriptor.supports_half,
        channels=descriptor.input_channels,
        scale=descriptor.scale,
        size=SizeRule(max(size.minimum, size.multiple_of), size.multiple_of, size.square),
        masked=isinstance(descriptor, spandrel.MaskedImageModelDescriptor),
    )
    return Recognised(_called(descriptor.model, descriptor._call_fn), architecture)


def _called(module: nn.Module, call: Callable[..., torch.Tensor]) -> nn.Module:
    """A module whose call is `call(module, image)`: some return more than the image, or work in other values.

    An instance of a subclass with the module's own state, as a copy of it would be: a wrapper around it would change
    the names of the layers.
    """
    if call.__module__ == "spandrel.__helpers.model_descriptor":  # the default, which calls the module
        return module
    kind = type(module)

    def forward(self: nn.Module, image: torch.Tensor) -> torch.Tensor:
        return call(_Plain(self, kind), image)

    subclass: type[nn.Module] = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    called = subclass.__new__(subclass)
    called.__dict__.update(module.__dict__)
    return called


class _Plain:
    """A module as `call` expects it: calling it runs the architecture's own forward."""

    def __init__(self, module: nn.Module, kind: type[nn.Module]) -> None:
        self._module = module
        self._kind = kind

    def __call__(self, *inputs: Any) -> Any:
        return self._kind.forward(self._module, *inputs)

    forward = __call__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
