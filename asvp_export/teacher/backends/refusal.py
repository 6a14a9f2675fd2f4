"""What is told where PyTorch's exporter refuses a module: why, at which of the user's lines, what gets a file."""

from __future__ import annotations

import re
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from asvp_export.errors import AsvpError, InputError, causes, first_line
from asvp_export.signature import Signature
from asvp_export.teacher.model import Teacher
from asvp_export.teacher.torchscript import converted

Frozen = tuple[int | None, ...]
"""The dimensions N, C, H, W of the image that are frozen, None where free."""

_FEW_MODULES = 500  # whose export takes seconds
_FOREIGN = tuple(
    str(Path(folder).resolve())
    for folder in (
        *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")),
        *torch.__path__,
        Path(__file__).parents[2],  # this package
    )
)
_STATIC_BATCH, _STATIC = "--static-batch", "--static --size HxW"
_SCRIPT = "a TorchScript file instead of the model (torch.jit.trace(model, image).save)"


class FixedError(Exception):
    """Sizes that were to be free came out of the trace as numbers."""

    def __init__(self, sizes: Sequence[str]) -> None:
        super().__init__(" and ".join(sizes))
        self.sizes = list(sizes)
        """As "name (value)"."""


def refusal(error: Exception, teacher: Teacher, frozen: Frozen, attempt: Callable[[Frozen], object]) -> AsvpError:
    """What to raise for an error of the exporter.

    The options are tried where the model is small, in the order in which they take the least away from the file.

    Args:
        error: of the exporter, which wraps whatever went wrong inside; or a FixedError.
        teacher: the original.
        frozen: what was frozen when the exporter refused.
        attempt: exports with other dimensions frozen, and raises where that is refused too.
    """
    stuck = error.sizes if isinstance(error, FixedError) else _fixed_on_the_way(error, teacher.signature)
    options = _options(teacher, frozen, batch_alone=all(name.startswith("batch") for name in stuck))
    way_out = _way_out(teacher, options, attempt)
    line = _users_line(error)
    at = f", at {line}" if line else ""
    if stuck:
        return InputError(
            f"The model's forward fixes {' and '.join(stuck)} while it is traced{at}; a model with free sizes was "
            f"expected. {way_out}; or take the sizes from tensors' shapes in its forward."
        )
    return AsvpError(
        f"PyTorch's exporter cannot export this model ({_reason(error)}){at}. {way_out}; or simplify its forward; "
        "--debug shows the whole error."
    )


def _options(teacher: Teacher, frozen: Frozen, batch_alone: bool) -> dict[str, Frozen | None]:
    """What may get a file, with the dimensions that it freezes; None: those of a TorchScript file."""
    _, _, height, width = teacher.example(61, 91).shape[-4:]
    options: dict[str, Frozen | None] = (
        {_STATIC_BATCH: (1, None, *frozen[2:])} if frozen[0] is None and batch_alone else {}
    )
    if None in frozen[2:]:
        options[_STATIC] = (1, None, height, width)
    return {**options, _SCRIPT: None}


def _way_out(teacher: Teacher, options: dict[str, Frozen | None], attempt: Callable[[Frozen], object]) -> str:
    """The beginning of a sentence: the first option that gets a file, where trying is cheap, else all that may."""
    if sum(1 for _ in teacher.module.modules()) > _FEW_MODULES:
        return f"Try {', then '.join(options)}"
    for option, frozen in options.items():
        try:
            if frozen is None:
                _scripted(teacher)
            else:
                attempt(frozen)
        except Exception:  # whatever it is, this is no way out
            continue
        size_tried = f" (tried at {frozen[2]}x{frozen[3]})" if option == _STATIC and frozen is not None else ""
        return f"It exports with {option}{size_tried}"
    return f"Neither {' nor '.join(options)} makes it exportable: give an ONNX file made elsewhere"


def _scripted(teacher: Teacher) -> None:
    """Convert what torch.jit.trace makes of the module; this holds the graph against the module at two sizes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of what a trace loses: the graph is compared
        traced = torch.jit.trace(teacher.module, teacher.inputs(teacher.example()), check_trace=False, strict=False)
    assert isinstance(traced, torch.jit.ScriptModule)
    converted(replace(teacher, module=traced), None)


def _fixed_on_the_way(error: BaseException, signature: Signature) -> list[str]:
    """The free sizes to which the tracer says that it found but one value, as "name (value)"."""
    matches = re.findall(r"static shape of (\d+) for dimension .*shape\[(\d+)\]", str(_innermost(error)))
    names = signature.dimensions[signature.image_index]
    return list(dict.fromkeys(f"{names.get(int(axis), f'axis {axis}')} ({size})" for size, axis in matches))


def _innermost(error: BaseException) -> BaseException:
    return list(causes(error))[-1]


def _reason(error: BaseException) -> str:
    """What the innermost cause says, on one line."""
    error = _innermost(error)
    return (first_line(str(error)).rstrip(".") or type(error).__name__)[:300]


def _users_line(error: BaseException) -> str:
    """The line of the user's forward where it happened, as PyTorch's message or the traceback names it; "" for none."""
    for cause in reversed(list(causes(error))):
        named = re.findall(r'File "([^"]+)", line (\d+), in (\w+)(?:\n +(.+))?', str(cause))
        frames = [
            (frame.filename, str(frame.lineno), frame.name, frame.line or "")
            for frame in traceback.extract_tb(cause.__traceback__)
        ]
        for file, line, function, code in reversed([*frames, *named]):
            path = Path(file)
            if path.is_file() and not str(path.resolve()).startswith(_FOREIGN):
                return f"{path.name}:{line} in {function}" + (f" ({code.strip()})" if code else "")
    return ""
