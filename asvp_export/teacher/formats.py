"""Which kind of file a teacher lies in, told from its bytes; refusals of every other kind."""

from __future__ import annotations

import zipfile
from pathlib import Path

from asvp_export.errors import InputError

SAFETENSORS = "safetensors"
TORCH = "torch"
PT2 = "pt2"
PT2_OLD = "pt2-old"
ONNX = "onnx"
TORCHSCRIPT = "torchscript"

_EXPECTED = (
    "expected a state dict (.safetensors, .pt, .pth), a torch.export archive (.pt2), an ONNX file, a TorchScript "
    "archive or a saved module"
)


def recognise(path: Path) -> str:
    """Tell what a file is without unpickling or running any of it.

    Args:
        path: the file.

    Returns:
        SAFETENSORS, TORCH (torch.save: zip or the older plain pickle), PT2 or PT2_OLD (PyTorch 2.7 and before), ONNX or
        TORCHSCRIPT.

    Raises:
        InputError: not there, a directory, unreadable, empty, damaged, or of a kind that cannot be a teacher.
    """
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return TORCH
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return SAFETENSORS
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`.")
    if path.suffix.lower() == ".safetensors":
        raise InputError(f"{path} is damaged, or not a safetensors file: its header cannot be read.")
    if path.suffix.lower() == ".onnx" or _looks_like_onnx(head):
        return ONNX
    raise InputError(f"{path} is of an unknown format (it begins with {head[:8].hex(' ')}); {_EXPECTED}.")


def is_onnx(path: Path) -> bool:
    """Whether a file is to be read as an ONNX model: by its content, or its name where the content is no teacher's."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        head = b""
    of_a_teacher = head[:1] == b"\x80" or head[:2] == b"PK" or head[8:9] == b"{"
    return _looks_like_onnx(head) or (path.suffix.lower() == ".onnx" and not of_a_teacher)


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a directory; {_EXPECTED}.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {_EXPECTED}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not head:
        raise InputError(f"{path} is empty; {_EXPECTED}.")
    return head


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        # zipfile raises NotImplementedError at a zip of a later version, which PyTorch does not write.
        raise InputError(f"{path} is truncated or damaged: its zip directory cannot be read.") from error
    inside = {name.partition("/")[2] for name in names}
    if "serialized_exported_program.json" in names:
        return PT2_OLD
    if "archive_format" in inside:
        return PT2
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return TORCHSCRIPT
    if "data.pkl" in inside:
        return TORCH
    raise InputError(f"{path} is a zip file, but not one that PyTorch wrote; {_EXPECTED}.")


def _looks_like_onnx(head: bytes) -> bool:
    """A ModelProto begins with its IR version (field 1, a small number) and then a string or message field."""
    return (
        len(head) > 3
        and head[0] == 0x08
        and 1 <= head[1] < 32
        and head[2] in (0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42)
    )
