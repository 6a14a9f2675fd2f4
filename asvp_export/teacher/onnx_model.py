"""An ONNX graph as a PyTorch module, run by onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper
from torch import nn

from asvp_export.errors import InputError, summary
from asvp_export.onnx_graph.contents import data_bytes, external_files, graph_inputs, pruned, reads, sort_nodes
from asvp_export.onnx_graph.opening import read_model
from asvp_export.runtime.session import SessionSettings, create_session
from asvp_export.shortage import is_out_of_memory
from asvp_export.signature import Signature, shape_text

if TYPE_CHECKING:
    from asvp_export.teacher.child import Child

# Bytes of weights that sessions may hold together, each its own copy; a larger graph's: its own and a quarter.
_ROOM = 2**30
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def read_onnx(path: Path, child: Child | None = None) -> OnnxModule:
    """Open an ONNX file; data in files of its own stays there, and is mapped into memory when the graph runs.

    Args:
        path: the file; its external data has to lie beside it.
        child: a process that was started for it, where it is checked and opened; None: it is checked here.

    Returns:
        The graph as a module.

    Raises:
        InputError: not an ONNX model or not a valid one, or its external data is not there.
        StoppedError, MachineError: as for `asvp_export.teacher.child.Child.open`.
    """
    try:
        model = read_model(path)
    except InputError:
        raise
    except Exception as error:  # protobuf's errors have no base in common with onnx's
        raise InputError(f"{path} is damaged, or not an ONNX model: {summary(error)}.") from error
    ordered = sort_nodes(model.graph)
    checked = b"" if ordered else None if external_files(model) else model.SerializeToString()
    if child is None or not child.open(checked):
        _check(path, model, checked)
    return OnnxModule(model, path.parent)


def _check(path: Path, model: onnx.ModelProto, checked: bytes | None) -> None:
    try:
        if checked is not None:
            onnx.checker.check_model(model if checked else str(path), full_check=not checked)
    except Exception as error:
        raise InputError(f"{path} is not a valid ONNX model: {summary(error)}.") from error


class OnnxModule(nn.Module):
    """A graph that takes and returns tensors by position, with points where other modules can change a tensor.

    It runs on the CPU in float as the graph has it, by standard operators (an ASVP node in it by its function body);
    inputs are cast to the types that the graph wants. There are no gradients.

    Args:
        model: taken as it is, and never changed; its external data stays where it is.
        folder: where the external data lies.
        cuts: tensors of the main graph; each passes through its module in `sites` before anything reads it.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path | None = None, cuts: Iterable[str] = ()) -> None:
        super().__init__()
        self.model, self.folder, self.cuts = model, folder, tuple(cuts)
        self.sites = nn.ModuleList(nn.Identity() for _ in self.cuts)
        self._opened: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[ort.InferenceSession, int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        copied = self.with_cuts(self.cuts)
        copied.sites = copy.deepcopy(self.sites, memo)
        return copied

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """What forward takes, in order."""
        return graph_inputs(self.model)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """The names of what forward takes, in order."""
        return tuple(value.name for value in self.inputs)

    @property
    def example_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to a shape that forward may take: what is free is 1 in the batch, and 64 elsewhere."""
        dims = {value.name: value.type.tensor_type.shape.dim for value in self.inputs}
        return {
            name: tuple(dim.dim_value or (64 if axis else 1) for axis, dim in enumerate(shape))
            for name, shape in dims.items()
        }

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """The names of what forward returns, in order."""
        return tuple(value.name for value in self.model.graph.output)

    def image_sizes(self, signature: Signature | None) -> tuple[int | None, ...]:
        """The sizes of the image input as the graph declares them, four or five, None where free.

        Args:
            signature: what is known of the inputs; None: there is but one.

        Raises:
            InputError: there are more inputs than are known, or the image is no image batch of a floating type.
        """
        shown = [_shown(value) for value in self.inputs]
        names = signature.names if signature else ("the image",)
        if self.inputs and len(names) != len(self.inputs):
            raise InputError(
                f"The graph takes {len(shown)} inputs ({'; '.join(shown)}), and only {len(names)} are known; give an "
                "example of each with --inputs FILE.npz."
            )
        value = self.inputs[signature.image_index if signature else 0] if self.inputs else None
        dims = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim] if value is not None else []
        if value is None or len(dims) not in (4, 5) or value.type.tensor_type.elem_type not in _FLOATS:
            raise InputError(
                f"The graph takes {'; '.join(shown) or 'nothing'}; a float image batch N,C,H,W or N,H,W,C was expected "
                "first."
            )
        return tuple(dims)

    def with_cuts(self, cuts: Iterable[str]) -> OnnxModule:
        """The same graph with other cuts; what runs it is shared."""
        module = OnnxModule(self.model, self.folder, cuts)
        module._opened = self._opened
        return module

    @cached_property
    def _bytes(self) -> int:
        return data_bytes(self.model)

    def release(self) -> None:
        """Give the memory back in which onnxruntime holds the weights; the next run takes it again."""
        self._opened.clear()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the graph: one output comes as a tensor, several as a tuple.

        Raises:
            RuntimeError: onnxruntime does not run it on these inputs.
            MemoryError: memory ran out.
        """
        if len(inputs) != len(self.inputs):
            raise TypeError(f"the graph takes {len(self.inputs)} inputs, and {len(inputs)} were given")
        values = self.cast(inputs)
        sites = dict(zip(self.cuts, self.sites, strict=True))
        for stage in (*self._stages, self.output_names):
            missing = tuple(name for name in stage if name not in values)
            for name, value in zip(missing, self._run(missing, values), strict=True):
                values[name] = sites[name](value) if name in sites else value
        outputs = tuple(values[name].to(inputs[0].device) for name in self.output_names)
        return outputs[0] if len(outputs) == 1 else outputs

    def cast(self, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs by name, on the CPU, in the types that the graph wants."""
        return {value.name: _cast(x, value) for value, x in zip(self.inputs, inputs, strict=True)}

    @cached_property
    def _stages(self) -> list[list[str]]:
        """The cuts in an order in which they can be computed: each stage reads cuts of the stages before it alone."""
        depth: dict[str, int] = {}  # how many cuts lie behind each tensor
        stages: dict[int, list[str]] = {}
        cuts = set(self.cuts)
        for node in self.model.graph.node:
            level = max((depth.get(name, 0) for name in reads(node)), default=0)
            for name in node.output:
                depth[name] = level + (name in cuts)
                if name in cuts:
                    stages.setdefault(level, []).append(name)
        return [stages[level] for level in sorted(stages)]

    def _run(self, names: tuple[str, ...], values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Some tensors, computed from the inputs and the cuts that are known: by a graph that holds no other cut.

        What lies between is computed again where a later stage needs it. So each part has the nodes between two cuts
        in one piece, and onnxruntime fuses them as it does in the file with the nodes in it.
        """
        if not names:
            return []
        key = (self.cuts, names)
        if key not in self._opened:
            cut_inputs = [described(name, values[name]) for name in self.cuts if name in values]
            self._opened[key] = self._session(names, cut_inputs)
        opened, _ = self._opened[key]
        arrays = guarded(opened.run, list(names), feeds_of(opened, values))
        return [tensor_of(name, value) for name, value in zip(names, arrays, strict=True)]

    def session(self, outputs: Sequence[str], cut_inputs: Sequence[onnx.ValueInfoProto] = ()) -> ort.InferenceSession:
        """A session for any tensors of the main graph: what these need, and no more."""
        return self._session(outputs, cut_inputs)[0]

    def _session(
        self, outputs: Sequence[str], cut_inputs: Sequence[onnx.ValueInfoProto]
    ) -> tuple[ort.InferenceSession, int]:
        """The session, and how many bytes of weights are in it; others are given up where there is no room for it."""
        is_whole = not cut_inputs and tuple(outputs) == self.output_names
        part = self.model if is_whole else pruned(self.model, cut_inputs, outputs)
        size = data_bytes(part)
        if size + sum(loaded for _, loaded in self._opened.values()) > max(_ROOM, self._bytes + self._bytes // 4):
            self.release()
        return open_session(part, self.folder), size


def open_session(model: onnx.ModelProto, folder: Path | None, profile: Path | None = None) -> ort.InferenceSession:
    """A session on the CPU.

    Args:
        model: to be run.
        folder: where its external data lies.
        profile: write how long each node takes to a file of this beginning, and leave every node as it stands.

    Raises:
        RuntimeError, MemoryError: as for `OnnxModule.forward`.
    """
    settings = SessionSettings(data_folder=folder, spinning=False, profile=profile)
    return guarded(create_session, model.SerializeToString(), settings)


def _shown(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim]
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} {shape_text(sizes)}"


def guarded(call: Any, *arguments: Any, **options: Any) -> Any:
    """Call onnxruntime; its exceptions have no base of their own."""
    try:
        return call(*arguments, **options)
    except Exception as error:
        reason = summary(error)
        if is_out_of_memory(error):
            raise MemoryError(reason) from error
        raise RuntimeError(reason) from error


def _cast(x: torch.Tensor, value: onnx.ValueInfoProto) -> torch.Tensor:
    dtype = torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))).dtype
    return x.detach().to("cpu", dtype)


def described(name: str, value: torch.Tensor) -> onnx.ValueInfoProto:
    """A tensor as an input of a graph, of the same type and of any size."""
    kind = helper.np_dtype_to_tensor_dtype(value.numpy().dtype)
    return helper.make_tensor_value_info(name, kind, [None] * value.ndim)


def array(value: torch.Tensor) -> np.ndarray:
    """A tensor as onnxruntime takes it."""
    return np.ascontiguousarray(value.detach().cpu().numpy())


def feeds_of(opened: ort.InferenceSession, values: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What a session takes, of tensors by name."""
    return {node.name: array(values[node.name]) for node in opened.get_inputs()}


def tensor_of(name: str, value: object) -> torch.Tensor:
    """What onnxruntime returned, as a tensor.

    Raises:
        RuntimeError: it is none, but a sequence for instance.
    """
    if not isinstance(value, np.ndarray):
        raise RuntimeError(f"{name} is a {type(value).__name__}, not a tensor")
    return torch.from_numpy(value)
