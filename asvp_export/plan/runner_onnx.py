"""An ONNX graph as a runner: what lies before the nodes is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper

from asvp_export.onnx_graph.contents import named_tensors, reads, stored_weights
from asvp_export.operator import Perturbation
from asvp_export.plan.calibration import Inputs
from asvp_export.plan.consumers_onnx import constants, onnx_consumers
from asvp_export.plan.linear import Consumer, Consumers
from asvp_export.plan.runner import CACHE, Nodes, Values
from asvp_export.teacher.onnx_model import OnnxModule, array, described, guarded, tensor_of

_Targets = tuple[str, ...]


class OnnxRunner:
    """The graph of a teacher; see `asvp_export.plan.runner.CalibrationRunner`.

    The graph runs in stages, from one protected tensor to the next: what a stage makes and a later one reads is handed
    on, and what the first one makes, before any node, is kept.

    Args:
        graph: it is not changed.
        layers: that may carry nodes.
        inputs: all that will be run.
    """

    def __init__(self, graph: OnnxModule, layers: Sequence[str], inputs: Sequence[Inputs]) -> None:
        self.passes = 0
        self._graph, self._inputs = graph, inputs
        names, _ = named_tensors(graph.model)
        self._cuts = {names[layer]: layer for layer in layers}
        consumers = onnx_consumers(graph.model, {layer: names[layer] for layer in layers})
        self.consumers: Consumers = consumers
        self._data = consumers.data
        self._stored = stored_weights(graph.model)
        readers = [consumer for of_layer in consumers.by_layer.values() for consumer in of_layer]
        self._solved = {name for consumer in readers for name in (consumer.weight, consumer.bias) if name}
        self._originals: dict[str, torch.Tensor] = {}
        self._stages = _Stages(graph.model, self._cuts)
        data = [name for consumer in readers for name in self._data[consumer.weight]]
        self._all = tuple(dict.fromkeys((*graph.output_names, *self._cuts, *data)))
        self._stage_outputs: dict[_Targets, list[list[str]]] = {}
        self._opened: dict[tuple[int, _Targets, bool], ort.InferenceSession] = {}
        self._starts: dict[int, dict[str, torch.Tensor]] = {}
        self._room = CACHE

    def value(self, name: str) -> torch.Tensor:
        """See `CalibrationRunner`."""
        if name not in self._originals:
            stored = numpy_helper.to_array(self._stored[name], str(self._graph.folder or ""))
            self._originals[name] = torch.from_numpy(np.array(stored))
        return self._originals[name]

    def outputs(self, i: int, nodes: Nodes | None = None, weights: Values | None = None) -> list[torch.Tensor]:
        """See `CalibrationRunner`."""
        names = self._graph.output_names
        values = self._run(i, names, nodes or {}, weights or {})
        return [values[name] for name in names if values[name].is_floating_point()]

    def maps(self, i: int) -> dict[str, list[torch.Tensor]]:
        """See `CalibrationRunner`."""
        values = self._run(i, tuple(self._cuts), {}, {})
        return {layer: [values[name]] for name, layer in self._cuts.items()}

    def inputs_of(
        self, i: int, consumers: Sequence[Consumer], nodes: Nodes | None = None, weights: Values | None = None
    ) -> dict[str, list[torch.Tensor]]:
        """See `CalibrationRunner`."""
        data = {consumer.weight: self._data[consumer.weight] for consumer in consumers}
        targets = tuple(dict.fromkeys(name for names in data.values() for name in names))
        values = self._run(i, targets, nodes or {}, weights or {})
        return {weight: [values[name] for name in names] for weight, names in data.items()}

    def release(self) -> None:
        """See `CalibrationRunner`."""
        self._starts.clear()
        self._opened.clear()
        self._room = CACHE

    def _run(self, i: int, targets: _Targets, nodes: Nodes, weights: Values) -> dict[str, torch.Tensor]:
        """Some tensors for an input, and what was made on the way to them."""
        self.passes += 1
        values = self._graph.cast(self._inputs[i])
        values |= self._perturbed(self._start(i, values), nodes)
        changed = {name: weights.get(name, self.value(name)).to(self.value(name).dtype) for name in self._solved}
        if targets not in self._stage_outputs:
            self._stage_outputs[targets] = self._stages.outputs(targets)
        for stage, names in enumerate(self._stage_outputs[targets]):
            if stage and names:
                computed = self._stage(stage, names, targets, values, changed if weights else {})
                values |= self._perturbed(computed, nodes)
        return values

    def _start(self, i: int, values: Values) -> dict[str, torch.Tensor]:
        """What is made before any node."""
        if i in self._starts:
            return self._starts[i]
        computed = self._stage(0, self._stages.outputs(self._all)[0], self._all, values, {})
        size = sum(tensor.numel() * tensor.element_size() for tensor in computed.values())
        if size <= self._room:
            self._room -= size
            self._starts[i] = computed
        return computed

    def _stage(
        self, stage: int, names: Sequence[str], targets: _Targets, values: Values, weights: Values
    ) -> dict[str, torch.Tensor]:
        """What one stage makes; changed weights are inputs of it, so that a session serves all their values."""
        if not names:
            return {}
        key = (stage, targets, bool(weights))
        feeds = {**values, **weights}
        if key not in self._opened:
            input_names = self._graph.input_names
            extra_inputs = [described(name, value) for name, value in feeds.items() if name not in input_names]
            self._opened[key] = self._graph.session(names, extra_inputs)
        opened = self._opened[key]
        session_inputs = (*opened.get_inputs(), *opened.get_overridable_initializers())
        fed = {value.name: array(feeds[value.name]) for value in session_inputs if value.name in feeds}
        return dict(zip(names, map(tensor_of, names, guarded(opened.run, list(names), fed)), strict=True))

    def _perturbed(self, values: Values, nodes: Mapping[str, Perturbation]) -> dict[str, torch.Tensor]:
        """The same, with the nodes in place."""
        changed = dict(values)
        for name, value in values.items():
            if (node := nodes.get(self._cuts.get(name, ""))) is not None:
                changed[name] = torch.ops.asvp.perturb(value, **node.attributes())
        return changed


class _Stages:
    """Which node of a graph runs behind how many protected tensors."""

    def __init__(self, model: onnx.ModelProto, cuts: Mapping[str, str]) -> None:
        self._nodes = list(model.graph.node)
        self._stage: list[int] = []  # of each node
        self._maker: dict[str, int] = {}
        # computed wherever they are needed: what is the same for every input, and what is no tensor
        self._anew = constants(model) - set(cuts)
        behind: dict[str, int] = {}
        for index, node in enumerate(self._nodes):
            stage = max((behind.get(name, 0) for name in reads(node)), default=0)
            self._stage.append(stage)
            for name in filter(None, node.output):
                self._maker[name] = index
                behind[name] = stage + (name in cuts)
            if node.op_type in ("SplitToSequence", "SequenceConstruct", "SequenceInsert", "SequenceEmpty", "Optional"):
                self._anew |= set(node.output)

    def outputs(self, targets: Sequence[str]) -> list[list[str]]:
        """For each stage what it has to make, so that the targets come out."""
        outputs: list[set[str]] = [set() for _ in range(max(self._stage, default=0) + 1)]
        waiting, visited = [], set()

        def need(name: str, stage: int) -> None:
            if name in self._maker:
                index = self._maker[name]
                waiting.append(index)
                if stage > self._stage[index]:
                    outputs[self._stage[index]].add(name)

        for name in targets:
            need(name, len(outputs))
        while waiting:
            index = waiting.pop()
            if index in visited:
                continue
            visited.add(index)
            for name in self._handed(index):
                need(name, self._stage[index])
        return [sorted(names, key=lambda name: (self._maker[name], name)) for names in outputs]

    def _handed(self, index: int) -> Iterator[str]:
        """What a node's stage needs: the tensors that the node reads, or what a recomputed one is made from."""
        for name in reads(self._nodes[index]):
            if name not in self._anew:
                yield name
            elif name in self._maker:
                yield from self._handed(self._maker[name])
