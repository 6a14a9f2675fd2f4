"""A teacher that is a PyTorch module, whose layers are its submodules."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.fx import Graph
from torch.utils.flop_counter import FlopCounterMode

from asvp_export.errors import InputError
from asvp_export.options import DEFAULT_OPSET
from asvp_export.teacher.backends.base import (
    ExportSettings,
    Insertion,
    LayerNames,
    LayerOutputs,
    Take,
    Taps,
    dimensions_problem,
)
from asvp_export.teacher.model import Teacher

TIMED_RUNS = 3

_After = Callable[[str, object], None]
_Before = Callable[[str], None]


class TorchBackend:
    """A teacher that is a PyTorch module; see `asvp_export.teacher.backends.base.Backend`.

    Args:
        teacher: it is not changed.
        opset: in which it is exported; None: the default.
    """

    traced = True
    trainable = True

    def __init__(self, teacher: Teacher, opset: int | None = None) -> None:
        self.teacher = teacher
        self._opset = opset

    @property
    def names(self) -> LayerNames:
        """See `Backend`."""
        return self._names

    @cached_property
    def _names(self) -> LayerNames:
        modules = dict(self.teacher.module.named_modules())
        kinds = {name: _type_name(module) for name, module in modules.items()}
        return LayerNames({name: name for name in modules}, _aliases(self.teacher.module), kinds)

    @property
    def half(self) -> bool:
        """See `Backend`: a teacher's module is float32."""
        return False

    @property
    def opset(self) -> int:
        """See `Backend`."""
        return DEFAULT_OPSET if self._opset is None else self._opset

    @property
    def data_folder(self) -> Path | None:
        """See `Backend`: a trace has its data with it."""
        return None

    def outputs(self, image: torch.Tensor) -> dict[str, LayerOutputs]:
        """See `Backend`."""
        outputs: dict[str, LayerOutputs] = {}
        alive: list[torch.Tensor] = []  # so that no identity is used twice

        def note(name: str, output: object) -> None:
            layer = outputs.setdefault(name, LayerOutputs())
            problem = _output_problem(output)
            if isinstance(output, torch.Tensor) and not problem:
                layer.shapes.append(tuple(output.shape))
                version = 0 if output.is_inference() else output._version
                layer.tensors.add((id(output), version))
                alive.append(output)
            layer.problem = layer.problem or problem

        with self._hooked(note, layers=self.names.sites):
            self._run(self.teacher.inputs(image))
        return outputs

    def excluded(self, reached: Collection[str]) -> dict[str, str]:
        """See `Backend`."""
        lists = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
        return {
            name: "is a list of modules, which is never called itself"
            if isinstance(module, lists)
            else "is never called in a forward"
            for name, module in self.teacher.module.named_modules()
            if name and name not in reached
        }

    def layer_times(self, layers: Collection[str]) -> dict[str, float]:
        """See `Backend`."""
        times: dict[str, list[float]] = {name: [] for name in layers}
        for _ in range(TIMED_RUNS):
            started: dict[str, float] = {}
            ended: dict[str, float] = {}

            def start(name: str, started: dict[str, float] = started) -> None:
                started.setdefault(name, now(self.teacher.device))

            def end(name: str, _output: object, ended: dict[str, float] = ended) -> None:
                ended.setdefault(name, now(self.teacher.device))

            with self._hooked(end, start, layers):
                self._run(self.teacher.inputs(self.teacher.example()))
            for name, moment in ended.items():
                times[name].append(1000 * (moment - started[name]))
        return {name: statistics.median(values) for name, values in times.items()}

    def look(
        self, layers: Sequence[str], inputs: Sequence[tuple[torch.Tensor, ...]], take: Take, at_once: int = 64
    ) -> None:
        """See `Backend`; a module hands each map over as it makes it, whatever `at_once`."""

        def hand_over(name: str, output: object) -> None:
            if isinstance(output, torch.Tensor):
                take(name, output)

        with self._hooked(hand_over, layers=layers):
            for values in inputs:
                self._run(values)

    def insert(
        self, layers: Collection[str], weights: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[nn.Module, dict[str, nn.Module]]:
        """See `Backend`."""
        module = copied(self.teacher)
        modules = dict(module.named_modules())
        for name, value in (weights or {}).items():
            part, _, leaf = name.rpartition(".")
            setattr(modules[part], leaf, nn.Parameter(value.to(self.teacher.device), requires_grad=False))
        return module, {name: modules[name] for name in layers}

    def tap(self, module: nn.Module, sites: Mapping[str, Sequence[str]]) -> Taps:
        """See `Backend`: what follows shows when it is called."""
        parts = {layer: [module.get_submodule(site) for site in calls] for layer, calls in sites.items()}
        weighted = [
            leaf for leaf in module.modules() if not list(leaf.children()) and list(leaf.parameters(recurse=False))
        ]
        return Taps(module, parts, [(list(sites), leaf) for leaf in weighted])

    def export(self, inserted: Insertion, settings: ExportSettings) -> onnx.ModelProto:
        """See `Backend`: the copy is traced."""
        from asvp_export.teacher.backends.tracing import traced  # PyTorch's exporter takes a second to import

        return traced(self.teacher, inserted, replace(settings, opset=self.opset))

    def check_insertable(self) -> None:
        """See `Backend`: any module is."""

    def parameters(self) -> dict[str, torch.Tensor]:
        """See `Backend`."""
        return dict(self.teacher.module.named_parameters())

    def multiply_adds(self, image: torch.Tensor) -> float:
        """See `Backend`."""
        with FlopCounterMode(display=False) as counter:
            self._run(self.teacher.inputs(image))
        return counter.get_total_flops() / 2

    @contextmanager
    def halved(self, module: nn.Module) -> Iterator[nn.Module]:
        """See `Backend`; on its device."""
        yield copy.deepcopy(module).half()

    def release(self, module: nn.Module | None = None) -> None:
        """See `Backend`: no runtime holds a copy of a module's weights."""

    def _run(self, inputs: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            self.teacher.module(*inputs)

    @contextmanager
    def _hooked(self, after: _After, before: _Before | None = None, layers: Collection[str] = ()) -> Iterator[None]:
        """Within the block, each call of a layer has `before(name)` in front of it and `after(name, output)` behind."""
        handles = []
        try:
            for name, module in self.teacher.module.named_modules():
                if not name or name not in layers:
                    continue
                if before is not None:
                    handles.append(module.register_forward_pre_hook(lambda _m, _i, name=name: before(name)))
                handles.append(module.register_forward_hook(lambda _m, _i, output, name=name: after(name, output)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def copied(teacher: Teacher) -> nn.Module:
    """A copy of the module that reads the teacher's own parameters, which may be gigabytes.

    Never write into them in place: to change one, put a new Parameter in its place. Buffers, into which a forward may
    write, are copied. The fake tensors in the graphs of a .pt2 archive cannot be copied and are shared.

    Raises:
        InputError: the module cannot be copied.
    """
    graphs = [graph for part in teacher.module.modules() if isinstance(graph := getattr(part, "graph", None), Graph)]
    shared: dict[int, Any] = {id(node.meta): node.meta for graph in graphs for node in graph.nodes}
    for weight in teacher.module.parameters():
        if type(weight) is nn.Parameter:
            shared[id(weight)] = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    try:
        return copy.deepcopy(teacher.module, shared)
    except Exception as error:  # a user's module may raise anything
        raise InputError(f"{teacher.source} cannot be copied ({error}); give a state dict and --arch.") from error


def now(device: str) -> float:
    """Seconds, after everything that a device was told to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _aliases(root: nn.Module) -> dict[str, str]:
    """Every name of every module but the root; a module with two names goes under the first."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(module), name) for name, module in root.named_modules(remove_duplicate=False) if name
    }


def _type_name(module: nn.Module) -> str:
    exported = getattr(module, "type_name", None)  # modules of an unflattened archive
    name = exported() if callable(exported) else None
    return name.rpartition(".")[2] if isinstance(name, str) else type(module).__name__


def _output_problem(output: object) -> str:
    if not isinstance(output, torch.Tensor):
        items = f" of {len(output)}" if isinstance(output, (tuple, list, dict)) else ""
        return f"returns {'nothing' if output is None else f'a {type(output).__name__}{items}, not one tensor'}"
    if not output.is_floating_point():
        return f"returns {str(output.dtype).removeprefix('torch.')} numbers, not floating-point ones"
    if problem := dimensions_problem(output.shape):
        return problem
    return "returns a sparse tensor" if output.layout != torch.strided else ""
