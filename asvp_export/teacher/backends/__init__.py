"""What runs a teacher: a PyTorch module, or an ONNX graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from asvp_export.teacher.backends.base import Backend
from asvp_export.teacher.backends.onnx_backend import OnnxBackend
from asvp_export.teacher.backends.torch_backend import TorchBackend
from asvp_export.teacher.model import Teacher
from asvp_export.teacher.onnx_model import OnnxModule
from asvp_export.teacher.torchscript import converted

__all__ = ["Backend", "OnnxBackend", "TorchBackend", "file_behind", "open_backend"]


def open_backend(teacher: Teacher, opset: int | None = None) -> Backend:
    """Make a teacher ready for everything but plain inference.

    A TorchScript teacher becomes an ONNX graph here. (`asvp_export.teacher.backends.refusal` only tries the conversion,
    to tell whether it helps.) That takes seconds to minutes; two runs hold the graph against the module. It is done
    once for a module and an opset: later calls find the graph.

    Args:
        teacher: of any format.
        opset: in which a module is exported, and a TorchScript teacher becomes a graph; None: the default.

    Raises:
        InputError: TorchScript cannot be converted to this opset.
        AsvpError: the exporter does not take the TorchScript module, or its graph computes something else.
    """
    if isinstance(teacher.module, torch.jit.ScriptModule):
        return OnnxBackend(teacher, converted(teacher, opset))
    if isinstance(teacher.module, OnnxModule):
        return OnnxBackend(teacher, teacher.module)
    return TorchBackend(teacher, opset)


def file_behind(teacher: Teacher) -> tuple[Path, onnx.ModelProto] | None:
    """The ONNX file whose data a teacher still reads, and its graph; None: all of it is in memory."""
    graph = teacher.module
    if isinstance(graph, OnnxModule) and graph.folder is not None:
        return graph.folder / teacher.source, graph.model
    return None
