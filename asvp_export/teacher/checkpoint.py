"""State dicts and saved modules: reading them without running them, and finding the weights in them."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from asvp_export.errors import InputError, summary
from asvp_export.teacher.architecture import import_from

_HOLDERS = (
    "params_ema",
    "params-ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "params",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net_state_dict",
    "net",
    "net_g",
    "netG",
    "generator",
    "network",
    "module",
    "weights",
)
"""Names under which training code keeps the net that is shipped, the first that is there before the others."""

_AVERAGED = re.compile(r"(?:^|[^a-zA-Z])(?:ema|averaged?|avg)(?![a-zA-Z])|EMA")
"""In a name: weights averaged over the training, which are what is shipped."""

MARKS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch.compile, FSDP and activation checkpointing put into names."""

_COUNTER = re.compile(r"(?:^|.*\.)(?:total_ops|total_params|n_averaged|num_updates|\w*counter)")
_WHOLE_COUNTER = re.compile(r"(?:^|.*\.)(?:\w*_)?(?:step|iter|iteration|epoch|initted)s?")


@dataclass(frozen=True)
class Weights:
    """One state dict in a file."""

    key: str
    """The keys that lead to it, joined by dots; "" where it is the file itself."""

    state: dict[str, Any]
    """Names to tensors, without the marks that wrappers leave in names."""


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a .safetensors file on to the CPU; InputError when it is damaged."""
    try:
        with path.open("rb"):  # safetensors calls every file missing that it cannot open
            pass
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is truncated or damaged: {summary(error)}.") from error


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
            raise InputError(f"{path} is truncated or damaged: {summary(error)}.") from error
        if not trust_pickle:
            raise InputError(
                f"{path} is a pickled Python object (it names {name}), and opening it would run code of its author's "
                f"choice. Convert it where you trust it, torch.save(model.state_dict(), 'weights.pt'), and load that "
                f"with --arch package.module:factory; or pass --trust-pickle if you trust the author."
            ) from error
    except Exception as error:
        raise InputError(f"{path} is truncated or damaged: {summary(error)}.") from error
    return _unpickle(path)


def _refused_name(message: str) -> str | None:
    """The class or function on which the restricted unpickler stopped; None when it stopped for another reason."""
    match = re.search(r"GLOBAL ([\w.]+)", message) or re.search(
        r"(?:[Cc]lass|instance of) <?'?([\w.]+\.[\w.]+)", message
    )
    if match:
        return match[1]
    return (
        "an object that is not a tensor"
        if re.search(r"[Uu]nsupported (?:operand|class|global|type)", message)
        else None
    )


def _unpickle(path: Path) -> Any:
    try:
        with import_from(Path.cwd()):
            return torch.load(path, weights_only=False, map_location="cpu")
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{path} needs Python code that cannot be imported: {summary(error)}. Run in the folder and with the "
            "packages with which it was saved; or save its state dict there, and give that with --arch."
        ) from error
    except Exception as error:
        raise InputError(f"{path} cannot be unpickled: {summary(error)}.") from error


def find(content: Any, path: Path, key: str | None = None) -> list[Weights] | nn.Module:
    """Find the state dicts, or the saved module, in what a checkpoint holds.

    Args:
        content: what was read.
        path: its file, for messages.
        key: the user's choice among them: keys, and then the prefix of names, joined by dots.

    Returns:
        State dicts, the likeliest first; or the module where one was unpickled.

    Raises:
        InputError: there is neither, nothing has this key, or there are several modules.
    """
    if not isinstance(content, Mapping | nn.Module):
        raise InputError(f"{path} holds {type(content).__name__}; expected a state dict (names and tensors).")
    candidates = sorted(_walk(content), key=lambda item: rank(item[0]))
    if not candidates and isinstance(content, Mapping):
        keys = ", ".join(str(key) for key in list(content)[:6]) or "nothing"
        raise InputError(f"{path} holds no tensors (it holds {keys}); expected one state dict, names and tensors.")
    if key:
        candidates = _under(candidates, key, path)
    modules = [item for item in candidates if isinstance(item[1], nn.Module)]
    if modules and modules[0] is candidates[0]:
        keys = [name for name, _ in modules if rank(name) == rank(candidates[0][0])]
        if len(keys) > 1:
            raise InputError(f"{path} holds several modules ({', '.join(keys[:6])}); choose one: {key_options(keys)}.")
        return modules[0][1]
    return [Weights(name, value) for name, value in candidates if not isinstance(value, nn.Module)]


def rank(key: str) -> tuple[int, tuple[int, ...]]:
    """How likely a key leads to what is shipped, to sort by: averaged weights first, then by `_HOLDERS`."""
    parts = key.split(".") if key else []
    positions: list[int] = [] if key else [len(_HOLDERS)]
    for part in parts:
        positions.append(_HOLDERS.index(part) if part in _HOLDERS else len(_HOLDERS) + 1)
        if part not in _HOLDERS:  # what lies below a name of one's own choice is no likelier for its name
            break
    return -sum(bool(_AVERAGED.search(part)) for part in parts), tuple(positions)


def key_options(keys: Collection[str]) -> str:
    """What to type for each of these keys, three at most."""
    return " or ".join(f"--weights-key {shlex.quote(key)}" for key in list(keys)[:3])


def without_marks(name: str, marks: Collection[str]) -> str:
    """A dotted name without the parts that are marks."""
    return ".".join(part for part in name.split(".") if part not in marks)


def renamed_without(state: dict[str, Any], marks: Collection[str]) -> dict[str, Any]:
    """A state dict without marks in its names; as it is where two names would become one."""
    short = {without_marks(name, marks): value for name, value in state.items()}
    return short if len(short) == len(state) else state


def is_counter(name: str, value: Any) -> bool:
    """Whether it counts steps or operations: no weight, whatever the net is."""
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        return False
    return bool(_COUNTER.fullmatch(name) or (not value.is_floating_point() and _WHOLE_COUNTER.fullmatch(name)))


def _walk(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """State dicts and modules with the keys that lead to them, five deep; the states of optimizers are passed by."""
    if isinstance(content, nn.Module):
        yield ".".join(keys), content
    if not isinstance(content, Mapping) or "param_groups" in content or len(keys) > 5:
        return
    state = {key: value for key, value in content.items() if isinstance(key, str) and _is_state(key, value)}
    # A callback's scores are tensors too.
    if any(
        isinstance(value, torch.Tensor) and value.ndim and not is_counter(key, value) for key, value in state.items()
    ):
        yield ".".join(keys), renamed_without(state, MARKS)
    for key, value in content.items():
        yield from _walk(value, (*keys, str(key)))


def _is_state(key: str, value: Any) -> bool:
    return isinstance(value, torch.Tensor) or key.endswith("_extra_state")


def _under(candidates: list[tuple[str, Any]], key: str, path: Path) -> list[tuple[str, Any]]:
    """What has this key, or lies below it: among the keys, or among the names of a state dict."""
    chosen = []
    for name, value in candidates:
        if f"{name}.".startswith(f"{key}."):
            chosen.append((name, value))
        elif not name or key.startswith(f"{name}."):
            prefix = f"{key.removeprefix(f'{name}.') if name else key}."
            for state in (value, renamed_without(value, {"module"})) if isinstance(value, dict) else ():
                below = {part.removeprefix(prefix): item for part, item in state.items() if part.startswith(prefix)}
                if below:
                    chosen.append((key, below))
                    break
    if not chosen:
        names = [name or part for name, value in candidates for part in ([name] if name else _first_parts(value))]
        raise InputError(f"{path} holds no weights under --weights-key {key}; it holds {', '.join(names[:6])}.")
    return chosen


def _first_parts(value: Any) -> list[str]:
    """The first parts of the names of a state dict, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in value)) if isinstance(value, dict) else ["a module"]
