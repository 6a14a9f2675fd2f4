"""Attackers who adapt: each file here holds one, and is found by being here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from asvp_export.distillation.attacks.base import Attack


@cache
def attacks() -> dict[str, Attack]:
    """Name to attacker, in the order of the names."""
    by_name: dict[str, Attack] = {}
    for module in pkgutil.iter_modules(__path__):
        content = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for kind in content.values():
            if isinstance(kind, type) and issubclass(kind, Attack) and not inspect.isabstract(kind):
                by_name[kind.name] = kind()
    return dict(sorted(by_name.items()))
