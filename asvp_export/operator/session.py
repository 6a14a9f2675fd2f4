"""onnxruntime's session, with the native library where that is the faster way."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnxruntime as ort

from asvp_export.operator import native


class InferenceSession(ort.InferenceSession):
    """`onnxruntime.InferenceSession` that runs ASVP nodes by the native kernels where these are the faster way.

    Takes what onnxruntime's own session takes. Without the library, and where it would hurt (a provider for which it
    has no kernel: the node would go to the CPU with copies), the function body in the file runs instead. Options that the
    library was registered with keep it: take fresh ones for a session without it.

    Args:
        path_or_bytes: an ONNX file, or the bytes of one.
        sess_options: onnxruntime's; the library is registered with them.
        providers: as for onnxruntime, "CPUExecutionProvider" for instance; None: its own choice.
        provider_options: as for onnxruntime.
        **kwargs: as for onnxruntime.

    Raises:
        onnxruntime's own errors, among them those of an ASVP node whose attributes are out of range.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: ort.SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        options = ort.SessionOptions() if sess_options is None else sess_options
        if library_unused(providers) is None:
            options.register_custom_ops_library(native.library_path())
        super().__init__(path_or_bytes, options, providers, provider_options, **kwargs)


def library_unused(providers: Sequence[str | tuple[str, dict[Any, Any]]] | None) -> str | None:
    """Why a session on these providers leaves the native library out, in one sentence; None when it takes it.

    Args:
        providers: as for onnxruntime, in order of precedence; None: its own choice.
    """
    return native.unavailable() or unserved(_started(providers))


def unserved(providers: Iterable[str]) -> str | None:
    """Which of a session's providers the native library has no kernels for, in one sentence; None when it serves all.

    Args:
        providers: names of those that were started.
    """
    for name in providers:
        if name == "CUDAExecutionProvider":
            if reason := native.cuda_unavailable():
                return reason
        elif name not in ("CPUExecutionProvider", "AzureExecutionProvider"):  # Azure's runs no nodes but its own
            return f"The native library has no kernels for the {name}."
    return None


def _started(providers: Sequence[str | tuple[str, dict[Any, Any]]] | None) -> Sequence[str]:
    """Which of these onnxruntime can start; it shows only when it tries, and onnxruntime goes on without the others."""
    names = [one if isinstance(one, str) else one[0] for one in providers or ()]
    if names == ["CPUExecutionProvider"]:
        return names
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what does not start is told by the session that follows
    with contextlib.redirect_stdout(io.StringIO()):
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers).get_providers()
