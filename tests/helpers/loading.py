"""Small modules to be loaded as teachers, archives of them, and the form of a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from asvp_export.errors import InputError
from asvp_export.teacher.load import load

AUTO = torch.export.Dim.AUTO


class Residual(nn.Module):
    """The smallest image-to-image network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class Returns(nn.Module):
    """A convolution whose output goes through a given function."""

    def __init__(self, function: Any, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.conv(x), x)


class Unet(nn.Module):
    """A strided encoder and decoder with a skip: the input must be a multiple of 2**depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(depth))
        self.up = nn.ModuleList(nn.ConvTranspose2d(3, 3, 2, stride=2) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in [*self.down, *self.up]:
            y = layer(y)
        return x + y


def refused(match: str, model: Any, **options: Any) -> None:
    """Loading fails with an InputError (exit 2) of at most two lines that matches."""
    with pytest.raises(InputError, match=f"(?i){match}") as caught:
        load(model, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def exported(path: Path, module: nn.Module | None = None, shape: tuple[int, ...] = (1, 3, 24, 40), **free: Any) -> Path:
    """A .pt2 archive of a module; `free` names the dynamic dimensions n, h, w."""
    dims = {axis: free[name] for axis, name in ((0, "n"), (2, "h"), (3, "w")) if name in free}
    program = torch.export.export((module or Residual()).eval(), (torch.rand(shape),), dynamic_shapes=(dims,))
    torch.export.save(program, path)
    return path


def rewritten(path: Path, change: Any) -> None:
    """Write an archive anew with its records changed: change(name, bytes) gives the new bytes."""
    reader = PT2ArchiveReader(str(path))
    skip = (".data/", "byteorder")
    records = {name: reader.read_bytes(name) for name in reader.get_file_names() if not name.startswith(skip)}
    with PT2ArchiveWriter(str(path)) as writer:
        for name, content in records.items():
            writer.write_bytes(name, change(name, content))
