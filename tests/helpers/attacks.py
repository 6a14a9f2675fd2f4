"""Files that run code when they are unpickled: attacks in the least harmful form."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from tests.helpers.loading import Residual


class Touch:
    """Unpickling this creates a file: an attack in the least harmful form."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def attacks(marker: Path, folder: Path) -> dict[str, Path]:
    """Files whose full unpickling creates the marker."""
    paths = {name: folder / name for name in ("zip.pt", "old.pt", "dict.pt", "plain.pkl", "module.pt", "tensors.bin")}
    module = Residual()
    module.extra = Touch(marker)
    torch.save(Touch(marker), paths["zip.pt"])
    torch.save(Touch(marker), paths["old.pt"], _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": Touch(marker)}, paths["dict.pt"])
    paths["plain.pkl"].write_bytes(pickle.dumps(Touch(marker)))
    torch.save(module, paths["module.pt"])
    torch.save({"conv.weight": torch.ones(3), "z": Touch(marker)}, paths["tensors.bin"])
    return paths
