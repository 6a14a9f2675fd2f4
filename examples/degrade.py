"""The teachers' degradations as a command: makes teacher inputs from clean pictures.

    python examples/degrade.py TASK IN_FOLDER OUT_FOLDER [--seed 0]

The same seed and file name give the same picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from asvp_export.distillation.degradations import DEGRADATIONS, bicubic, degrade, generator

__all__ = ["bicubic", "degrade", "generator", "pictures", "read"]

SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}


def read(path: Path) -> np.ndarray:
    """Read a picture as H,W,3 float32 in 0..1."""
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255.0


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def main() -> None:
    """Write the degraded twin of every picture of a folder as PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=DEGRADATIONS)
    parser.add_argument("source", type=Path, metavar="IN_FOLDER")
    parser.add_argument("target", type=Path, metavar="OUT_FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    for path in pictures(args.source):
        degraded = degrade(args.task, read(path), generator(args.task, path.stem, args.seed))
        Image.fromarray(np.round(degraded * 255.0).astype(np.uint8)).save(args.target / f"{path.stem}.png")


if __name__ == "__main__":
    main()
