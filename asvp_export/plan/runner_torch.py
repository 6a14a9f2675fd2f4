"""A PyTorch module as a runner: what lies before the nodes is computed once."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from asvp_export.plan.calibration import Inputs
from asvp_export.plan.consumers_torch import CONSUMING, operands, plain_name, torch_consumers
from asvp_export.plan.linear import Consumer
from asvp_export.plan.runner import CACHE, Nodes, Values
from asvp_export.teacher.backends.torch_backend import copied
from asvp_export.teacher.model import Teacher, named_outputs


class TorchRunner:
    """A teacher that is a PyTorch module.

    Args:
        teacher: it is not changed.
        layers: that may carry nodes.
        inputs: all that will be run.
    """

    def __init__(self, teacher: Teacher, layers: Sequence[str], inputs: Sequence[Inputs]) -> None:
        self.passes = 0
        self._module = copied(teacher)
        self._inputs = inputs
        self._sites = {layer: self._module.get_submodule(layer) for layer in layers}
        self._nodes: Nodes = {}
        self._maps: dict[str, list[torch.Tensor]] | None = None
        self._starts: dict[int, _Start] = {}
        self._room = CACHE
        self.consumers = torch_consumers(self._module, list(layers), teacher.inputs(teacher.example()))
        for layer, site in self._sites.items():
            site.register_forward_hook(self._node(layer))

    def value(self, name: str) -> torch.Tensor:
        """See `CalibrationRunner`."""
        return self._module.get_parameter(name).detach()

    def outputs(self, i: int, nodes: Nodes | None = None, weights: Values | None = None) -> list[torch.Tensor]:
        """See `CalibrationRunner`."""
        outputs = named_outputs(self._run(i, nodes or {}, weights or {}))
        return [output for output in outputs.values() if output.is_floating_point()]

    def maps(self, i: int) -> dict[str, list[torch.Tensor]]:
        """See `CalibrationRunner`."""
        self._maps = {layer: [] for layer in self._sites}
        try:
            self._run(i, {}, {})
            return self._maps
        finally:
            self._maps = None

    def inputs_of(
        self, i: int, consumers: Sequence[Consumer], nodes: Nodes | None = None, weights: Values | None = None
    ) -> dict[str, list[torch.Tensor]]:
        """See `CalibrationRunner`."""
        changed = weights or {}
        names: dict[int, str] = {}
        for consumer in consumers:
            weight = changed.get(consumer.weight, self._module.get_parameter(consumer.weight))
            names[id(weight)] = consumer.weight
        read = {consumer.weight: [] for consumer in consumers}
        self._recorded(i)  # first: what it runs must not be caught
        with suppress(_EnoughError), _Catch(names, read, sum(consumer.calls for consumer in consumers)):
            self._run(i, nodes or {}, changed)
        return read

    def release(self) -> None:
        """See `CalibrationRunner`."""
        self._starts.clear()
        self._room = CACHE

    def _node(self, layer: str):
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor | None:
            if self._maps is not None:
                self._maps[layer].append(output)
            node = self._nodes.get(layer)
            return None if node is None else torch.ops.asvp.perturb(output, **node.attributes())

        return hook

    def _run(self, i: int, nodes: Nodes, weights: Values) -> object:
        self.passes += 1
        self._nodes = nodes
        trained = any(weight.requires_grad for weight in weights.values())
        try:
            with torch.inference_mode(False), torch.set_grad_enabled(trained), self._recorded(i).replayed():
                if not weights:
                    return self._module(*self._inputs[i])
                return torch.func.functional_call(self._module, dict(weights), self._inputs[i], tie_weights=False)
        finally:
            self._nodes = {}

    def _recorded(self, i: int) -> _Start:
        """The calls that end before the first node acts, and what they returned, from one plain pass of an input."""
        if i not in self._starts:
            start = _Start(set(self._sites.values()))
            nodes, self._nodes = self._nodes, {}
            try:
                with torch.no_grad(), start.recording(self._module):
                    self._module(*self._inputs[i])
            finally:
                self._nodes = nodes
            self.passes += 1
            self._starts[i] = start if start.bytes <= self._room else _Start(set())
            self._room -= self._starts[i].bytes
        return self._starts[i]


class _Start:
    """What a forward computes before the first node: the outermost module calls that have returned by then."""

    def __init__(self, sites: set[nn.Module]) -> None:
        self._sites = sites
        self._calls: list[tuple[nn.Module, Any, list[int]]] = []

    @property
    def bytes(self) -> int:
        """Of the outputs that are kept."""
        return sum(leaf.numel() * leaf.element_size() for _, output, _ in self._calls for leaf in _tensors(output))

    @contextmanager
    def recording(self, module: nn.Module):
        """Within the block a forward of the module is recorded."""
        starts: list[int] = []
        site_reached = False

        def before(part: nn.Module, inputs: object) -> None:
            if not site_reached:
                starts.append(len(self._calls))

        def after(part: nn.Module, inputs: object, output: Any) -> None:
            nonlocal site_reached
            if site_reached:
                return
            del self._calls[starts.pop() :]
            self._calls.append((part, output, _versions(output)))
            site_reached = part in self._sites

        hooks = [part.register_forward_pre_hook(before) for part in module.modules()]
        hooks += [part.register_forward_hook(after) for part in module.modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if any(versions != _versions(output) for _, output, versions in self._calls):
            self._calls.clear()  # a later layer worked in place: what was returned is gone

    @contextmanager
    def replayed(self):
        """Within the block these calls return at once what they returned then."""
        waiting: dict[nn.Module, deque[Any]] = {}
        for part, output, _ in self._calls:
            waiting.setdefault(part, deque()).append(output)
        for part, outputs in waiting.items():
            part.forward = _Replayed(part.forward, outputs)
        try:
            yield
        finally:
            for part in waiting:
                del part.__dict__["forward"]


class _Replayed:
    def __init__(self, forward: Any, outputs: deque[Any]) -> None:
        self._forward, self._outputs = forward, outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _cloned(self._outputs.popleft()) if self._outputs else self._forward(*args, **kwargs)


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _versions(output: Any) -> list[int]:
    """How often each tensor was written to."""
    return [leaf._version for leaf in _tensors(output)]


def _cloned(output: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, output)


class _EnoughError(Exception):
    """Ends a forward once every call has been read."""


class _Catch(TorchFunctionMode):
    """Keeps what is read by the calls that take certain weights, and ends the forward with the last of them."""

    def __init__(self, names: Mapping[int, str], read: dict[str, list[torch.Tensor]], calls: int) -> None:
        super().__init__()
        self._names, self._read, self._calls_left = names, read, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = plain_name(func)
        if name in CONSUMING:
            data, weight = operands(name, args, kwargs)
            base = weight if weight._base is None else weight._base
            if (weight_name := self._names.get(id(weight), self._names.get(id(base)))) is not None:
                self._read[weight_name].append(data.clone())
                self._calls_left -= 1
                if not self._calls_left:
                    raise _EnoughError
        return func(*args, **kwargs)
