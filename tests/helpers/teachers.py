"""The teachers that the tests export: the committed examples, and small nets for what those do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import asvp_export.images

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TASKS = ("sr_x2", "lowlight", "underwater", "dehaze", "derain")


def weights(task: str) -> Path:
    return EXAMPLES / "teachers" / f"{task}.safetensors"


def arch(task: str) -> str:
    return f"{EXAMPLES / 'nets.py'}:{task}"


def example(task: str) -> asvp_export.Teacher:
    return asvp_export.load(weights(task), arch=arch(task))


class Recurrent(nn.Module):
    """A residual net that sends its features through one block three times."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(x)
        for _ in range(3):
            y = y + 0.1 * self.block(y)
        return x + 0.1 * self.tail(y)


class Flow(nn.Module):
    """A loop over a number that the image's height gives, and a branch that the image's brightness decides."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        head = self.head(x)
        y = head
        for _ in range(int(x.shape[2]) // 16):
            y = y + 0.1 * self.middle(y) + 0.1 * head
        out = self.tail(y) if bool(x.mean() > 0.4) else 0.5 * self.tail(y + head)
        return x + 0.1 * out


class Video(nn.Module):
    """Five frames; the blocks see the frames folded into the batch; all come out."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.tail = (
            nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in ((3, 8), (8, 8), (40, 15))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c, h, w = x.shape
        y = torch.relu(self.body(self.head(x.reshape(n * t, c, h, w))))
        return x + 0.1 * self.tail(y.reshape(n, -1, h, w)).reshape(n, t, c, h, w)


def recurrent() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent()


class TwoBlocks(nn.Module):
    """Two blocks, the second of which reads the first through a ReLU and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.first = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.second, self.tail = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x):
        h = self.head(x)
        h = h + torch.relu(self.first(h))
        return x + 0.2 * self.tail(h + self.second(h))


class Branches(nn.Module):
    """Three residual branches of two layers each, so that the first of each has a linear reader of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(x)
        for block in self.blocks:
            y = y + torch.relu(block(y))
        return x + 0.2 * self.tail(y)


def two_blocks() -> TwoBlocks:
    torch.manual_seed(3)
    return TwoBlocks()


def branches() -> Branches:
    torch.manual_seed(3)
    return Branches()


def save_pictures(folder: Path, count: int = 2, height: int = 61, width: int = 80) -> Path:
    """Real photographs, cut small so that a test's verification is quick."""
    folder.mkdir(exist_ok=True)
    for source in asvp_export.images.list_images(asvp_export.images.photographs("calibrate"))[:count]:
        pixels = asvp_export.images.read_image(source)[:height, :width]
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(folder / f"{source.stem}.png")
    return folder
