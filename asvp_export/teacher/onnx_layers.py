"""The tensors of an ONNX graph that can carry a node: their names, and who of them can."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
import torch

from asvp_export.errors import InputError, MachineError
from asvp_export.layers.survey import Layer, _judge, _node_time, _shape, _spectrum, _Survey, _Trace
from asvp_export.teacher.architecture import one_line
from asvp_export.teacher.model import Teacher
from asvp_export.teacher.onnx_graph import graphs_in, named_tensors, pruned
from asvp_export.teacher.onnx_model import OnnxModule, array, guarded, open_session

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")


def graph_survey(teacher: Teacher, module: OnnxModule) -> _Survey:
    """Run a graph at two sizes with all its tensors as outputs, and judge each; the same rules as for modules."""
    layers, aliases = named_tensors(module.model)
    image = teacher.example()
    first = _traces(teacher, module, image, layers)
    second = None
    if teacher.fixed[2] is None and teacher.fixed[3] is None:
        height = image.shape[-2]
        second = _traces(teacher, module, teacher.example(2 * height, height, batch=2), layers)
    frames = teacher.signature.frames
    batches = (image.shape[0], teacher.fixed[0] or 2)
    used = {name for node in pruned(module.model, [], module.output_names).graph.node for name in node.output}
    axes: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for name, trace in first.items():
        verdict = _judge(trace, second[name] if second else None, batches, (image.shape[-2], image.shape[-1]), frames)
        if isinstance(verdict, str):
            reasons[name] = verdict
        elif layers[name] not in used:
            reasons[name] = "returns what no output of the graph depends on"
        else:
            axes[name] = verdict
    made_by = {name: node.op_type for node in module.model.graph.node for name in node.output}
    kinds = {name: made_by[tensor] for name, tensor in layers.items()}
    return _Survey(axes, reasons, first, aliases, kinds, _elsewhere(module.model), "/")


def graph_candidates(teacher: Teacher, module: OnnxModule, survey: _Survey) -> list[Layer]:
    """Measure the carriers of a graph; those with NaN or Inf go to the survey's reasons."""
    layers, _ = named_tensors(module.model)
    values = module.cast(teacher.inputs(teacher.example()))
    times = _times(module, values)
    found = []
    names = [layers[name] for name in survey.axes]
    outputs = _run(teacher, module, values, names)
    for (name, axis), tensor, value in zip(survey.axes.items(), names, outputs, strict=True):
        output = torch.from_numpy(value.numpy())
        if not torch.isfinite(output).all():
            survey.reasons[name] = "returns NaN or Inf for the example image"
            continue
        share, rank = _spectrum(output[0], axis if axis < 0 else axis - 1)
        shape = tuple(output.shape)
        time = times.get(tensor, 0.0)
        found.append(Layer(name, survey.kinds[name], 1, shape, axis, share, rank, time, _node_time(output, axis)))
    return found


def _elsewhere(model: onnx.ModelProto) -> dict[str, str]:
    """Names in the file that are no layers, and what they are."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        owner = node.name or node.output[0]
        for graph in graphs_in([node]):
            inside = f"lies inside the {node.op_type} {owner}, where it may run any number of times"
            names = [graph.name, *(name for inner in graph.node for name in (inner.name, *inner.output))]
            found |= dict.fromkeys((name for name in names if name), inside)
    found |= {tensor.name: "is a weight, the same for every image" for tensor in model.graph.initializer}
    stored = dict.fromkeys(found)
    found |= {v.name: "is an input of the graph, not computed by it" for v in model.graph.input if v.name not in stored}
    return found


def _traces(teacher: Teacher, module: OnnxModule, image: torch.Tensor, layers: dict[str, str]) -> dict[str, _Trace]:
    outputs = _run(teacher, module, module.cast(teacher.inputs(image)), list(layers.values()))
    return {name: _trace(value) for name, value in zip(layers, outputs, strict=True)}


def _run(
    teacher: Teacher, module: OnnxModule, values: dict[str, torch.Tensor], names: Sequence[str]
) -> list[ort.OrtValue]:
    feeds = {name: ort.OrtValue.ortvalue_from_numpy(array(value)) for name, value in values.items()}
    shown = ", ".join(map(_shape, values.values()))
    try:
        opened = module.session(names)
        wanted = {one.name for one in opened.get_inputs()}
        return guarded(opened.run_with_ort_values, list(names), {k: v for k, v in feeds.items() if k in wanted})
    except MemoryError as error:
        raise MachineError(f"Memory ran out while {teacher.source} ran at {shown}.") from error
    except RuntimeError as error:
        raise InputError(f"{teacher.source} fails on an input of {shown}: {one_line(error)}.") from error


def _trace(value: ort.OrtValue) -> _Trace:
    if not value.is_tensor():
        return _Trace(problem=f"returns a {value.data_type().partition('(')[0]}, not one tensor")
    kind, shape = value.data_type(), tuple(value.shape())
    if kind not in _FLOATS:
        return _Trace(problem=f"returns {kind[7:-1]} numbers, not float, float16 or double ones")
    if len(shape) < 3:
        shown = "x".join(map(str, shape)) or "no dimensions"
        return _Trace(problem=f"returns a {len(shape)}-D tensor ({shown}), not a feature map")
    return _Trace(shapes=[shape])


def _times(module: OnnxModule, values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Milliseconds of the node behind each tensor, by onnxruntime's profiler, one by one as they stand in the file."""
    module.release()
    part = pruned(module.model, [], module.output_names)
    for index, node in enumerate(part.graph.node):
        node.name = f"asvp{index}"
    with tempfile.TemporaryDirectory() as folder:
        opened = open_session(part, module.folder, Path(folder, "profile"))
        for _ in range(3):
            opened.run(None, {one.name: array(values[one.name]) for one in opened.get_inputs()})
        events = json.loads(Path(opened.end_profiling()).read_text())
    lasted: dict[str, list[float]] = {}
    for event in events:
        if event["name"].endswith("_kernel_time"):
            lasted.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1000)
    return {
        name: statistics.median(lasted[node.name])
        for node in part.graph.node
        for name in node.output
        if node.name in lasted
    }
