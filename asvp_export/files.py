"""Writing a file all at once: it is there complete, or what was there before still is."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from asvp_export.errors import AsvpError, InputError, MachineError

try:
    import fcntl
except ImportError:  # Windows: what killed runs leave stays there
    fcntl = None

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
_TEMPORARY = re.compile(r"\.asvp-[0-9a-f]{16}\.tmp")


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's bytes, read in pieces.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror}).") from error


def check_output(path: Path, *, force: bool, role: str = "output") -> None:
    """Refuse an output that could not be written, before the work whose result goes there.

    Args:
        path: where it goes.
        force: it may replace a file.
        role: what the output is, for the message.

    Raises:
        InputError: the folder does not exist, the output is a folder, or it exists and `force` was not given.
    """
    if not path.parent.is_dir():
        raise InputError(f"The output folder {path.parent} does not exist; create it, or choose another with -o.")
    if path.exists() and not path.is_file():
        raise InputError(f"The {role} {path} is a folder or a device; name a file.")
    if path.exists() and not force:
        raise InputError(f"The {role} {path} exists; give --force to replace it, or choose another with -o.")


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file beside its final path and rename it.

    Guarantee: when anything is raised (an error, a full disk, Ctrl-C), no new file is left and the one that
    stood at `path` is as it was. A symbolic link is followed, as `open` does.

    Args:
        path: the file to write or replace.
        content: the bytes, or a function that writes them to the binary stream it is given.

    Raises:
        InputError: the folder does not exist or is not writable, or `path` is not a regular file.
        MachineError: the file could not be written to its end (no space, a quota, a broken disk).
    """
    target = Path(os.path.realpath(path))
    # A name of its own, chosen before the file exists: an interrupt at any moment finds it to remove.
    temporary = target.with_name(f".asvp-{secrets.token_hex(8)}.tmp")
    try:
        if not target.parent.is_dir():
            folder = Path(path).parent
            raise InputError(f"The folder {folder} does not exist; create it, or name another output.")
        if target.exists() and not target.is_file():
            raise InputError(f"{path} is a folder or a device, not a file; name a file as the output.")
        for leftover in abandoned(target.parent, _TEMPORARY):
            _remove(leftover)
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(temporary.open("xb"))
            while not stack.enter_context(claimed(temporary)):
                stream = stack.enter_context(temporary.open("xb"))
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            temporary.replace(target)
    except OSError as error:
        _remove(temporary)
        raise write_error(error, path) from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # the error that brought us here says more than this one would
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Within the block `abandoned` leaves a file or a folder alone. The claim ends with the process, also by kill -9.

    Yields:
        False: another run took it for abandoned and removed it before the claim; make it again.
    """
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks: `abandoned` gets none there either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))
    finally:
        os.close(descriptor)


def abandoned(folder: Path, names: re.Pattern[str]) -> Iterator[Path]:
    """What runs that were killed left in a folder: what nobody claims, each claimed while it is yielded.

    Args:
        folder: looked into, not below.
        names: which names such runs give; other files are not opened.
    """
    if fcntl is None:
        return
    try:
        paths = [path for path in folder.iterdir() if names.fullmatch(path.name)]
    except OSError:
        return
    for path in paths:
        with contextlib.suppress(OSError):  # it is claimed, gone, or not ours to remove
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Within the block Ctrl-C, a kill and a closed terminal wait; they arrive at its end.

    Handlers are replaced: a signal that this thread blocks reaches a thread of a native library, and Python then
    runs the handler here all the same. Outside of the main thread there is nothing to do, since Python runs no
    handler there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler not in (None, signal.SIG_IGN):  # None: not set by Python, which cannot set it again
                signal.signal(number, lambda number, frame: arrived.append(number))
        yield
    finally:
        for number, handler in before.items():
            if handler not in (None, signal.SIG_IGN):
                signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def write_error(error: OSError, path: str | Path) -> AsvpError:
    """The error to raise when `path` could not be written: the user's (no permission) or the machine's."""
    reason = error.strerror or str(error)
    if error.errno in _REFUSED:
        return InputError(f"{path} cannot be written ({reason}); name an output where you may write.")
    return MachineError(
        f"{path} could not be written ({reason}); it is as it was before. Check the disk and run again."
    )
