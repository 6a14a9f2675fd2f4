"""What the machine has too little of: memory, addresses, open files. Libraries say it in words of their own."""

from __future__ import annotations

import errno
import re

from asvp_export.errors import AsvpError, MachineError, causes

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None

LEAST_ADDRESSES = 1200 * 2**20
"""Bytes. With fewer, native libraries end the process themselves, with exit code 1, SIGINT or SIGABRT and without a
word, or run on without end. Measured with two cores; each core more takes more."""

_OUT_OF_MEMORY = re.compile(  # as C++, onnxruntime, PyTorch, oneDNN, CUDA and the system say it
    r"bad[_ ]?alloc|out of memory|failed to allocate|can(not|'t) allocate memory|not enough memory|CUDA failure 2\b"
    r"|failed to map segment|can't start new thread|could not create a primitive$",  # oneDNN: no pages for its code
    re.IGNORECASE,
)
_OUT_OF_FILES = re.compile("too many open files", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of onnxruntime, PyTorch, the system or Python says that there was not enough memory.

    `asvp_export.teacher.child_main`, a process that imports nothing of this package, tells it by the error's type.
    """
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def shortage(error: BaseException) -> str:
    """A sentence on what ran out where an error, or one that led to it, says so; "" where it was something else.

    Wide `except` clauses take a lack of memory for a fault of the file that was read, or of the user's model. Our own
    messages are not searched: they quote what strangers wrote.
    """
    for cause in causes(error, implicit=True):
        if isinstance(cause, AsvpError):
            continue
        if is_out_of_memory(cause):
            return "The machine ran out of memory; use smaller images, or a machine with more."
        number = cause.errno if isinstance(cause, OSError) else None
        if number in (errno.EMFILE, errno.ENFILE) or _OUT_OF_FILES.search(str(cause)):
            return f"This process may not open more files{_limit()}; raise the limit (ulimit -n) and run again."
    return ""


def check_addresses() -> None:
    """Refuse a limit on addresses under which native libraries end the process without a word.

    Raises:
        MachineError: the limit is below `LEAST_ADDRESSES`.
    """
    if resource is None:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
        raise MachineError(
            f"This process may use {limit // 2**20} MiB of address space (ulimit -v), and PyTorch and onnxruntime "
            f"need {LEAST_ADDRESSES // 2**20} MiB to start; raise the limit."
        )


def _limit() -> str:
    return f" than {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} at once" if resource else ""
