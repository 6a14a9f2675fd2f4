"""torch.export archives (.pt2): what in them can run code, and loading them as modules that take hooks."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from asvp_export.errors import InputError, summary

_TARGET = re.compile(r"(torch\.ops(\.[A-Za-z]\w*){2,3}|torch\.sym_[a-z]+|_operator\.[a-z]\w*|math\.[a-z]\w*)")
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_EXPRESSION = (
    ast.Expression,
    ast.Call,
    ast.Name,
    ast.Load,
    ast.keyword,
    ast.Constant,
    ast.BinOp,
    ast.operator,
    ast.UnaryOp,
    ast.unaryop,
    ast.Compare,
    ast.cmpop,
    ast.Tuple,
)
_NAMES = re.compile(r"[A-Z][A-Za-z]*|[a-z]+_?\d+|floor|ceiling|true|false|oo|int_oo")

Dims = tuple[int | None, int | None, int | None, int | None]
Sizes = tuple[int | None, ...]


def load_archive(path: Path, old: bool, trust_pickle: bool) -> tuple[nn.Module, Sizes]:
    """Load an archive and unflatten it into the modules that it was exported from.

    `torch.export.load` is no safe reader: it unpickles in full whatever the archive marks as pickled (tensor
    subclasses, custom objects, old layouts, and sample inputs that the restricted unpickler refuses), it loads compiled
    libraries, it evaluates the archive's size expressions as Python through sympy, and it turns the graph's names into
    Python source. So without `trust_pickle` an archive that uses any of these is refused before torch.export.load
    sees it: see `_refuse_unsafe_code`. What is left is PyTorch's own handling of an ordinary graph of its operators,
    which PyTorch does not promise to be safe: load archives of strangers in a sandbox.

    Args:
        path: the archive.
        old: it has the layout of PyTorch 2.7 and before, which is nothing but pickles.
        trust_pickle: the user vouches for the author; nothing is screened.

    Returns:
        The module, and the sizes of its image input in their order, four or five, None where dynamic.

    Raises:
        InputError: refused as above, damaged, exported in training mode, or no input is a float32 image batch.
    """
    if not trust_pickle:
        if old:
            raise InputError(
                f"{path} has the layout of PyTorch 2.7 and before, which is read by unpickling. Export it again with "
                "a newer PyTorch, or pass --trust-pickle if you trust its author."
            )
        _refuse_unsafe_code(path)
    captured = _Captured()
    logging.getLogger("torch.export").addFilter(captured)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch's loader warns of PyTorch's own classes
            program = torch.export.load(file)
            sizes = _input_sizes(program, path)
            _check_evaluation(program, path)
            return torch.export.unflatten(program), sizes
    except InputError:
        raise
    except Exception as error:
        reason = summary(captured.error or error)
        raise InputError(f"{path} cannot be loaded as a torch.export archive: {reason}.") from error
    finally:
        logging.getLogger("torch.export").removeFilter(captured)


class _Captured(logging.Filter):
    """Keeps the error that torch.export.load logs, with a traceback, before it raises a vaguer one."""

    error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            self.error = record.exc_info[1]
        return False


def _refuse_unsafe_code(path: Path) -> None:
    """Refuse an archive in which anything but tensors, ordinary operators and arithmetic on sizes is found."""
    try:
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
        with zipfile.ZipFile(path) as archive:
            fallback = "version" in archive.namelist()  # sends torch.export.load to its old, unpickling reader
        danger = "an archive of the old layout" if fallback else _danger(reader, names)
    except Exception as error:
        raise InputError(f"{path} is damaged, or not a torch.export archive: {summary(error)}.") from error
    if danger:
        raise InputError(
            f"{path} holds {danger}, which can run code of its author's choice when it is opened. Export the model "
            "again as plain tensors and operators, or pass --trust-pickle if you trust the author."
        )


def _danger(reader: PT2ArchiveReader, names: list[str]) -> str:
    """What in an archive would run code, in words; empty when there is nothing."""
    for name in names:
        if name.startswith("data/aotinductor/"):
            return "a compiled library"
        if re.fullmatch(r"data/(weights|constants)/.*\.pt", name):
            return f"a pickle ({name})"
        if name.endswith("_config.json") and name.startswith(("data/weights/", "data/constants/")):
            for key, payload in json.loads(reader.read_string(name))["config"].items():
                plain = payload["path_name"].startswith(("weight_", "tensor_"))
                if payload.get("use_pickle", True) or not plain:
                    return f"a pickled object ({key})"
        if name.startswith("data/sample_inputs/") and (sample := reader.read_bytes(name)):
            try:
                torch.load(io.BytesIO(sample), weights_only=True)
            except Exception:  # whatever the reason, torch.export.load would fall back to a full unpickling
                return "pickled sample inputs other than tensors"
        if name.startswith("models/"):
            for key, value in _walk(json.loads(reader.read_string(name))):
                if not _harmless(key, value):
                    return f"a graph with an unusual {key} ({str(value)[:60]!r})"
    return ""


def _walk(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value in nested JSON."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key, value
            if key == "tensor_values":
                yield from (("name", name) for name in value)
            if key != "metadata":  # strings that are only ever shown
                yield from _walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _walk(value)


def _harmless(key: str, value: Any) -> bool:
    if key == "expr_str":
        return _is_arithmetic(value)
    if key == "target":
        return _TARGET.fullmatch(value) is not None
    if key in ("name", "as_name"):  # these become Python identifiers in generated source
        return value is None or value == "" or value.isidentifier()
    if key == "forward_arg_names":
        return value is None or all(name.isidentifier() for name in value)
    if key in ("in_spec", "out_spec"):
        return not value or all(kind in _CONTAINERS for name, kind in _walk(json.loads(value)) if name == "type")
    return key not in ("as_custom_obj", "as_opaque", "as_operator") or value is None


def _is_arithmetic(text: str) -> bool:
    """Whether a size expression is calls of sympy's functions on symbols and numbers, and nothing else."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except SyntaxError:
        return False
    for node in nodes:
        if not isinstance(node, _EXPRESSION):
            return False
        if isinstance(node, ast.Name) and not _NAMES.fullmatch(node.id):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _NAMES.fullmatch(node.value):
            return False  # sympy evaluates strings that it is given as arguments
    return True


def _input_sizes(program: ExportedProgram, path: Path) -> Sizes:
    """Those of the first input that is an image batch, or a video N,T,C,H,W."""
    inputs = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    image = next((tensor for tensor in tensors if tensor.ndim in (4, 5) and tensor.dtype == torch.float32), None)
    if image is None:
        shown = (
            ", ".join(f"{'x'.join(map(str, tensor.shape))} {str(tensor.dtype)[6:]}" for tensor in tensors)
            or "no tensor"
        )
        raise InputError(f"{path} takes {shown}; expected an image batch N,C,H,W of float32.")
    return tuple(size if isinstance(size, int) else None for size in image.shape)


def _check_evaluation(program: ExportedProgram, path: Path) -> None:
    """An archive keeps the mode that it was exported in; eval() cannot change it afterwards."""
    training = {torch.ops.aten.dropout.default: 2, torch.ops.aten.batch_norm.default: 5}
    for node in program.graph.nodes:
        index = training.get(node.target)
        if index is not None and len(node.args) > index and node.args[index] is True:
            name = str(node.target).split(".")[1]
            raise InputError(f"{path} was exported in training mode (its {name} is active): call model.eval() first.")
