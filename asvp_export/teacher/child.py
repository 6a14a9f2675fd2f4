"""Running a model's file in a process of its own, whose crash, hang or hunger for memory becomes a sentence."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asvp_export.errors import AsvpError, InputError, MachineError, first_line
from asvp_export.options import LoadOptions
from asvp_export.teacher import child_main
from asvp_export.teacher.onnx_model import OnnxModule

_TO_START = 300.0  # seconds for Python and the packages
_TO_OPEN = 10  # times as long as for a run, for checking, reading and optimising a file, which may be large
_SHARE = 0.8  # of the memory that is free when the process starts
_LOOK = 0.05  # seconds between two looks at it
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (\S+\.(cc|h):\d+ .*\) )?")  # and the place in its source
_CRASHES = 16  # and no run that worked: as many as there are multiples of sizes to try


class CrashError(RuntimeError):
    """The process ended by itself; the message says how, and on what."""

    def __init__(self, ended: str, context: str) -> None:
        super().__init__(f"the process that ran it was {ended} {context}")
        self.ended = ended


class StoppedError(AsvpError):
    """No other size is worth trying: a run took longer or more than it may, or nothing but crashes came of the file."""


@dataclass(frozen=True)
class Limits:
    """Of the process."""

    seconds: float = LoadOptions.probe_timeout
    """For a run on some 48 pixels; ten times as much for opening the file."""

    mebibytes: int | None = None
    """Of memory; None: four fifths of what is free when it starts."""


@contextlib.contextmanager
def child_process(path: Path | None, device: str, limits: Limits) -> Iterator[Child]:
    """A process of its own for a model's file, which is opened and tried out there first.

    Args:
        path: the file; None: the module was made in memory.
        device: where the module will be.
        limits: of the process.

    Yields:
        It starts when it is told to; it has ended when the block is left.
    """
    child = Child(path, device, limits)
    try:
        yield child
    finally:
        child.end()


class Child:
    """A model's file, opened and run in a process, which starts again after a crash.

    The module runs in this process where the other cannot open it: an operator was registered here, or Python does not
    start.

    Args:
        path: the file; None: there is none.
        device: where the module is.
        limits: of the process.
    """

    def __init__(self, path: Path | None, device: str, limits: Limits) -> None:
        self._path, self._device, self._limits = path or Path(), device, limits
        self._module: nn.Module | None = None
        self._kind = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._memory_limit = 0
        self._in_this_process = self._worked = False
        self._stopped = ""
        self._crashes: dict[tuple[int, int], str] = {}

    def start(self, kind: str) -> None:
        """Start the process; what it needs is imported while this one goes on.

        Args:
            kind: of the file, "onnx" or "torchscript".
        """
        self._kind = kind
        self._memory_limit = 2**20 * self._limits.mebibytes if self._limits.mebibytes else int(_SHARE * _free_memory())
        command = [sys.executable, "-I", child_main.__file__]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError:
            self._in_this_process = True
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already, as will be seen
            child_main.send(self._process.stdin, {"path": sys.path, "kind": kind})

    def open(self, check: bytes | None = b"") -> bool:
        """Let the process check and open the file.

        Args:
            check: of an ONNX graph: these bytes are checked; empty: the file, in full; None: nothing is.

        Returns:
            Whether it did; where it could not, the module runs in this process.

        Raises:
            InputError: it is no valid file, or onnxruntime does not open it.
            StoppedError: that crashed, or took longer or more memory than it may.
            MachineError: memory ran out.
        """
        if self._in_this_process:
            return False
        request = {"file": str(self._path.absolute()), "device": self._device, "check": check is not None}
        tensors = [torch.frombuffer(bytearray(check), dtype=torch.uint8)] if check else []
        try:
            self._ask(None, [], "while its process started", _TO_START)
            answer, _ = self._ask(request, tensors, "while it was opened", _TO_OPEN * self._limits.seconds)
        except CrashError as error:
            if error.ended == _ended(1):  # Python itself does not start in isolation
                self._in_this_process = True
                return False
            raise StoppedError(f"{self._path.name} cannot be opened: {error}.") from error
        if answer.get("memory"):
            raise _error(answer)
        if "error" in answer:
            kind, text = answer["error"]
            line = first_line(text) or kind
            reason = _CODE.sub("", line)[:200].rstrip(".")
            if kind == "InvalidError":
                raise InputError(f"{self._path} is not a valid ONNX model: {reason}.")
            if self._kind == "onnx":
                raise InputError(f"onnxruntime cannot open {self._path}: {reason}.")
            self.end()
            self._in_this_process = True
        return not self._in_this_process

    def stand_for(self, module: nn.Module) -> Callable[..., object]:
        """What runs a module: this where its file was opened here, else the module itself."""
        self._module = module
        return self if self._kind else module

    def __call__(self, *inputs: torch.Tensor) -> object:
        """What the module returns for some inputs: tensors, and sequences and mappings of them.

        Raises:
            CrashError: the process crashed.
            RuntimeError: the model raised an error.
            StoppedError: it ran longer, or took more memory, than it may.
            MachineError: it took more memory than there is.
        """
        assert self._module is not None, "it stands for no module"
        if not self._in_this_process and self._process is None:  # it crashed
            self.start(self._kind)
            self.open(None)
        if self._in_this_process:
            return self._module(*inputs)
        arguments = self._module.cast(inputs).values() if isinstance(self._module, OnnxModule) else inputs
        image = max(inputs, key=lambda x: x.ndim)
        context = f"on {'x'.join(map(str, image.shape))}"
        tensors = [x.detach().cpu() for x in arguments]
        try:
            answer, outputs = self._ask({}, tensors, context, self._limits.seconds)
        except CrashError as error:
            self._crashes[image.shape[-2], image.shape[-1]] = error.ended
            if not self._worked and len(self._crashes) >= _CRASHES:
                raise StoppedError(f"{self._path.name} crashes at each size that was tried: {error}.") from error
            raise
        if "error" in answer:
            raise _error(answer)
        self._worked = True
        return _unpacked(answer["result"], [tensor.to(inputs[0].device) for tensor in outputs])

    def crashed_below(self, least: int) -> str:
        """The largest crash at a side of less than so many pixels, in words; "" where there was none."""
        below = [sides for sides in self._crashes if min(sides) < least]
        if not below:
            return ""
        height, width = largest = max(below)
        runner = "onnxruntime" if isinstance(self._module, OnnxModule) else "PyTorch"
        return f"{runner} is {self._crashes[largest]} at {height}x{width}"

    def end(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not written when it ended
                assert pipe is not None
                pipe.close()

    def _ask(
        self, message: dict[str, Any] | None, tensors: list[torch.Tensor], context: str, seconds: float
    ) -> tuple[dict[str, Any], list[torch.Tensor]]:
        """Send a message, where there is one, and wait for an answer and its tensors.

        Args:
            message: what JSON holds; None: the process answers by itself when it has started.
            tensors: sent behind it.
            context: when, or on what, as the end of a sentence.
            seconds: how long it may take.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        self._stopped = ""
        try:
            with self._watched(process, seconds):
                if message is not None:
                    child_main.send(process.stdin, message, tensors)
                answer = child_main.receive(process.stdout)
                if sum(size for _, _, size in answer["tensors"]) > _SHARE * _free_memory():
                    self._stopped = "memory"
                    raise EOFError
                parts = [(kind, shape, child_main.received(process.stdout, n)) for kind, shape, n in answer["tensors"]]
            if self._stopped:
                raise EOFError
        except (OSError, EOFError) as error:
            stopped, code = self._stopped, process.wait() if not self._stopped else 0
            self.end()
            raise self._problem(stopped, code, context, seconds) from error
        except BaseException:  # Ctrl-C
            self.end()
            raise
        return answer, [child_main.torch_tensor(*part) for part in parts]

    def _problem(self, stopped: str, code: int, context: str, seconds: float) -> Exception:
        name = self._path.name
        if stopped == "time":
            return StoppedError(
                f"{name} did not finish within {seconds:g} s {context}; if it only needs longer, raise the limit with "
                "--probe-timeout SECONDS."
            )
        killed = code == -9 and sys.platform == "linux"  # by the system, because memory ran out
        if stopped == "memory" and self._limits.mebibytes:
            return StoppedError(
                f"{name} took more than {self._limits.mebibytes} MiB of memory {context}; if it needs more, raise the "
                "limit with --probe-memory MIB."
            )
        if stopped == "memory" or killed:
            return MachineError(
                f"{name} took more than {self._memory_limit / 2**30:.1f} GiB of memory {context}, and no more is free; "
                "use a machine with more, or close other programs on this one."
            )
        return CrashError(_ended(code), context)

    @contextlib.contextmanager
    def _watched(self, process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
        """End the process when it takes too long or too much memory, and note which."""
        done = threading.Event()

        def watch() -> None:
            waited = 0.0  # in looks, not by the clock: a laptop may sleep
            while not done.wait(_LOOK):
                waited += _LOOK
                over = "time" if waited > seconds else "memory" if _memory_of(process.pid) > self._memory_limit else ""
                if over:
                    self._stopped = over
                    process.kill()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _ended(code: int) -> str:
    """How a process ended, from its exit code."""
    with contextlib.suppress(ValueError):
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _error(answer: dict[str, Any]) -> Exception:
    """The error of a model, as it would have been raised here."""
    kind, text = answer["error"]
    if answer["memory"]:
        return MemoryError(text)
    return RuntimeError(text if kind == "RuntimeError" else f"{kind}: {text}")


def _unpacked(result: object, tensors: list[torch.Tensor]) -> object:
    if isinstance(result, dict):
        return {key: _unpacked(value, tensors) for key, value in result.items()}
    if isinstance(result, list):
        return tuple(_unpacked(value, tensors) for value in result)
    return tensors[result] if isinstance(result, int) else None


def _free_memory() -> int:
    """Bytes that a new process may take; a great many where the system does not tell."""
    return _kib(Path("/proc/meminfo"), "MemAvailable:") or 2**62


def _memory_of(pid: int) -> int:
    """Bytes that a process has for itself; what it maps of files can be given up."""
    status = Path(f"/proc/{pid}/status")
    return _kib(status, "RssAnon:", "VmSwap:")


def _kib(path: Path, *names: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(names))
