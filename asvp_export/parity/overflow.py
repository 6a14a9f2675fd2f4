"""Where a model's values leave the range of float16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from asvp_export.onnx_graph.contents import is_external, tensors
from asvp_export.onnx_graph.float16 import LARGEST
from asvp_export.parity.cases import Case
from asvp_export.runtime.session import run_model, session

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_PEAK = "asvp_peak_of_"


@dataclass(frozen=True)
class Overflow:
    """The first tensor of a graph that float16 does not hold."""

    node: str
    """Name of the node, or of its result where it has none."""

    peak: float
    """Largest absolute value, NaN where one was not a number."""

    case: str
    """Name and size of the input."""

    def __str__(self) -> str:
        event = f"reaches {self.peak:.3g}" if math.isfinite(self.peak) else f"gives {self.peak}"
        return (
            f"In float16 the layer {self.node} overflows: it {event} on {self.case}, and {LARGEST:g} is the largest "
            "number. Export with --dtype fp32."
        )


def first_overflow(
    model: onnx.ModelProto, folder: Path, cases: Sequence[Case], data_folder: Path | None = None
) -> Overflow | None:
    """Run a float32 model and look at every feature map on the way, in the order of the graph.

    A runtime may keep float32 between two float16 nodes, so the float16 file itself does not show what it would do on
    other hardware; the float32 values do.

    Args:
        model: float32, with its tensors' data inside, or over 2 GiB in a file of its own.
        folder: where a temporary file may be written.
        cases: the inputs.
        data_folder: where the model's external data lies.
    """
    watched, results = _with_peaks(model)
    if any(map(is_external, tensors(watched))):
        opened = session(watched.SerializeToString(), library=False, data_folder=data_folder)
    else:
        path = folder / "peaks.onnx"
        onnx.save(watched, path, save_as_external_data=True, location="peaks.data")
        opened = session(path, library=False)
    names = [output.name for output in opened.get_outputs()]
    for case in cases:
        peaks = dict(zip(names, run_model(opened, *case.inputs), strict=False))
        for name, node in results.items():
            peak = float(peaks[_PEAK + name])
            if not abs(peak) <= LARGEST:
                return Overflow(node, peak, f"{case.name}, {case.size}")
    return None


def _with_peaks(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy whose outputs are the largest absolute values of its feature maps, and the node that makes each."""
    watched = onnx.shape_inference.infer_shapes(model)
    graph = watched.graph
    floats = {v.name for v in (*graph.value_info, *graph.output) if v.type.tensor_type.elem_type in _FLOATS}
    results = {out: node.name or out for node in graph.node for out in node.output if out in floats}
    del graph.output[:]
    for name in results:
        graph.node.append(helper.make_node("Abs", [name], [f"asvp_abs_of_{name}"]))
        graph.node.append(helper.make_node("ReduceMax", [f"asvp_abs_of_{name}"], [_PEAK + name], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(_PEAK + name, TensorProto.FLOAT, []))
    return watched, results
