"""Sessions of onnxruntime, and running a model in one, its failures told in one line.

They are opened here alone, but for `asvp_export.teacher.child_main`, a process that imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from asvp_export.errors import AsvpError, InputError, MachineError, one_line
from asvp_export.interrupts import stoppable
from asvp_export.onnx_graph.opening import read_model
from asvp_export.operator import OP_TYPE, native
from asvp_export.options import GateOptions
from asvp_export.shortage import is_out_of_memory
from asvp_export.signature import shape_text

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

FLOAT_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""onnxruntime's floating types as NumPy's: outputs of these are compared, inputs of these are cast."""

_QUIET = 4  # fatal only: what goes wrong comes back as an exception
_WARNING = 2  # onnxruntime's own default
_OTHER_SIZE = "Give a size that it was exported for; exporting with --static --size HxW makes a file for one size."

_Providers = Sequence[str | tuple[str, dict[Any, Any]]]


class StoppableSession(ort.InferenceSession):
    """`onnxruntime.InferenceSession`, whose opening and whose runs end early when a command is interrupted.

    Args:
        path_or_bytes: as for onnxruntime.
        sess_options: as for onnxruntime.
        *providers: as for onnxruntime.
        **kwargs: as for onnxruntime.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: ort.SessionOptions | None = None,
        *providers: Any,
        **kwargs: Any,
    ) -> None:
        options = ort.SessionOptions() if sess_options is None else sess_options
        with stoppable(lambda: options.set_load_cancellation_flag(True)):
            super().__init__(path_or_bytes, options, *providers, **kwargs)

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> Sequence[Any]:
        """See onnxruntime."""
        options = ort.RunOptions() if run_options is None else run_options
        with stoppable(lambda: setattr(options, "terminate", True)):
            return super().run(output_names, input_feed, options)

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, Any], run_options: Any = None
    ) -> Sequence[ort.OrtValue]:
        """See onnxruntime."""
        options = ort.RunOptions() if run_options is None else run_options
        with stoppable(lambda: setattr(options, "terminate", True)):
            return super().run_with_ort_values(output_names, input_dict_ort_values, options)


class InferenceSession(StoppableSession):
    """`onnxruntime.InferenceSession` that runs ASVP nodes by the native kernels where these are faster.

    Takes what onnxruntime's own session takes. Without the library, and where it would hurt (a provider for which it
    has no kernel: the node would go to the CPU with copies), the function body in the file runs instead. Options that
    the library was registered with keep it: take fresh ones for a session without it.

    Args:
        path_or_bytes: an ONNX file, or the bytes of one.
        sess_options: onnxruntime's; the library is registered with them.
        providers: as for onnxruntime, "CPUExecutionProvider" for instance; None: its own choice.
        provider_options: as for onnxruntime.
        **kwargs: as for onnxruntime.

    Raises:
        Exception: onnxruntime's own, among them those of an ASVP node whose attributes are out of range.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: ort.SessionOptions | None = None,
        providers: _Providers | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        options = ort.SessionOptions() if sess_options is None else sess_options
        if library_unused(providers) is None:
            options.register_custom_ops_library(native.library_path())
        super().__init__(path_or_bytes, options, providers, provider_options, **kwargs)


def library_unused(providers: _Providers | None) -> str | None:
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


def _started(providers: _Providers | None) -> Sequence[str]:
    """Which of these onnxruntime can start; it shows only when it tries, and onnxruntime goes on without the others."""
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers or ()]
    if names == ["CPUExecutionProvider"]:
        return names
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET  # what does not start is told by the session that follows
    with contextlib.redirect_stdout(io.StringIO()):
        return ort.InferenceSession(_probe_model(), options, providers=providers).get_providers()


@cache
def _probe_model() -> bytes:
    """The smallest model there is: loading it shows whether a provider starts."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@dataclass(frozen=True)
class SessionSettings:
    """How a session of this package runs."""

    provider: str = GateOptions.provider
    """A key of `PROVIDERS`."""

    threads: int | None = None
    """How many a node may use; None: onnxruntime's choice."""

    data_folder: Path | None = None
    """Where the external data of a model given as bytes lies."""

    library: bool = False
    """Take the native kernels where they serve the provider; False: always the function body in the file."""

    spinning: bool = True
    """Threads spin while they wait: quicker, but they hold up other sessions and PyTorch."""

    profile: Path | None = None
    """Write how long each node takes to a file of this beginning, and leave every node as it stands in the model."""


def create_session(source: str | bytes, settings: SessionSettings) -> ort.InferenceSession:
    """Open a model: every session of this package but a caller's own comes from here.

    On CUDA, TF32 is switched off: it rounds factors to 10 bits, which would hide what a comparison shows.

    Args:
        source: the path of a file, or the bytes of one.
        settings: how it runs; the provider is one that onnxruntime has.

    Raises:
        onnxruntime's own errors, which have no base of their own; `shortage.is_out_of_memory` tells one kind.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    if settings.data_folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(settings.data_folder))
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    if not settings.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if settings.profile is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(settings.profile)
    cuda = settings.provider == "cuda"
    kind = InferenceSession if settings.library else StoppableSession
    with _cuda_libraries() if cuda else contextlib.nullcontext():
        providers = [(PROVIDERS[settings.provider], {"use_tf32": "0"} if cuda else {})]
        return kind(source, options, providers=providers, enable_fallback=0)


@dataclass(frozen=True)
class ModelInput:
    """What an ONNX model says about one of its inputs."""

    name: str
    """The input's name."""

    shape: tuple[int | str | None, ...]
    """A number where the size is fixed, a name or None where it is free."""

    type: str
    """onnxruntime's word for it, "tensor(float)"."""

    def __str__(self) -> str:
        return f"{self.name} {self.type} {'x'.join('?' if dim is None else str(dim) for dim in self.shape)}"


def session(
    model: str | Path | bytes,
    provider: str = GateOptions.provider,
    threads: int | None = None,
    data_folder: Path | None = None,
    library: bool = True,
) -> ort.InferenceSession:
    """Load an ONNX model into onnxruntime, on the provider asked for and no other.

    Args:
        model: a file, or the bytes of one.
        provider: "cpu" or "cuda".
        threads: how many threads a node may use; onnxruntime's choice when None.
        data_folder: where the external data of a model given as bytes lies.
        library: take the native kernels where they serve the provider; False: always the function body in the file.

    Raises:
        InputError: the provider is not there, or onnxruntime does not load the model.
        MachineError: there is not enough memory for it.
    """
    if PROVIDERS.get(provider) not in ort.get_available_providers():
        available = ", ".join(name for name, long in PROVIDERS.items() if long in ort.get_available_providers())
        raise InputError(f"The provider {provider!r} was asked for; this onnxruntime has {available}.")
    name, source = _source(model)
    try:
        opened = create_session(source, SessionSettings(provider, threads, data_folder, library))
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        advice = "Check that the file is whole, and made for this onnxruntime."
        if OP_TYPE in str(error):
            advice = "Its ASVP node cannot run as it stands; export the file again."
        raise _translated(error, f"onnxruntime {ort.__version__} cannot load {name}", advice) from error
    if PROVIDERS[provider] not in opened.get_providers():
        raise InputError(
            "The provider 'cuda' was asked for; onnxruntime could not start it, and would have run on the "
            "CPU. Check that there is a GPU, its driver, and the CUDA and cuDNN that onnxruntime needs."
        )
    return opened


def check_provider(provider: str) -> None:
    """Start an empty session, so that a provider that is not there is told before long work.

    Raises:
        InputError: as for `session`.
    """
    session(_probe_model(), provider)


def _source(model: str | Path | bytes) -> tuple[str, str | bytes]:
    if isinstance(model, bytes):
        if not model:
            raise InputError("The model has no bytes; an ONNX model was expected.")
        return "the model", model
    path = Path(model)
    if not path.exists():
        raise InputError(f"The model {path} does not exist.")
    if not path.is_file():
        raise InputError(f"{path} is not a file; an ONNX model was expected.")
    if not path.stat().st_size:
        raise InputError(f"The model {path} is empty; an ONNX model was expected.")
    with contextlib.suppress(DecodeError):  # onnxruntime says what it is then, or has a format of its own for it
        read_model(path)
    return str(path), str(path)


@contextlib.contextmanager
def _cuda_libraries() -> Iterator[None]:
    """Make the CUDA libraries of pip packages known, and keep onnxruntime from printing what is missing."""
    ort.set_default_logger_severity(_QUIET)
    try:
        if hasattr(ort, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):
                ort.preload_dlls()
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def session_inputs(opened: ort.InferenceSession) -> tuple[ModelInput, ...]:
    """The inputs that a model asks for."""
    return tuple(
        ModelInput(node.name, tuple(dim if isinstance(dim, int | str) else None for dim in node.shape), node.type)
        for node in opened.get_inputs()
    )


def float_outputs(opened: ort.InferenceSession) -> list[ort.NodeArg]:
    """The outputs of a floating type, in order: those are compared."""
    return [output for output in opened.get_outputs() if output.type in FLOAT_DTYPES]


def run_model(opened: ort.InferenceSession, *inputs: np.ndarray) -> list[np.ndarray]:
    """Run a model and return its floating outputs.

    Args:
        opened: a session.
        *inputs: in the model's order; floating ones are cast to the float type that the model takes.

    Raises:
        InputError: the model does not run on these inputs.
        MachineError: there is not enough memory for it.
    """
    feeds = {}
    for node, x in zip(opened.get_inputs(), inputs, strict=True):
        feeds[node.name] = (
            x.astype(FLOAT_DTYPES[node.type], copy=False) if x.dtype.kind == "f" and node.type in FLOAT_DTYPES else x
        )
    try:
        outputs = opened.run([node.name for node in float_outputs(opened)], feeds)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        size = " and ".join(shape_text(x.shape) for x in inputs)
        problem = f"onnxruntime cannot run the model on an input of {size}"
        raise _translated(error, problem, _OTHER_SIZE) from error
    if not outputs:
        kinds = "; ".join(f"{node.name} {node.type}" for node in opened.get_outputs())
        raise InputError(f"The model gives {kinds}; a floating-point output was expected.")
    return [np.asarray(output) for output in outputs]


def _translated(error: Exception, problem: str, advice: str) -> AsvpError:
    """The error with onnxruntime's reason on one line, without its code."""
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error))
    reason = re.sub(r"^Load model from .*? failed: ?", "", reason) or type(error).__name__
    if is_out_of_memory(error):
        return MachineError(f"{problem}: out of memory ({reason}). Use smaller images or a machine with more memory.")
    return InputError(f"{problem} ({reason.rstrip('.')}). {advice}")
