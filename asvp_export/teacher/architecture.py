"""Building a bare architecture from "package.module:factory" or "path/nets.py:factory"."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from asvp_export.errors import InputError, summary

_FORM = "expected package.module:factory or path/nets.py:factory, where factory is a class or a function"

_local_imports: set[str] = set()
"""Top-level modules that earlier builds imported from the user's folders."""


def build(arch: str, arch_args: dict[str, Any] | None = None) -> nn.Module:
    """Import an architecture and make it. This runs the architecture's own Python code.

    Args:
        arch: "package.module:factory" (installed, or found from the current folder) or "path/nets.py:factory", whose
            folder may hold modules that it imports. The factory is a class or a function; dots reach inside a class.
        arch_args: keyword arguments for the factory.

    Returns:
        The module, with the weights that the factory gave it.

    Raises:
        InputError: it cannot be found or imported, the factory fails, or what it returns is no `torch.nn.Module`.
    """
    arguments = {} if arch_args is None else arch_args
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise InputError(
            f'the architecture\'s arguments are {arguments!r}; expected a JSON object such as {{"width": 32}}.'
        )
    location, _, factory_name = arch.rpartition(":")
    if not location or not factory_name:
        raise InputError(f"The architecture {arch!r} cannot be read: {_FORM}.")
    file = Path(location) if location.endswith(".py") or "/" in location or "\\" in location else None
    folders = [Path.cwd()] if file is None else [file.resolve().parent, Path.cwd()]
    # What an architecture prints must not end up in the command line's JSON.
    with import_from(*folders), contextlib.redirect_stdout(sys.stderr):
        source = _import(location, file)
        factory = _attribute(source, factory_name, location)
        module = _call(factory, arguments, arch)
    if not isinstance(module, nn.Module):
        raise InputError(f"{arch} returned {_a(type(module).__name__)}; expected a torch.nn.Module.")
    return module


@contextlib.contextmanager
def import_from(*folders: Path) -> Iterator[None]:
    """Let imports find modules in these folders first; `sys.path` is afterwards what it was before.

    Modules that an earlier call imported from another folder are forgotten first, so that two architectures that each
    have a `blocks.py` beside them get their own.
    """
    homes = [folder.resolve() for folder in folders]
    for name in list(_local_imports):
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is not None and not any(_lies_in(origin, home) for home in homes):
            for loaded in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
                del sys.modules[loaded]
            _local_imports.discard(name)
    before, imported = sys.path.copy(), set(sys.modules)
    sys.path[:0] = [str(home) for home in homes]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        for name in {key.partition(".")[0] for key in sys.modules.keys() - imported} - imported:
            origin = getattr(sys.modules.get(name), "__file__", None)
            if origin is not None and any(_lies_in(origin, home) for home in homes):
                _local_imports.add(name)


def _lies_in(origin: str, folder: Path) -> bool:
    """Whether a top-level module's file is folder/name.py or folder/name/__init__.py."""
    return Path(origin).resolve().parent in (folder, folder / Path(origin).parent.name)


def _import(location: str, file: Path | None) -> ModuleType:
    if file is not None and file.suffix != ".py":
        raise InputError(f"The architecture's file {location} is not a .py file; {_FORM}.")
    if file is not None and not file.is_file():
        raise InputError(
            f"The architecture's file {location} {'is a folder' if file.is_dir() else 'does not exist'}; {_FORM}."
        )
    try:
        return importlib.import_module(location) if file is None else _execute(file)
    except ModuleNotFoundError as error:
        if file is None and error.name is not None and f"{location}.".startswith(f"{error.name}."):
            hint = "is it installed, and spelled right? A file needs its suffix: path/nets.py:factory"
            raise InputError(f"The architecture's module {location} cannot be found ({error}); {hint}.") from error
        raise InputError(f"Importing the architecture {location} failed: {error}. Install what it needs.") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"Importing the architecture {location} failed: {summary(error)}.") from error


def _execute(file: Path) -> ModuleType:
    """Import a file under a private name, kept in sys.modules because dataclasses and pickle look there."""
    path = file.resolve()
    name = f"_asvp_architecture_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(source: ModuleType, name: str, location: str) -> Callable[..., Any]:
    attribute: Any = source
    for part in name.split("."):
        if not hasattr(attribute, part):
            classes = [
                key for key, value in vars(source).items() if isinstance(value, type) and issubclass(value, nn.Module)
            ]
            defined = sorted(key for key in classes if getattr(source, key).__module__ == source.__name__)
            hint = f"; it defines {', '.join(defined[:5])}" if defined else ""
            raise InputError(f"{location} has no {name}{hint}.")
        attribute = getattr(attribute, part)
    if not callable(attribute):
        raise InputError(
            f"{location}:{name} is {_a(type(attribute).__name__)}; expected a class or a function that returns a "
            "module."
        )
    return attribute


def _call(factory: Callable[..., Any], arguments: dict[str, Any], arch: str) -> Any:
    try:
        return factory(**arguments)
    except TypeError as error:
        names = ", ".join(arguments) or "no arguments"
        raise InputError(
            f"{arch} cannot be made with {names}: {summary(error)}. Give its arguments as JSON."
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{arch} failed: {summary(error)}.") from error


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
