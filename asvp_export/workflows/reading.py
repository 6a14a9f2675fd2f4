"""Every file that a command reads, by what it is: none of them may be written over."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from asvp_export.images import SUFFIXES
from asvp_export.onnx_graph.contents import external_files
from asvp_export.options import GateOptions, LoadOptions
from asvp_export.teacher.formats import is_onnx

Named = tuple[str, Path]
"""What a file is, and where it lies."""

_AUDIT_FOLDERS = (
    "",
    "input",
    "truth",
    *(f"{part}/{subfolder}" for part in ("train", "test") for subfolder in ("", "input", "truth")),
)


def model_files(model: Any, kind: str = "model") -> Iterator[Named]:
    """A model's file and the files of its external data; of a teacher in memory what it still reads.

    Args:
        model: a file, a teacher, a protected model, or a module, which reads nothing.
        kind: what the file is, for messages.
    """
    if isinstance(model, str | Path):
        path = Path(model)
        yield kind, path
        if path.is_file() and is_onnx(path):
            with contextlib.suppress(Exception):  # whoever loads it says what is wrong
                yield from _data(onnx.load(path, load_external_data=False), path, kind)
        return
    from asvp_export.insertion.protected import Protected  # needs PyTorch, and a file does not
    from asvp_export.teacher.backends import file_behind
    from asvp_export.teacher.model import Teacher

    teacher = model.teacher if isinstance(model, Protected) else model
    if isinstance(teacher, Teacher) and (behind := file_behind(teacher)):
        path, graph = behind
        yield kind, path
        yield from _data(graph, path, kind)


def _data(model: onnx.ModelProto, path: Path, kind: str) -> Iterator[Named]:
    for name in sorted(external_files(model)):
        for folder in dict.fromkeys((path.parent, Path(os.path.realpath(path)).parent)):
            yield f"external data of the {kind}", folder / name


def code_files(factory: str | None, kind: str = "architecture") -> Iterator[Named]:
    """Where a factory lies: `path/nets.py:factory`, or the module of that name in the working folder."""
    location = (factory or "").rpartition(":")[0]
    if location.endswith(".py") or "/" in location or "\\" in location:
        yield kind, Path(location)
    elif location:
        module = Path(*location.split("."))
        yield from ((kind, path) for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file())


def plan_files(plan: object) -> Iterator[Named]:
    """A plan's file, and that of the weights it names; a plan in memory reads nothing."""
    if not isinstance(plan, Path):
        return
    yield "plan", plan
    if plan.is_file():
        with contextlib.suppress(Exception):  # whoever loads it says what is wrong
            yield "weights of the plan", plan.with_name(json.loads(plan.read_bytes())["weights"]["file"])


def pictures(folder: Path | None, kind: str) -> Iterator[Named]:
    """The pictures directly inside a folder."""
    if folder is not None:
        with contextlib.suppress(OSError):  # whoever lists it says what is wrong
            yield from ((kind, path) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def audit_pictures(folder: Path | None) -> Iterator[Named]:
    """The pictures of an audit's folder, however it is laid out."""
    for part in _AUDIT_FOLDERS if folder else ():
        yield from pictures(Path(folder or "", part), "audit picture")


def loaded_files(model: Any, load: LoadOptions, kind: str = "model") -> Iterator[Named]:
    """What loading a model reads."""
    yield from model_files(model, kind)
    yield from code_files(load.arch)
    if load.inputs:
        yield "example of the inputs", load.inputs


def compared_files(gate: GateOptions, verify_images: Path | None = None) -> Iterator[Named]:
    """The pictures that a comparison, or a calibration, reads."""
    yield from pictures(gate.images, "input picture")
    yield from pictures(verify_images, "verification picture")
