"""The teachers that the tests export: the committed examples, and small nets for what those do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import asvp_export.images

ROOT = Path(__file__).resolve().parents[1]
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


def recurrent() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent()


def save_pictures(folder: Path, count: int = 2, height: int = 61, width: int = 80) -> Path:
    """Real photographs, cut small so that a test's verification is quick."""
    folder.mkdir(exist_ok=True)
    for source in asvp_export.images.list_images(asvp_export.images.photographs("calibrate"))[:count]:
        pixels = asvp_export.images.read_image(source)[:height, :width]
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(folder / f"{source.stem}.png")
    return folder
