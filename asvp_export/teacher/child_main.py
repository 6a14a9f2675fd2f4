"""Runs a model file for `asvp_export.teacher.child`, in a process that may crash, hang or fill the memory by itself.

It is started by its path and imports nothing of ours: numpy and onnxruntime, or PyTorch where the file is TorchScript.
So it has a session opener and a test for a lack of memory of its own: those of `asvp_export.runtime.session` import
PyTorch, which takes each such process seconds.

A message, in both directions, is its length, a JSON object, and the bytes of the tensors. The object lists the tensors'
types, shapes and sizes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_LENGTH = struct.Struct("<Q")


class InvalidError(Exception):
    """The file is none of its kind; the message says why."""


def send(stream: IO[bytes], message: Mapping[str, Any], tensors: Sequence[Any] = ()) -> None:
    """Write a message.

    Args:
        stream: of bytes.
        message: what JSON holds.
        tensors: of numpy, or of PyTorch on the CPU; dense.
    """
    kinds = [(str(t.dtype).removeprefix("torch."), tuple(t.shape), t.nbytes) for t in tensors]
    text = json.dumps({**message, "tensors": kinds}).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for tensor in tensors:
        stream.write(_bytes(tensor))
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any]:
    """Read what JSON holds of a message; the bytes of its "tensors" come next.

    Raises:
        EOFError: the other side is gone.
    """
    (length,) = _LENGTH.unpack(received(stream, _LENGTH.size))
    return json.loads(received(stream, length))


def received(stream: IO[bytes], count: int) -> bytearray:
    """So many bytes.

    Raises:
        EOFError: the other side is gone.
    """
    content, filled = bytearray(count), 0
    while filled < count:
        # IO has no readinto, a buffered stream has: a tensor's bytes are in memory once.
        more = stream.readinto(memoryview(content)[filled:])  # type: ignore[attr-defined]
        if not more:
            raise EOFError
        filled += more
    return content


def _bytes(tensor: Any) -> memoryview:
    if hasattr(tensor, "numpy"):  # numpy lacks some of PyTorch's types
        import torch

        tensor = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        import numpy as np

        tensor = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    return memoryview(tensor)


def torch_tensor(kind: str, shape: Sequence[int], data: bytearray) -> Any:
    """The tensor of a message, for PyTorch."""
    import torch

    dtype = getattr(torch, kind)
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def _onnx() -> Callable[..., Callable[[list[Any]], object]]:
    """What checks a graph and opens it as `asvp_export.teacher.onnx_model.open_session` does."""
    import numpy as np
    import onnx
    import onnxruntime as ort

    def open_file(request: Mapping[str, Any], tensors: list[Any]) -> Callable[[list[Any]], object]:
        path = Path(request["file"])
        if request["check"]:
            try:
                content = onnx.load_from_string(bytes(tensors[0][2])) if tensors else str(path)
                onnx.checker.check_model(content, full_check=not tensors)
            except Exception as error:  # protobuf's and the checker's errors have no common base
                raise InvalidError(f"{type(error).__name__}: {error}") from error
        options = ort.SessionOptions()
        options.log_severity_level = 4  # fatal only
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(inputs: list[Any]) -> object:
            arrays = (np.ndarray(shape, kind, data) for kind, shape, data in inputs)
            outputs = session.run(names, {node.name: x for node, x in zip(session.get_inputs(), arrays, strict=True)})
            for name, value in zip(names, outputs, strict=True):
                if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
                    raise TypeError(f"{name} is not a tensor of numbers")
            return outputs[0] if len(outputs) == 1 else tuple(outputs)

        return run

    return open_file


def _torchscript() -> Callable[..., Callable[[list[Any]], object]]:
    """What opens an archive as `asvp_export.teacher.load` does."""
    import torch

    def open_file(request: Mapping[str, Any], tensors: list[Any]) -> Callable[[list[Any]], object]:
        device = request["device"]
        with torch.no_grad():
            module = torch.jit.load(request["file"], map_location=device).float().to(device).eval()

        def run(inputs: list[Any]) -> object:
            with torch.no_grad():
                return module(*(torch_tensor(*tensor).to(device) for tensor in inputs))

        return run

    return open_file


def _packed(result: Any, tensors: list[Any]) -> object:
    """What a model returned as JSON holds it, each tensor by its index in `tensors`; fields of a tuple are keys too."""
    if isinstance(result, Mapping):
        return {str(key): _packed(value, tensors) for key, value in result.items()}
    if isinstance(result, tuple | list):
        fields = getattr(result, "_fields", None)
        values = [_packed(value, tensors) for value in result]
        return dict(zip(fields, values, strict=True)) if fields else values
    if not hasattr(result, "dtype"):
        return None
    tensors.append(result.detach().cpu() if hasattr(result, "detach") else result)
    return len(tensors) - 1


def _requests() -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """What is asked for, one by one; when the parent is gone, this process ends at once, in the midst of a run too."""
    waiting: queue.SimpleQueue[tuple[dict[str, Any], list[Any]]] = queue.SimpleQueue()

    def read() -> None:
        stream = sys.stdin.buffer
        try:
            while True:
                request = receive(stream)
                tensors = [(kind, shape, received(stream, size)) for kind, shape, size in request["tensors"]]
                waiting.put((request, tensors))
        finally:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield waiting.get()


def _answers(stream: IO[bytes]) -> None:
    """Answer what is asked: which kind of file it will be, the file, and one run after the other."""
    open_file: Callable[..., Callable[[list[Any]], object]] | None = None
    run: Callable[[list[Any]], object] | None = None
    for request, inputs in _requests():
        tensors: list[Any] = []
        answer = None
        try:
            if open_file is None:
                sys.path[:] = request["path"]
                open_file = {"onnx": _onnx, "torchscript": _torchscript}[request["kind"]]()
            elif run is None:
                run = open_file(request, inputs)
            else:
                answer = _packed(run(inputs), tensors)
        except Exception as error:  # whatever the file's code raises
            memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            send(stream, {"error": [type(error).__name__, str(error)], "memory": memory})
        else:
            send(stream, {"result": answer}, tensors)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent ends this process
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if the system has to end something, then this
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the messages
    sys.stdout = sys.stderr
    _answers(stream)


if __name__ == "__main__":
    _main()
