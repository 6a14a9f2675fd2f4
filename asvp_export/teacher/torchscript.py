"""TorchScript archives: what in them is refused, loading them, and turning them into an ONNX graph."""

from __future__ import annotations

import io
import logging
import re
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

from asvp_export.errors import AsvpError, InputError, summary
from asvp_export.options import DEFAULT_OPSET
from asvp_export.signature import shape_text
from asvp_export.teacher import script_pickles
from asvp_export.teacher.model import Teacher, named_outputs
from asvp_export.teacher.onnx_model import OnnxModule

OPSETS = range(11, 21)  # that PyTorch's exporter for TorchScript writes

_FILES = re.compile(r"\b(from_file|save)\b")
_NAMESPACE = re.compile(r"\bops\s*\.\s*(\w+)")
_NAMESPACES = {"aten", "prim", "prims", "quantized", "torchvision", "mkldnn", "mkldnn_prepacked"}
_BETWEEN_TOKENS = re.compile(r"#[^\n]*|\\\n")

_UNPACKED = 2**28  # bytes; PyTorch compresses source code alone, of which the largest models have some megabytes

# float32 convolutions in another order of summation: 1e-5 of the largest value after some fifty layers.
_TOLERANCE = 1e-4

_graphs: weakref.WeakKeyDictionary[torch.nn.Module, dict[tuple[object, ...], OnnxModule]] = weakref.WeakKeyDictionary()


def refuse_unsafe_code(path: Path, trust_pickle: bool) -> None:
    """Refuse an archive whose code does more than compute, before it is loaded.

    `torch.jit.load` runs no Python: its unpickler makes nothing but tensors, containers and TorchScript objects, and
    TorchScript has no access to Python, to the network or to processes. It does run the archive's TorchScript, some of
    it while loading, and two operators of that language write files and map them into memory. So without `trust_pickle`
    an archive whose code names these, or operators of other libraries than PyTorch's own, is refused; so is one whose
    pickles claim more than it holds (`script_pickles`). What is left is PyTorch's own handling of its operators, which
    PyTorch does not promise to be safe against a hostile program: load archives of strangers in a sandbox.

    Args:
        path: the archive.
        trust_pickle: the user vouches for the author; nothing is screened.

    Raises:
        InputError: refused as above, or damaged.
    """
    try:
        danger = "" if trust_pickle else _danger(path)
    except Exception as error:
        raise _unreadable(path, error) from error
    if danger:
        raise InputError(
            f"{path} uses {danger}, which no model needs. Pass --trust-pickle if you trust its author, or give the "
            "state dict of the original module with --arch."
        )


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load a traced or scripted module onto the CPU; `refuse_unsafe_code` comes first.

    Raises:
        InputError: the archive is damaged.
    """
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be loaded as a TorchScript archive: {summary(error)}.")


def _danger(path: Path) -> str:
    """What in an archive's code goes beyond computing, in words; read by the reader that loads it."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED)
    if unpacked > _UNPACKED:
        raise ValueError(f"its source would take {unpacked} bytes once unpacked")
    reader = torch._C.PyTorchFileReader(str(path))
    for name in reader.get_all_records():
        if name.endswith(("data.pkl", "constants.pkl", ".debug_pkl")):
            script_pickles.check(name, reader.get_record(name), reader.get_record)
        if not name.endswith(".py"):
            continue
        code = _BETWEEN_TOKENS.sub(" ", reader.get_record(name).decode("utf-8"))
        if match := _FILES.search(code):
            return f"the operator {match[1]}, which reads or writes files"
        if foreign := set(_NAMESPACE.findall(code)) - _NAMESPACES:
            return f"operators of {min(foreign)}"
    return ""


def converted(teacher: Teacher, opset: int | None = None) -> OnnxModule:
    """A TorchScript teacher as an ONNX graph, whose nodes are named by module paths; made once an opset.

    Args:
        teacher: its module is a ScriptModule.
        opset: of the default domain; None: the default.

    Returns:
        The graph, which gives the teacher's outputs at two sizes.

    Raises:
        InputError: an opset that is not written.
        AsvpError: the exporter does not take the module, or its graph computes something else.
    """
    opset = DEFAULT_OPSET if opset is None else opset
    if opset not in OPSETS:
        raise InputError(
            f"The opset {opset} was asked for; from TorchScript {OPSETS[0]} to {OPSETS[-1]} can be written. Leave "
            "--opset out."
        )
    graphs = _graphs.setdefault(teacher.module, {})
    if (opset, teacher.static_shape) not in graphs:
        graphs[opset, teacher.static_shape] = _verified(teacher, OnnxModule(_convert(teacher, opset)))
    return graphs[opset, teacher.static_shape]


def _convert(teacher: Teacher, opset: int) -> onnx.ModelProto:
    signature = teacher.signature
    frozen = {name for name, size in zip(("batch", "", "height", "width"), teacher.static_shape, strict=True) if size}
    free = [{axis: name for axis, name in axes.items() if name not in frozen} for axes in signature.dimensions]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
            path = Path(folder, "graph.onnx")
            warnings.simplefilter("ignore")
            module, inputs = _copied(teacher.module), teacher.inputs(teacher.example(batch=2))
            _return_a_tuple(module, teacher.module(*inputs))
            torch.onnx.export(
                module,
                inputs,
                path,
                dynamo=False,
                opset_version=opset,
                input_names=list(signature.names),
                output_names=list(signature.outputs),
                dynamic_axes={
                    **dict(zip(signature.names, free, strict=True)),
                    signature.outputs[signature.main]: free[signature.image_index],
                },
            )
            return onnx.load(path)
    except Exception as error:  # the exporter raises whatever went wrong inside
        raise AsvpError(
            f"PyTorch's exporter cannot export this TorchScript module ({summary(error)}). Give the state dict of "
            "the original module with --arch, or an ONNX file made elsewhere."
        ) from error
    finally:
        logger.setLevel(level)


def _copied(module: torch.nn.Module) -> torch.jit.ScriptModule:
    """The exporter inlines the module that it is given, and a second time finds no module paths to name nodes by."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def _return_a_tuple(module: torch.jit.ScriptModule, example: object) -> None:
    """Let a module return the tensors of its mapping, list or nested tuple in one tuple: the exporter takes no others.

    Args:
        module: one that has not run yet; it would keep to what it ran.
        example: what it returns.
    """
    graph = module.graph
    (returned,) = graph.outputs()
    if isinstance(returned.type(), torch.TensorType):
        return
    values = _unpacked(graph, returned, example)
    row = graph.create("prim::TupleConstruct", values, 1)
    row.output().setType(torch.TupleType([value.type() for value in values]))
    graph.appendNode(row)
    graph.eraseOutput(0)
    graph.registerOutput(row.output())


def _unpacked(graph: Any, value: torch.Value, example: object) -> list[torch.Value]:
    """The tensors in a value of a graph, in the order of `named_outputs`, by nodes that are added at its end.

    Args:
        graph: it gets the nodes.
        value: a tensor, or a mapping, list or tuple, nested perhaps.
        example: what `value` was in one run.
    """
    if isinstance(example, torch.Tensor):
        return [value]
    kind: Any = value.type()
    parts: list[tuple[torch.Value, object]] = []
    if isinstance(example, Mapping | list):
        items = example.items() if isinstance(example, Mapping) else enumerate(example)
        inside = kind.getValueType() if isinstance(example, Mapping) else kind.getElementType()
        for key, part in items:
            node = graph.create("aten::__getitem__", [value, graph.insertConstant(key)], 1)
            node.output().setType(inside)
            graph.appendNode(node)
            parts.append((node.output(), part))
    elif isinstance(example, tuple):
        node = graph.create("prim::TupleUnpack", [value], len(example))
        graph.appendNode(node)
        for output, inside, part in zip(node.outputs(), kind.elements(), example, strict=True):
            output.setType(inside)
            parts.append((output, part))
    return [tensor for output, part in parts for tensor in _unpacked(graph, output, part)]


def _verified(teacher: Teacher, graph: OnnxModule) -> OnnxModule:
    """Hold the graph against the module at two sizes: what a trace froze or an exporter got wrong shows here."""
    first = teacher.example(batch=2)
    for image in (first, teacher.example(2 * first.shape[-2], first.shape[-2])):
        inputs = teacher.inputs(image)
        with torch.no_grad():
            expected = named_outputs(teacher.module(*inputs))
            try:
                actual = named_outputs(graph(*inputs))
            except RuntimeError as error:
                raise _unfaithful(teacher, f"it does not run ({summary(error)})", image) from error
        for a, b in zip(expected.values(), actual.values(), strict=True):
            off = float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-6))
            if not off <= _TOLERANCE:
                raise _unfaithful(teacher, f"its output is off by {off:.1e} of the largest value", image)
    return graph


def _unfaithful(teacher: Teacher, reason: str, image: torch.Tensor) -> AsvpError:
    size = shape_text(image.shape)
    return AsvpError(
        f"PyTorch's exporter made a graph of {teacher.source} that is not the same model: on {size} "
        f"{reason}. Give the state dict of the original module with --arch, or script the module instead of tracing it."
    )
