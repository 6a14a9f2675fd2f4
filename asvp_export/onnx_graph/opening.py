"""Opening an ONNX file of strangers: what is refused before anything computes."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import Message

from asvp_export.errors import InputError
from asvp_export.onnx_graph.contents import graphs_in, is_external, tensors

NODES = 250_000
"""A graph has no more nodes than this once each call of a function is replaced by the function's body."""

DEPTH = 100
"""Functions call each other no deeper: onnx's checker takes no more, and onnxruntime crashes at some thousands."""

_BITS = {  # of the types that are packed
    getattr(onnx.TensorProto, name): bits
    for name, bits in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.items()
    if hasattr(onnx.TensorProto, name)
}
_Key = tuple[str, str, str]


def read_model(path: Path) -> onnx.ModelProto:
    """Read a file without its external data, and refuse what `check_strange` refuses.

    Args:
        path: the file.

    Raises:
        InputError: it is refused.
        Exception: it is no ONNX model (protobuf's errors and the system's have no base of their own).
    """
    model = onnx.load(path, load_external_data=False)
    check_strange(model, path)
    return model


def check_strange(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph that grows without measure when it is opened, and external data that cannot be read.

    onnxruntime writes the bodies of functions out when it opens a graph: 25 functions, each of which calls the one
    before it twice, are 2^25 nodes. Here they are counted, not written out.

    Args:
        model: the file's, without its external data.
        path: the file.

    Raises:
        InputError: a name is no text; a function calls itself; there are more than `NODES`, or `DEPTH` is passed; or
            the data of a tensor lies elsewhere than beside the model, is not there, or is too short.
    """
    _check_texts(model, path)
    _check_size(model, path)
    sizes: dict[str, int] = {}
    for tensor in filter(is_external, tensors(model)):
        _check_data(tensor, path, sizes)


def _check_texts(model: onnx.ModelProto, path: Path) -> None:
    """Refuse names that are no UTF-8: protobuf reads them as bytes, which nothing behind expects."""
    messages: list[Message] = [model]
    while messages:
        for field, value in messages.pop().ListFields():
            if field.type == field.TYPE_MESSAGE:
                messages.extend([value] if isinstance(value, Message) else value)
            elif field.type == field.TYPE_STRING:
                for text in [value] if isinstance(value, str | bytes) else value:
                    if isinstance(text, bytes):
                        raise InputError(
                            f"{path} is damaged: a {field.name} in it is {text[:40]!r}, which is not UTF-8 text."
                        )


def _check_size(model: onnx.ModelProto, path: Path) -> None:
    node_counts: Counter[_Key] = Counter()
    calls: dict[_Key, Counter[_Key]] = {}
    for function in model.functions:
        key = (_domain(function.domain), function.name, function.overload)
        inside = _by_kind(function.node)
        node_counts[key] += inside.total()
        calls[key] = calls.get(key, Counter()) + inside
    sizes: dict[_Key, int] = {}
    for key in _called_first(calls, path):
        total = node_counts[key] + sum(count * sizes.get(called, 0) for called, count in calls[key].items())
        sizes[key] = min(total, NODES + 1)
    graph = _by_kind(model.graph.node)
    total = graph.total() + sum(count * sizes.get(called, 0) for called, count in graph.items())
    if max(total, *sizes.values(), 0) > NODES:
        raise InputError(
            f"{path} has over {NODES:,} nodes once its functions are inlined, as they are when it is opened. Save the "
            "model again, with fewer functions that call functions."
        )


def _called_first(calls: Mapping[_Key, Collection[_Key]], path: Path) -> Iterable[_Key]:
    """The functions in an order in which each comes after those that it calls.

    Raises:
        InputError: one calls itself, or calls go deeper than `DEPTH`.
    """
    depth: dict[_Key, int] = {}
    for start in calls:
        chain = [start]
        while chain:
            key = chain[-1]
            missing = next((called for called in calls[key] if called in calls and called not in depth), None)
            if missing in chain:
                raise InputError(
                    f"The function {key[1]} of {path} calls itself, so its graph has no end. Save the model again, "
                    "without it."
                )
            if missing is None:
                chain.pop()
                depth[key] = 1 + max((depth.get(called, 0) for called in calls[key]), default=0)
            else:
                chain.append(missing)
            if len(chain) > DEPTH or depth.get(key, 0) > DEPTH:
                raise InputError(
                    f"The functions of {path} are nested more than {DEPTH} deep. Save the model again, with fewer "
                    "functions inside functions."
                )
    return depth


def _by_kind(nodes: Iterable[onnx.NodeProto]) -> Counter[_Key]:
    """How many nodes of each kind there are, in the graphs inside nodes too."""
    nodes = list(nodes)
    counts = Counter((_domain(node.domain), node.op_type, node.overload) for node in nodes)
    for graph in graphs_in(nodes):
        counts.update((_domain(node.domain), node.op_type, node.overload) for node in graph.node)
    return counts


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _check_data(tensor: onnx.TensorProto, path: Path, sizes: dict[str, int]) -> None:
    """Refuse a tensor's external data; `sizes` keeps those of files that were looked at, in bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    data, location = f"data of the tensor {tensor.name!r} of {path}", entries.get("location", "")
    if location not in sizes:
        sizes[location] = _size(location, path, data)
    offset, length = (_byte_count(entries, key, data) for key in ("offset", "length"))
    needed = _bytes(tensor)
    if length and needed is not None and length != needed:
        raise InputError(
            f"The {data} is listed with {length} bytes; its shape and type need {needed}. Save the model again."
        )
    end = offset + (length or needed or 0)
    if end > sizes[location]:
        raise InputError(
            f"The {data} is listed as bytes {offset} to {end} of {location}, which has {sizes[location]}. That file is "
            "cut off, or belongs to another model; get it again."
        )


def _size(location: str, path: Path, data: str) -> int:
    """The size of a data file in bytes."""
    if not location or not location.isprintable():
        raise InputError(
            f"The {data} is listed in a file with the name {location[:40]!r}, which cannot be used. Save the "
            "model again."
        )
    try:
        return _size_of_file(location, path, f"The {data} lies in {location}")
    except OSError as error:
        raise InputError(f"The {data} lies in {location[:40]}, which cannot be read ({error.strerror}).") from error


def _size_of_file(location: str, path: Path, clause: str) -> int:
    file = path.parent / location
    if Path(location).is_absolute() or ".." in Path(os.path.normpath(location)).parts:
        raise InputError(
            f"{clause}, outside of the model's folder; it has to lie beside the model. Put it there, and save the "
            "model again with the file's bare name as the location."
        )
    real = Path(os.path.realpath(file))
    if not any(real.is_relative_to(folder) for folder in (path.parent.resolve(), path.resolve().parent)):
        raise InputError(
            f"{clause}, a link to {real} outside of the model's folder; it has to lie beside the "
            "model. Put the file itself there."
        )
    if not file.exists():
        raise InputError(f"The tensors of {path} are kept in {location}, which is not beside it; put it there.")
    if not file.is_file():
        raise InputError(f"{clause}, which is a folder, a pipe or a device; a file was expected. Put the data there.")
    if file.samefile(path):
        raise InputError(f"{clause}, which is the model itself; a separate file was expected. Save the model again.")
    return file.stat().st_size


def _byte_count(entries: dict[str, str], key: str, data: str) -> int:
    text = entries.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InputError(
            f"The {data} is listed with the {key} {text[:40]!r}; a whole number of bytes, 0 or more, was expected. "
            "Save the model again."
        )
    return int(text)


def _bytes(tensor: onnx.TensorProto) -> int | None:
    """How many bytes a tensor's data takes; None where its type or shape is none."""
    try:
        bits = _BITS.get(tensor.data_type) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        return None
    if any(dim < 0 for dim in tensor.dims) or tensor.data_type == onnx.TensorProto.STRING:
        return None
    return -(-math.prod(tensor.dims) * bits // 8)
