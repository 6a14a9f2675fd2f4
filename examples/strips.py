"""One picture strip per task, degraded | restored | clean, of scenes that training never saw."""

from __future__ import annotations

import numpy as np
from degrade import degrade, generator, read
from evaluate import HERE, PHOTOGRAPHS, enlarged, load, restore
from PIL import Image

PICTURES = {
    "sr_x2": "verify/astronaut_1",
    "lowlight": "verify/dogs_2",
    "underwater": "audit/cat_1",
    "dehaze": "audit/pagoda_1",
    "derain": "verify/dandelion_1",
}
DETAIL = (slice(24, 152), slice(72, 200))  # rows, columns
GAP = 4


def strip(task: str) -> Image.Image:
    """The strip of one task: 256 x 256 panels; for sr_x2 of a 128 x 128 detail, enlarged."""
    path = PHOTOGRAPHS / f"{PICTURES[task]}.webp"
    clean = read(path)
    degraded = degrade(task, clean, generator(task, path.stem))
    panels = [enlarged(degraded, clean), restore(load(task), degraded), clean]
    if task == "sr_x2":
        panels = [panel[DETAIL].repeat(2, 0).repeat(2, 1) for panel in panels]
    gap = np.ones((panels[0].shape[0], GAP, 3))
    joined = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    return Image.fromarray(np.round(joined * 255.0).astype(np.uint8))


def main() -> None:
    """Write examples/strips/TASK.webp for every task."""
    folder = HERE / "strips"
    folder.mkdir(exist_ok=True)
    for task in PICTURES:
        strip(task).save(folder / f"{task}.webp", quality=90, method=6)


if __name__ == "__main__":
    main()
