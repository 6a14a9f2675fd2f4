"""The student: a user's own architecture or a small one of ours, and which of its layers are taught."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from asvp_export.errors import InputError, summary
from asvp_export.teacher.architecture import build
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.model import Teacher, named_outputs

_WIDTH, _BLOCKS = 16, 6

_COMPACT_SOURCE = "cf5febea21334c8c1417c7c29c0c15156bfffc308156203c712b733f005b049b"
"""Stands for `source_hash(Compact)` in the keys of the cache, so that other changes of this file retrain no student.
Change it together with `Compact`."""


class Compact(nn.Module):
    """The student where none is named: residual blocks at the input's size, the residual added to the enlarged input.

    Args:
        channels: of the image.
        scale: output height by input height, a whole number.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(channels, _WIDTH, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1))
            for _ in range(_BLOCKS)
        )
        self.tail = nn.Conv2d(_WIDTH, channels * scale**2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restore [N, C, H, W] in 0..1."""
        features = self.head(x)
        for block in self.body:
            features = features + block(features)
        base = x if self.scale == 1 else functional.interpolate(x, scale_factor=float(self.scale), mode="bilinear")
        return base + functional.pixel_shuffle(self.tail(features), self.scale)


@dataclass(frozen=True)
class Student:
    """How to make one, the same for the same seed; a value that other processes understand.

    The text of this object goes into the keys of the cache: names of the class and of its fields stay.
    """

    factory: str
    """"package.module:factory" or "path/nets.py:factory", "" for `Compact`."""

    arguments: str
    """Of the factory, as JSON."""

    channels: int
    """C of the image."""

    scale: int
    """Output height by input height; 0 where it is no whole number, which `Compact` does not do."""

    taught: tuple[str, ...] = ()
    """For each protected layer of the teacher, the student's layer that imitates it."""

    def make(self, seed: int) -> nn.Module:
        """A new student in training mode; images and outputs in 0..1.

        Raises:
            InputError: the factory cannot be used.
        """
        torch.manual_seed(seed)
        if self.factory:
            return build(self.factory, json.loads(self.arguments)).float().train()
        if not self.scale:
            raise InputError(
                "The teacher's scale is not a whole number, which the built-in students need; name a student with "
                "--student."
            )
        return Compact(self.channels, self.scale).train()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its layers' names, shapes and source code."""
        module = self.make(0)
        portable = replace(self, factory=PurePath(self.factory).name)  # the same from any folder
        source = source_hash(module) if self.factory else _COMPACT_SOURCE
        return hashlib.sha256(f"{portable}{module}{source}".encode()).hexdigest()


def source_hash(module: nn.Module) -> str:
    """SHA-256 of the names and the source code of all classes in a module that are not PyTorch's own."""
    digest = hashlib.sha256()
    for kind in sorted({type(part) for part in module.modules()}, key=lambda kind: kind.__qualname__):
        if not kind.__module__.startswith("torch."):
            digest.update(kind.__qualname__.encode() + _source(kind))
    return digest.hexdigest()


def _source(kind: type) -> bytes:
    try:
        return inspect.getsource(sys.modules.get(kind.__module__) or kind).encode()
    except (OSError, TypeError):  # made without a file
        return kind.__qualname__.encode()


def student_for(
    teacher: Teacher,
    layers: Sequence[str],
    factory: str = "",
    arguments: dict[str, Any] | None = None,
    images: torch.Tensor | None = None,
) -> Student:
    """Find the layers that imitate the protected ones: those of the same name, else those at the same relative depth.

    Args:
        teacher: whose layers are protected.
        layers: their names.
        factory: as for `Student`.
        arguments: of the factory.
        images: [N, C, h, w] in 0..1 to run it on; by default the teacher's example.

    Raises:
        InputError: the factory cannot be used, or what it makes does not restore an image as the teacher does.
    """
    scale = Fraction(teacher.scale)
    whole_scale = int(scale) if scale.denominator == 1 else 0
    untaught = Student(factory, json.dumps(arguments or {}, sort_keys=True), teacher.channels, whole_scale)
    module = untaught.make(0).eval()
    x = teacher.example(64, 64).cpu() if images is None else images
    maps = _feature_maps(module, x, scale, factory)
    weighted = [name for name, has_weights in maps.items() if has_weights]
    taught = []
    for layer in layers:
        depth = _depth(teacher, layer)
        taught.append(layer if layer in maps else weighted[min(int(depth * len(weighted)), len(weighted) - 1)])
    return Student(untaught.factory, untaught.arguments, untaught.channels, untaught.scale, tuple(taught))


def check_student(student: Student, teacher: Teacher, images: Iterable[torch.Tensor | np.ndarray]) -> None:
    """Run it on images of all the sizes that it will get, before the long work.

    Raises:
        InputError: it does not take one of them, or does not restore it as the teacher does.
    """
    module = student.make(0).eval()
    for shape in sorted({(1, *image.shape[1:]) for image in images}):
        _feature_maps(module, torch.zeros(shape), Fraction(teacher.scale), student.factory)


def _feature_maps(module: nn.Module, x: torch.Tensor, scale: Fraction, factory: str) -> dict[str, bool]:
    """Names of the layers that give [N, C, H, W], as they are called; true for those with weights of their own."""
    maps: dict[str, bool] = {}

    def hook(name: str, weighted: bool):
        def record(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4:
                maps.setdefault(name, weighted)

        return record

    handles = [
        layer.register_forward_hook(hook(name, bool(list(layer.parameters(recurse=False)))))
        for name, layer in module.named_modules()
        if name
    ]
    name = factory or "the student"
    try:
        with torch.inference_mode():
            output = next(iter(named_outputs(module(x)).values()))
    except Exception as error:  # a user's module may raise anything
        raise InputError(f"{name} cannot be run on an image of {tuple(x.shape)}: {summary(error)}.") from error
    finally:
        for handle in handles:
            handle.remove()
    expected = (x.shape[0], x.shape[1], *(int(side * scale) for side in x.shape[2:]))
    if tuple(output.shape) != expected:
        raise InputError(
            f"{name} gives {tuple(output.shape)} for an input of {tuple(x.shape)}, and the teacher gives {expected}; "
            "name another student."
        )
    if not any(maps.values()):
        raise InputError(f"{name} has no layer with a feature map N,C,H,W; name another student.")
    return maps


def _depth(teacher: Teacher, layer: str) -> float:
    names = list(open_backend(teacher).names.sites)
    return names.index(layer) / len(names) if layer in names else 0.5
