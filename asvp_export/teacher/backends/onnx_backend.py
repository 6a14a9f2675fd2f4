"""A teacher that is an ONNX graph, or became one (TorchScript); its layers are tensors of the main graph."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from asvp_export.errors import InputError
from asvp_export.onnx_graph.contents import (
    PRODUCTS,
    graphs_in,
    is_half,
    named_tensors,
    next_weighted,
    opset_of,
    pruned,
    stored_weights,
)
from asvp_export.onnx_graph.float16 import check_convertible, to_half
from asvp_export.onnx_graph.surgery import (
    CAST_LIKE,
    InsertedNode,
    check_carrier,
    check_types,
    insert_nodes,
    remove_author,
    with_weights,
)
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
from asvp_export.teacher.onnx_model import OnnxModule, feeds_of, guarded, open_session, tensor_of

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_TIMED_RUNS = 3


class OnnxBackend:
    """A teacher that is an ONNX graph; see `asvp_export.teacher.backends.base.Backend`.

    Args:
        teacher: it is not changed.
        graph: its module, or what its TorchScript module was converted to.
    """

    traced = False
    trainable = False

    def __init__(self, teacher: Teacher, graph: OnnxModule) -> None:
        self.teacher = teacher
        self.graph = graph

    @property
    def names(self) -> LayerNames:
        """See `Backend`."""
        return self._names

    @cached_property
    def _names(self) -> LayerNames:
        model = self.graph.model
        tensors, aliases = named_tensors(model)
        made_by = {name: node.op_type for node in model.graph.node for name in node.output}
        kinds = {name: made_by[tensor] for name, tensor in tensors.items()}
        return LayerNames(tensors, aliases, kinds, _elsewhere(model), "/")

    @property
    def half(self) -> bool:
        """See `Backend`."""
        return is_half(self.graph.model)

    @property
    def opset(self) -> int:
        """See `Backend`: a graph keeps its own."""
        return opset_of(self.graph.model)

    @property
    def data_folder(self) -> Path | None:
        """See `Backend`."""
        return self.graph.folder

    def outputs(self, image: torch.Tensor) -> dict[str, LayerOutputs]:
        """See `Backend`."""
        tensors = list(self.names.sites.values())
        values = self.graph.cast(self.teacher.inputs(image))
        opened = self.graph.session(tensors)
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(x) for name, x in feeds_of(opened, values).items()}
        outputs = guarded(opened.run_with_ort_values, tensors, feeds)  # OrtValues: they say what is no tensor
        return {name: _layer_outputs(value) for name, value in zip(self.names.sites, outputs, strict=True)}

    def excluded(self, reached: Collection[str]) -> dict[str, str]:
        """See `Backend`."""
        needed = pruned(self.graph.model, [], self.graph.output_names)
        used = {name for node in needed.graph.node for name in node.output}
        reason = "returns what no output of the graph depends on"
        return {name: reason for name, tensor in self.names.sites.items() if tensor not in used}

    def layer_times(self, layers: Collection[str]) -> dict[str, float]:
        """See `Backend`; by onnxruntime's profiler, node by node as they stand in the file."""
        values = self.graph.cast(self.teacher.inputs(self.teacher.example()))
        self.release()
        part = pruned(self.graph.model, [], self.graph.output_names)
        for index, node in enumerate(part.graph.node):
            node.name = f"asvp{index}"
        with tempfile.TemporaryDirectory() as folder:
            opened = open_session(part, self.graph.folder, Path(folder, "profile"))
            for _ in range(_TIMED_RUNS):
                guarded(opened.run, None, feeds_of(opened, values))
            events = json.loads(Path(opened.end_profiling()).read_text())
        lasted: dict[str, list[float]] = {}
        for event in events:
            if event["name"].endswith("_kernel_time"):
                lasted.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1000)
        maker = {name: node.name for node in part.graph.node for name in node.output}
        made_by = {layer: maker.get(self.names.sites[layer], "") for layer in layers}
        return {layer: statistics.median(lasted.get(node, [0.0])) for layer, node in made_by.items()}

    def look(
        self, layers: Sequence[str], inputs: Sequence[tuple[torch.Tensor, ...]], take: Take, at_once: int = 64
    ) -> None:
        """See `Backend`."""
        for start in range(0, len(layers), at_once):
            chunk = layers[start : start + at_once]
            tensors = [self.names.sites[layer] for layer in chunk]
            opened = self.graph.session(tensors)
            for arguments in inputs:
                values = self.graph.cast(arguments)
                feeds = feeds_of(opened, values)
                for layer, name, value in zip(chunk, tensors, guarded(opened.run, tensors, feeds), strict=True):
                    take(layer, tensor_of(name, value))

    def insert(
        self, layers: Collection[str], weights: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[nn.Module, dict[str, nn.Module]]:
        """See `Backend`."""
        model = self.graph.model
        graph = OnnxModule(with_weights(model, weights), self.graph.folder) if weights else self.graph
        module = graph.with_cuts(self.names.sites[layer] for layer in layers)
        return module, dict(zip(layers, module.sites, strict=True))

    def tap(self, module: nn.Module, sites: Mapping[str, Sequence[str]]) -> Taps:
        """See `Backend`: what follows is read from the graph."""
        graph = _as_graph(module)
        following = {layer: next_weighted(graph.model, calls[0]) for layer, calls in sites.items()}
        next_tensors = {layer: tensor for layer, tensor in following.items() if tensor}
        cuts = dict.fromkeys([*(site for calls in sites.values() for site in calls), *next_tensors.values()])
        cut = graph.with_cuts(cuts)
        parts = dict(zip(cuts, cut.sites, strict=True))
        return Taps(
            cut,
            {layer: [parts[site] for site in calls] for layer, calls in sites.items()},
            [([layer], parts[tensor]) for layer, tensor in next_tensors.items()],
        )

    def export(self, inserted: Insertion, settings: ExportSettings) -> onnx.ModelProto:
        """See `Backend`: the graph with the nodes in it; the data of its tensors stays where it is."""
        self._check_settings(settings)
        model, nodes = self.graph.model, inserted.nodes
        tensors = self.names.sites
        if self.opset < CAST_LIKE and nodes:
            outputs = self.graph.session([tensors[name] for name in nodes]).get_outputs()
            check_types(model, {output.name: output.type for output in outputs})
        insertions = [InsertedNode(name, tensors[name], node) for name, node in nodes.items()]
        exported = insert_nodes(with_weights(model, inserted.weights), insertions)
        remove_author(exported)
        return exported

    def _check_settings(self, settings: ExportSettings) -> None:
        source, static = self.teacher.source, settings.static
        if settings.opset not in (None, self.opset):
            raise InputError(
                f"The opset {settings.opset} was asked for; an ONNX file keeps its own, and {source} is of opset "
                f"{self.opset}. Leave --opset out, or convert the file with onnx's version_converter first."
            )
        if static is not None and static != self.teacher.static_shape[2:]:
            raise InputError(
                f"--static was given; an ONNX graph keeps its sizes, and those of {source} are not "
                f"{static[0]}x{static[1]}. Leave --static out, or fix the sizes of the file first "
                "(onnxruntime.tools.make_dynamic_shape_fixed)."
            )

    def check_insertable(self) -> None:
        """See `Backend`."""
        check_carrier(self.graph.model)

    def parameters(self) -> dict[str, torch.Tensor]:
        """See `Backend`."""
        stored = stored_weights(self.graph.model)
        return {name: torch.empty(list(tensor.dims), device="meta") for name, tensor in stored.items()}

    def multiply_adds(self, image: torch.Tensor) -> float:
        """See `Backend`; from the shapes of what the products of the main graph make and read, as they come out."""
        part = pruned(self.graph.model, [], self.graph.output_names)
        nodes = [node for node in part.graph.node if node.op_type in PRODUCTS and not node.domain]
        stored = {name: tuple(tensor.dims) for name, tensor in stored_weights(self.graph.model).items()}
        computed = {name for node in part.graph.node for name in node.output}
        needed = dict.fromkeys(name for node in nodes for name in (node.output[0], *node.input[:2]) if name in computed)
        if not needed:
            return 0.0
        values = self.graph.cast(self.teacher.inputs(image))
        opened = self.graph.session(list(needed))
        feeds = feeds_of(opened, values)
        arrays = guarded(opened.run, list(needed), feeds)
        shapes = stored | {name: tuple(x.shape) for name, x in values.items()}
        shapes |= {name: x.shape for name, x in zip(needed, arrays, strict=True) if isinstance(x, np.ndarray)}
        countable = [node for node in nodes if {node.output[0], *node.input[:2]} <= shapes.keys()]
        return float(sum(_multiply_adds_of(node, shapes) for node in countable))

    @contextmanager
    def halved(self, module: nn.Module) -> Iterator[nn.Module]:
        """See `Backend`."""
        graph = _as_graph(module)
        check_convertible(graph.model)
        with tempfile.TemporaryDirectory() as folder:
            half = OnnxModule(to_half(graph.model, graph.folder, Path(folder)), Path(folder)).with_cuts(graph.cuts)
            half.sites = graph.sites
            yield half

    def release(self, module: nn.Module | None = None) -> None:
        """See `Backend`."""
        self.graph.release()
        if module is not None:
            _as_graph(module).release()


def _as_graph(module: nn.Module) -> OnnxModule:
    """What `insert` made, by its type."""
    assert isinstance(module, OnnxModule)
    return module


def _layer_outputs(value: ort.OrtValue) -> LayerOutputs:
    if not value.is_tensor():
        return LayerOutputs(problem=f"returns a {value.data_type().partition('(')[0]}, not one tensor")
    kind, shape = value.data_type(), tuple(value.shape())
    if kind not in _FLOATS:
        return LayerOutputs(problem=f"returns {kind[7:-1]} numbers, not float, float16 or double ones")
    if problem := dimensions_problem(shape):
        return LayerOutputs(problem=problem)
    return LayerOutputs(shapes=[shape])


def _elsewhere(model: onnx.ModelProto) -> dict[str, str]:
    """Names in the file that are no layers, and what they are."""
    elsewhere: dict[str, str] = {}
    for node in model.graph.node:
        owner = node.name or node.output[0]
        for graph in graphs_in([node]):
            inside = f"lies inside the {node.op_type} {owner}, where it may run any number of times"
            names = [graph.name, *(name for inner in graph.node for name in (inner.name, *inner.output))]
            elsewhere |= dict.fromkeys((name for name in names if name), inside)
    elsewhere |= {tensor.name: "is a weight, the same for every image" for tensor in model.graph.initializer}
    stored = dict.fromkeys(elsewhere)
    inputs = [value.name for value in model.graph.input if value.name not in stored]
    return elsewhere | dict.fromkeys(inputs, "is an input of the graph, not computed by it")


def _multiply_adds_of(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    output, data, weight = shapes[node.output[0]], shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type == "Conv":  # (out, in / groups, *kernel)
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # (in, out / groups, *kernel)
        return math.prod(data) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(output) * data[0 if turned else -1]
    return math.prod(output) * data[-1]
