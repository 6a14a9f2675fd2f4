"""spandrel, imported where torchvision does not import beside PyTorch."""

from __future__ import annotations

import enum
import importlib
import sys
from types import ModuleType

import torch


def _torchvision_imports() -> bool:
    try:
        importlib.import_module("torchvision.transforms.functional")
    except (ImportError, RuntimeError):  # built for another PyTorch, it raises RuntimeError
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        return False
    return True


def _stand_in() -> list[ModuleType]:
    """The three names that spandrel takes from torchvision.transforms.functional."""

    class InterpolationMode(enum.Enum):
        NEAREST = "nearest"
        BILINEAR = "bilinear"

    def normalize(tensor: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
        shift, scale = (torch.tensor(values, dtype=tensor.dtype, device=tensor.device) for values in (mean, std))
        return (tensor - shift[:, None, None]) / scale[:, None, None]

    def rotate(*arguments: object) -> torch.Tensor:
        # spandrel imports it and never calls it here; were it called, no answer of ours would be right
        raise NotImplementedError("a transform of LaMa's training, which no forward in these tests reaches")

    modules = [
        ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    ]
    vars(modules[-1]).update(InterpolationMode=InterpolationMode, normalize=normalize, rotate=rotate)
    return modules


def import_spandrel() -> None:
    """Import spandrel; where torchvision does not import beside this PyTorch, with a stand-in, gone afterwards."""
    stand_in = [] if _torchvision_imports() else _stand_in()
    sys.modules.update({module.__name__: module for module in stand_in})
    try:
        importlib.import_module("spandrel")
    finally:
        for module in stand_in:
            del sys.modules[module.__name__]
