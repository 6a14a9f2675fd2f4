"""Running a model's file in a process of its own, whose crash, hang or hunger for memory becomes a sentence."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asvp_export.errors import AsvpError, MachineError
from asvp_export.teacher import child_main
from asvp_export.teacher.onnx_model import OnnxModule

PROBE_TIMEOUT = 120.0  # seconds a run on some 48 pixels may take
_TO_OPEN = 10  # times as long for reading and optimising a file, which may be large
_SHARE = 0.8  # of the memory that is free when the process starts
_LOOK = 0.05  # seconds between two looks at it
_CRASHES = 16  # and no run that worked: as many as there are multiples of sizes to try


class CrashError(RuntimeError):
    """The process ended by itself; the message says how, and on what."""

    def __init__(self, ended: str, where: str) -> None:
        super().__init__(f"the process that ran it was {ended} {where}")
        self.ended = ended


class StoppedError(AsvpError):
    """No other size is worth trying: a run took too long, or nothing but crashes came of the file."""


@contextlib.contextmanager
def apart(module: nn.Module, path: Path | None, device: str, timeout: float) -> Iterator[Callable[..., object]]:
    """What stands for a module while its file is tried out: the file in a process of its own, or the module itself.

    Args:
        module: from the file; only those that onnxruntime or TorchScript runs can end the process that they run in.
        path: the file; None: the module was made in memory.
        device: where the module is.
        timeout: seconds that a run may take.

    Yields:
        A callable like the module; the process has ended when the block is left.
    """
    if path is None or not isinstance(module, OnnxModule | torch.jit.ScriptModule):
        yield module
        return
    child = Child(module, path, device, timeout)
    try:
        yield child
    finally:
        child.end()


class Child:
    """A model's file, run in a process that starts with the first run, and again after a crash.

    The module runs in this process where the other cannot open it: an operator was registered here, or Python does not
    start.

    Args:
        module: from the file.
        path: the file.
        device: where the module is.
        timeout: seconds that a run may take.
    """

    def __init__(self, module: OnnxModule | torch.jit.ScriptModule, path: Path, device: str, timeout: float) -> None:
        self._module, self._path, self._device, self._timeout = module, path, device, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._room = 0
        self._here = self._worked = False
        self._stopped = ""
        self._crashes: dict[tuple[int, int], str] = {}

    def __call__(self, *inputs: torch.Tensor) -> object:
        """What the module returns for some inputs: tensors, and sequences and mappings of them.

        Raises:
            CrashError: the process crashed.
            RuntimeError: the model raised an error.
            StoppedError: it ran longer than it may.
            MachineError: it took more memory than there is.
        """
        if not self._here and self._process is None:
            self._here = not self._open()
        if self._here:
            return self._module(*inputs)
        given = self._module.cast(inputs).values() if isinstance(self._module, OnnxModule) else inputs
        image = max(inputs, key=lambda x: x.ndim)
        where = f"on {'x'.join(map(str, image.shape))}"
        tensors = [x.detach().cpu() for x in given]
        try:
            answer, found = self._asked({}, tensors, where, self._timeout)
        except CrashError as error:
            self._crashes[image.shape[-2], image.shape[-1]] = error.ended
            if not self._worked and len(self._crashes) >= _CRASHES:
                raise StoppedError(f"{self._path.name} crashes at each size that was tried: {error}.") from error
            raise
        if "error" in answer:
            raise _error(answer)
        self._worked = True
        return _unpacked(answer["result"], [tensor.to(inputs[0].device) for tensor in found])

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

    def _open(self) -> bool:
        """Start the process and let it open the file; False where it cannot.

        Raises:
            StoppedError: that crashed, or took too long.
            MachineError: it took more memory than there is.
        """
        self._room = int(_SHARE * _free_memory())
        command = [sys.executable, "-I", child_main.__file__]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError:
            return False
        kind = "onnx" if isinstance(self._module, OnnxModule) else "torchscript"
        asked = {"path": sys.path, "kind": kind, "file": str(self._path.absolute()), "device": self._device}
        try:
            answer, _ = self._asked(asked, [], "while it was opened", _TO_OPEN * self._timeout)
        except CrashError as error:
            if error.ended == _ended(1):  # Python itself does not start in isolation
                return False
            raise StoppedError(f"{self._path.name} cannot be opened: {error}.") from error
        if answer.get("memory"):
            raise _error(answer)
        if "error" in answer:
            self.end()
        return "error" not in answer

    def _asked(
        self, asked: dict[str, Any], tensors: list[torch.Tensor], where: str, seconds: float
    ) -> tuple[dict[str, Any], list[torch.Tensor]]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        self._stopped = ""
        try:
            with self._watched(process, seconds):
                child_main.send(process.stdin, asked, tensors)
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
            raise self._problem(stopped, code, where, seconds) from error
        except BaseException:  # Ctrl-C
            self.end()
            raise
        return answer, [child_main.torch_tensor(*part) for part in parts]

    def _problem(self, stopped: str, code: int, where: str, seconds: float) -> Exception:
        name = self._path.name
        if stopped == "time":
            return StoppedError(
                f"{name} was not done within {seconds:g} s {where}; if it only needs longer, say how long a run may "
                "take with --probe-timeout SECONDS."
            )
        killed = code == -9 and sys.platform == "linux"  # by the system, because memory ran out
        if stopped == "memory" or killed:
            return MachineError(
                f"{name} took more than {self._room / 2**30:.1f} GiB of memory {where}, and no more is free for it; "
                "use a machine with more, or end what else runs on this one."
            )
        return CrashError(_ended(code), where)

    @contextlib.contextmanager
    def _watched(self, process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
        """End the process when it takes too long or too much memory, and note which."""
        done = threading.Event()

        def watch() -> None:
            waited = 0.0  # in looks, not by the clock: a laptop may sleep
            while not done.wait(_LOOK):
                waited += _LOOK
                over = "time" if waited > seconds else "memory" if _memory_of(process.pid) > self._room else ""
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
