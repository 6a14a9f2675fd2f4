"""Half precision: the graph with float16 weights and feature maps; the operator's arithmetic stays in float32."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper
from onnx.external_data_helper import load_external_data_for_tensor, set_external_data
from onnxruntime.transformers.float16 import convert_float_to_float16, convert_tensor_float_to_float16

from asvp_export.errors import AsvpError, InputError
from asvp_export.onnx_graph.contents import is_external, is_half, opset_of, sort_nodes, tensors
from asvp_export.onnx_graph.passes import perturbation_nodes
from asvp_export.onnx_graph.surgery import CAST_LIKE

LARGEST = 65504.0  # of float16


def check_convertible(model: onnx.ModelProto) -> None:
    """Refuse a model that cannot become a float16 one.

    Raises:
        InputError: it is one already, or there is no function body for its nodes then.
    """
    if is_half(model):
        raise InputError("The model holds float16 weights already; leave --dtype fp16 out.")
    if opset_of(model) < CAST_LIKE and perturbation_nodes(model):
        raise InputError(
            f"The model has opset {opset_of(model)}; the node takes float16 from opset {CAST_LIKE} on. Leave --dtype "
            "fp16 out, or convert the file with onnx's version_converter first."
        )


def to_half(model: onnx.ModelProto, data_folder: Path | None = None, new_folder: Path | None = None) -> onnx.ModelProto:
    """A float16 copy of a float32 model, inputs and outputs included.

    onnxruntime's own converter does it; operators that know no float16 keep float32 between casts. Our function bodies
    take every floating type and are left as they are.

    Args:
        model: it is left as it is.
        data_folder: where the model's external data lies.
        new_folder: where that of the copy is written.

    Raises:
        AsvpError: the converter does not take the model.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    functions = list(copy.functions)
    _constants_as_initializers(copy.graph)
    outside = _external_as_inputs(copy, data_folder)
    try:
        half = convert_float_to_float16(copy, max_finite_val=LARGEST)
    except (ValueError, RuntimeError, AssertionError, KeyError, onnx.shape_inference.InferenceError) as error:
        raise AsvpError(f"This model cannot be converted to float16 ({error}); export it with --dtype fp32.") from error
    del half.functions[:]
    half.functions.extend(functions)
    del half.graph.value_info[:]  # the converter leaves some with the old type
    sort_nodes(half.graph)  # and appends its casts at the end
    if outside and new_folder:
        _restore_initializers(half.graph, outside, data_folder, new_folder / "half.data")
    return half


def _external_as_inputs(model: onnx.ModelProto, folder: Path | None) -> list[onnx.TensorProto]:
    """Make inputs of the main graph's external initializers: the converter reads values, and takes at most 2 GiB."""
    outside = [tensor for tensor in model.graph.initializer if is_external(tensor)]
    names = {tensor.name for tensor in outside}
    inside = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(inside)
    for tensor in filter(is_external, tensors(model)):  # in subgraphs and attributes
        load_external_data_for_tensor(tensor, str(folder))
    input_names = {value.name for value in model.graph.input}
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in outside
        if tensor.name not in input_names
    )
    return outside


def _restore_initializers(
    graph: onnx.GraphProto, outside: list[onnx.TensorProto], folder: Path | None, path: Path
) -> None:
    """Make initializers of these inputs again, in the types that the converter gave them, one at a time in memory."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    with path.open("wb") as stream:
        for tensor in outside:
            load_external_data_for_tensor(tensor, str(folder))
            if types[tensor.name] != tensor.data_type:
                convert_tensor_float_to_float16(tensor, max_finite_val=LARGEST)
            offset, length = stream.tell(), len(tensor.raw_data)
            stream.write(tensor.raw_data)
            tensor.raw_data = b""
            set_external_data(tensor, path.name, offset=offset, length=length)
            tensor.ClearField("raw_data")
    graph.initializer.extend(outside)
    inputs = [value for value in graph.input if value.name not in {tensor.name for tensor in outside}]
    del graph.input[:]
    graph.input.extend(inputs)


def _constants_as_initializers(graph: onnx.GraphProto) -> None:
    """The converter keeps an initializer that is read as float32 alone (a Resize's scales), but rounds constants."""
    constants = [n for n in graph.node if n.op_type == "Constant" and n.attribute and n.attribute[0].name == "value"]
    for node in constants:
        graph.initializer.add().CopyFrom(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
    values = {tensor.name for tensor in graph.initializer}
    for info in [info for info in graph.value_info if info.name in values]:  # would be taken for feature maps
        graph.value_info.remove(info)
