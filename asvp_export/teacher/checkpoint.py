"""State dicts and saved modules: reading them without running them, unwrapping them, fitting them to a module."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from asvp_export.errors import InputError
from asvp_export.teacher.architecture import import_from, one_line

_WRAPPERS = (
    "params_ema", "params-ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema", "params", "state_dict", "model_state_dict",
    "model_state", "model", "net_state_dict", "net", "net_g", "netG", "generator", "network", "module", "weights",
)  # fmt: skip
"""Keys under which training code keeps the weights, the averaged ones first: those are what is shipped."""


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a .safetensors file on to the CPU; InputError when it is damaged."""
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is truncated or damaged: {one_line(error)}.") from error


def read_torch(path: Path, trust_pickle: bool) -> Any:
    """Read what torch.save wrote, on to the CPU.

    Tensors and plain containers are read by PyTorch's restricted unpickler, which builds nothing else. A file that
    names any other class or function is refused at the first such name, before anything in it has run; there is no
    falling back. Only with `trust_pickle` is such a file unpickled in full, which runs whatever its author put in it.

    Args:
        path: a file in torch.save's zip format or its older plain format.
        trust_pickle: the user vouches for the author of the file.

    Returns:
        The object in the file.

    Raises:
        InputError: refused as above, or damaged.
    """
    try:
        with warnings.catch_warnings():  # it warns of pickle protocols that it then refuses anyway
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    except UnpicklingError as error:
        name = _refused_name(str(error))
        if name is None:
            raise InputError(f"{path} is truncated or damaged: {one_line(error)}.") from error
        if not trust_pickle:
            raise InputError(
                f"{path} is a pickled Python object (it names {name}), and opening it would run code of its author's "
                f"choice. Convert it where you trust it, torch.save(model.state_dict(), 'weights.pt'), and load that "
                f"with --arch package.module:factory; or pass --trust-pickle if you trust the author."
            ) from error
    except Exception as error:
        raise InputError(f"{path} is truncated or damaged: {one_line(error)}.") from error
    return _unpickle(path)


def _refused_name(message: str) -> str | None:
    """The class or function on which the restricted unpickler stopped; None when it stopped for another reason."""
    match = re.search(r"GLOBAL ([\w.]+)", message) or re.search(
        r"(?:[Cc]lass|instance of) <?'?([\w.]+\.[\w.]+)", message
    )
    if match:
        return match[1]
    return "what is no tensor" if re.search(r"[Uu]nsupported (?:operand|class|global|type)", message) else None


def _unpickle(path: Path) -> Any:
    try:
        with import_from(Path.cwd()):
            return torch.load(path, weights_only=False, map_location="cpu")
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{path} needs Python code that is not here: {one_line(error)}. Run in the folder, or with the packages, "
            f"that it was saved with; or save its state dict there and give that with --arch."
        ) from error
    except Exception as error:
        raise InputError(f"{path} cannot be unpickled: {one_line(error)}.") from error


def unwrap(content: Any, path: Path) -> dict[str, Any] | nn.Module:
    """Find the state dict, or the saved module, in what a checkpoint holds.

    Args:
        content: what was read.
        path: its file, for messages.

    Returns:
        A flat state dict, name to tensor; or a module where one was unpickled.

    Raises:
        InputError: there is neither, or it is not clear which of several is meant.
    """
    for _ in range(5):
        if isinstance(content, nn.Module):
            return content
        if not isinstance(content, Mapping):
            raise InputError(f"{path} holds {type(content).__name__}; expected a state dict (names and tensors).")
        nested = {str(key): value for key, value in content.items() if isinstance(value, (Mapping, nn.Module))}
        known = [key for key in _WRAPPERS if key in nested and _holds_weights(nested[key])]
        if known:
            content = nested[known[0]]
            continue
        tensors = {str(key): value for key, value in content.items() if _is_state(str(key), value)}
        if tensors:
            return tensors
        likely = [key for key, value in nested.items() if _holds_weights(value)]
        if len(likely) != 1:
            keys = ", ".join(str(key) for key in list(content)[:6]) or "nothing"
            found = f"several state dicts ({', '.join(likely[:6])})" if likely else f"no tensors (it holds {keys})"
            raise InputError(f"{path} holds {found}; expected one state dict, names and tensors.")
        content = nested[likely[0]]
    raise InputError(f"{path} nests its state dict too deeply; save model.state_dict() alone.")


def _is_state(key: str, value: Any) -> bool:
    return isinstance(value, torch.Tensor) or key.endswith("_extra_state")


def _holds_weights(value: Any) -> bool:
    """Whether there are tensors in it: optimizers' and loggers' dictionaries without names of tensors are passed by."""
    if isinstance(value, nn.Module):
        return True
    if not isinstance(value, Mapping):
        return False
    if any(isinstance(key, str) and isinstance(item, torch.Tensor) for key, item in value.items()):
        return True
    return any(key in _WRAPPERS and _holds_weights(item) for key, item in value.items())


def fit(module: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load a state dict into a module, every key and every shape, half-precision weights converted on the way.

    Args:
        module: the bare architecture; its weights are replaced.
        state: names to tensors; the prefixes `module.` (DataParallel) and `_orig_mod.` (torch.compile) are taken off.
        path: the file, for messages.

    Raises:
        InputError: missing, unexpected or ill-shaped keys, counted, the first three of each named.
    """
    expected = module.state_dict()
    state = _strip(state, set(expected))
    problem = ""
    try:
        module.load_state_dict(state, strict=True)
        return
    except Exception as error:  # a module's own loading hooks may raise anything
        problem = one_line(error)
    shapes = {key: _shape(value) for key, value in expected.items()}
    parts = [
        _count("missing", [key for key in expected if key not in state]),
        _count("unexpected", [key for key in state if key not in expected]),
        _count(
            "ill-shaped",
            [
                f"{key} ({_shape(state[key])} in the file, {shapes[key]} in the architecture)"
                for key in expected
                if key in state and shapes[key] and _shape(state[key]) != shapes[key]
            ],
        ),
    ]
    found = "; ".join(part for part in parts if part) or problem
    raise InputError(
        f"{path} does not fit the architecture {type(module).__name__}: {found}. Check --arch and --arch-args."
    )


def _strip(state: dict[str, Any], expected: set[str]) -> dict[str, Any]:
    """Take wrappers' prefixes off, unless the architecture itself has modules of these names."""
    while not expected & state.keys():
        short = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
        # AveragedModel adds a counter beside the prefixed weights.
        weights = {key: value for key, value in short.items() if key != "n_averaged"}
        if weights and all(key.startswith("module.") for key in weights):
            short = {key.removeprefix("module."): value for key, value in weights.items()}
        if short.keys() == state.keys():
            break
        state = short
    if any("_orig_mod." in key for key in state) and not any("_orig_mod." in key for key in expected):
        state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    return state


def _shape(value: Any) -> str:
    try:
        return "x".join(map(str, value.shape)) or "scalar" if isinstance(value, torch.Tensor) else ""
    except RuntimeError:  # a lazy module's weights have no shape yet
        return ""


def _count(kind: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = ", ..." if len(keys) > 3 else ""
    return f"{len(keys)} {kind} key{'s' if len(keys) > 1 else ''} ({', '.join(keys[:3])}{more})"
