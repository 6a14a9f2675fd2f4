"""Running ONNX models in onnxruntime, with its failures told in one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from asvp_export.errors import AsvpError, InputError, MachineError
from asvp_export.operator import OP_TYPE
from asvp_export.operator.session import InferenceSession
from asvp_export.parity.cases import Case

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_QUIET = 4  # fatal only: what goes wrong comes back as an exception
_WARNING = 2  # onnxruntime's own default
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
)
_OTHER_SIZE = "Give a size that it was exported for; exporting with --static --size HxW gets a file for one size."
_OUT_OF_MEMORY = re.compile(r"bad_?alloc|out of memory|failed to allocate|CUDA failure 2\b", re.IGNORECASE)


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
    provider: str = "cpu",
    threads: int | None = None,
    data_folder: Path | None = None,
    library: bool = True,
) -> ort.InferenceSession:
    """Load an ONNX model into onnxruntime, on the provider asked for and no other.

    On CUDA, TF32 is switched off: it rounds factors to 10 bits, which would hide what a comparison shows.

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
        there = ", ".join(name for name, long in PROVIDERS.items() if long in ort.get_available_providers())
        raise InputError(f"The provider {provider!r} was asked for; this onnxruntime has {there}.")
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    if data_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data_folder))
    if threads is not None:
        options.intra_op_num_threads = threads
    name, source = _source(model)
    try:
        with _cuda_libraries() if provider == "cuda" else contextlib.nullcontext():
            opened = (InferenceSession if library else ort.InferenceSession)(
                source,
                options,
                providers=[(PROVIDERS[provider], {"use_tf32": "0"} if provider == "cuda" else {})],
                enable_fallback=0,
            )
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        advice = "Check that the file is whole, and made for this onnxruntime."
        if OP_TYPE in str(error):
            advice = "Its ASVP node cannot run as it stands: export the file anew."
        raise _translated(error, f"onnxruntime {ort.__version__} does not load {name}", advice) from error
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
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 18)]
    session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString(), provider)


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


def inputs_of(opened: ort.InferenceSession) -> tuple[ModelInput, ...]:
    """The inputs that a model asks for."""
    return tuple(
        ModelInput(found.name, tuple(dim if isinstance(dim, int | str) else None for dim in found.shape), found.type)
        for found in opened.get_inputs()
    )


def float_outputs(opened: ort.InferenceSession) -> list[ort.NodeArg]:
    """The outputs of a floating type, in order: those are compared."""
    return [one for one in opened.get_outputs() if one.type in _DTYPES]


def fits(opened: ort.InferenceSession, case: Case) -> None:
    """Check that a model takes the inputs of a case.

    Raises:
        InputError: it has another number of inputs, or one of another rank, channel count, fixed size or type.
    """
    inputs = inputs_of(opened)
    found = "; ".join(str(one) for one in inputs) or "nothing"
    if len(inputs) != len(case.inputs):
        raise InputError(
            f"The ONNX model takes {found}; {len(case.inputs)} inputs were given. Give an example of each (--inputs)."
        )
    for one, given in zip(inputs, case.inputs, strict=True):
        if given.dtype.kind == "f" and one.type not in _DTYPES:
            raise InputError(f"The ONNX model takes {found}; float16, float32 or float64 was expected for {one.name}.")
        if len(one.shape) != given.ndim or any(
            isinstance(dim, int) and dim != size for dim, size in zip(one.shape, given.shape, strict=True)
        ):
            expected = "x".join(str(dim) for dim in given.shape)
            raise InputError(
                f"The ONNX model takes {one}; the input of {case.name} is {expected}. Is it the same model, and exported "
                "for this size?"
            )


def run_model(opened: ort.InferenceSession, *inputs: np.ndarray) -> list[np.ndarray]:
    """Run a model and return its floating outputs.

    Args:
        opened: a session.
        *inputs: in the model's order; floating ones are cast to the float type that the model takes.

    Raises:
        InputError: the model does not run on these inputs.
        MachineError: there is not enough memory for it.
    """
    given = {}
    for one, x in zip(opened.get_inputs(), inputs, strict=True):
        given[one.name] = x.astype(_DTYPES[one.type], copy=False) if x.dtype.kind == "f" and one.type in _DTYPES else x
    try:
        outputs = opened.run([one.name for one in float_outputs(opened)], given)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        size = " and ".join("x".join(str(dim) for dim in x.shape) for x in inputs)
        what = f"onnxruntime does not run the model on an input of {size}"
        raise _translated(error, what, _OTHER_SIZE) from error
    if not outputs:
        kinds = "; ".join(f"{one.name} {one.type}" for one in opened.get_outputs())
        raise InputError(f"The model gives {kinds}; a floating output was expected.")
    return [np.asarray(output) for output in outputs]


def _translated(error: Exception, what: str, advice: str) -> AsvpError:
    """The error with onnxruntime's reason on one line, without its code."""
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    reason = re.sub(r"^Load model from .*? failed: ?", "", reason) or type(error).__name__
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(reason):
        return MachineError(f"{what}: out of memory ({reason}). Use smaller images or a machine with more memory.")
    return InputError(f"{what} ({reason.rstrip('.')}). {advice}")


def conflicting_onnxruntime() -> str | None:
    """One sentence when several onnxruntime packages are installed over each other, else None."""
    installed = [f"{wheel} {version}" for wheel in _WHEELS if (version := _version(wheel))]
    if len(installed) < 2:
        return None
    return (
        f"Several onnxruntime packages are installed and overwrite each other ({', '.join(installed)}): "
        "uninstall all of them, then install the one you want."
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
