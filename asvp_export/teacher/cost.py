"""What one run of a teacher costs: multiply-adds, counted and not timed, so that the figure is the same everywhere."""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from asvp_export.errors import InputError, MachineError
from asvp_export.teacher.architecture import one_line
from asvp_export.teacher.layers import graph_of
from asvp_export.teacher.model import Teacher
from asvp_export.teacher.onnx_graph import pruned, stored_weights
from asvp_export.teacher.onnx_model import OnnxModule, array, guarded

_known: WeakKeyDictionary[torch.nn.Module, float] = WeakKeyDictionary()  # a count is a forward, which may take seconds
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def multiply_adds(teacher: Teacher) -> float:
    """Multiply-adds of convolutions and matrix products for each pixel of the image that goes in.

    Args:
        teacher: one forward on its example of about 64 x 96 pixels. Where the cost grows faster than the number of pixels
            (attention over the whole image) the figure holds for such a size.

    Raises:
        InputError: the teacher fails on its own example.
        MachineError: memory ran out.
    """
    if teacher.module in _known:
        return _known[teacher.module]
    image = teacher.example()
    try:
        graph = graph_of(teacher)
        total = _of_module(teacher, image) if graph is None else _of_graph(teacher, graph, image)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MachineError(f"Memory ran out while {teacher.source} ran at {tuple(image.shape)}.") from error
    except RuntimeError as error:
        raise InputError(
            f"{teacher.source} fails on its example of {tuple(image.shape)}: {one_line(error)}."
        ) from error
    _known[teacher.module] = total / (image.shape[0] * image.shape[-1] * image.shape[-2])
    return _known[teacher.module]


def _of_module(teacher: Teacher, image: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        teacher.module(*teacher.inputs(image))
    return counter.get_total_flops() / 2


def _of_graph(teacher: Teacher, graph: OnnxModule, image: torch.Tensor) -> float:
    """From the shapes of what the products of the main graph make and read, as they come out in one run."""
    part = pruned(graph.model, [], graph.output_names)
    nodes = [node for node in part.graph.node if node.op_type in _PRODUCTS and not node.domain]
    stored = {name: tuple(one.dims) for name, one in stored_weights(graph.model).items()}
    made = {name for node in part.graph.node for name in node.output}
    wanted = dict.fromkeys(name for node in nodes for name in (node.output[0], *node.input[:2]) if name in made)
    if not wanted:
        return 0.0
    values = graph.cast(teacher.inputs(image))
    opened = graph.session(list(wanted))
    feeds = {one.name: array(values[one.name]) for one in opened.get_inputs()}
    found = guarded(opened.run, list(wanted), feeds)
    shapes = stored | {name: tuple(x.shape) for name, x in values.items()}
    shapes |= {name: x.shape for name, x in zip(wanted, found, strict=True) if isinstance(x, np.ndarray)}
    return float(sum(_of_node(node, shapes) for node in nodes if {node.output[0], *node.input[:2]} <= shapes.keys()))


def _of_node(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    made, data, weight = shapes[node.output[0]], shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type == "Conv":  # (out, in / groups, *kernel)
        return math.prod(made) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # (in, out / groups, *kernel)
        return math.prod(data) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        turned = any(one.name == "transA" and one.i for one in node.attribute)
        return math.prod(made) * data[0 if turned else -1]
    return math.prod(made) * data[-1]
