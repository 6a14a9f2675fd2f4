"""An architecture on disk, and weights that fit it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asvp_export.teacher.architecture import build

NETS = '''
import torch
from torch import nn
from blocks import Block

class Net(nn.Module):
    """A residual network that the tests write to disk."""
    def __init__(self, width: int = 8):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(Block(width), nn.BatchNorm2d(width))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    class Half:
        pass

    def forward(self, x):
        return x + self.tail(self.body(self.head(x)))

def make(width):
    print("made")
    return Net(width)

def half():
    return Net().half()

def fails():
    raise RuntimeError("no luck today")

def quits():
    raise SystemExit(3)

def wrong():
    return {"a": 1}

number = 3
'''

BLOCKS = """
import dataclasses
from torch import nn

@dataclasses.dataclass
class Options:
    width: int

class Block(nn.Sequential):
    def __init__(self, width):
        o = Options(width)
        super().__init__(nn.Conv2d(o.width, o.width, 3, padding=1), nn.ReLU(inplace=True))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with an architecture in nets.py and blocks.py."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "blocks.py").write_text(BLOCKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights that fit `nets.py:Net`."""
    torch.manual_seed(0)
    return build("nets.py:Net", {}).state_dict()
