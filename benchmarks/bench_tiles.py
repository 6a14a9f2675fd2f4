"""How far a run tile by tile is from a run on the whole image: PSNR and seam energy, with and without the node."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import asvp_export
from asvp_export.images import list_images, photographs, read_image, write_image
from asvp_export.parity.metrics import psnr
from asvp_export.runtime.restoration import restore
from asvp_export.runtime.tiles import Tiling, seam_energy
from benchmarks._teachers import GAINS, LAYER, TASKS, teacher


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tasks", nargs="+", default=TASKS)
    arguments.add_argument("--tiles", nargs="+", type=int, default=[64, 128])
    arguments.add_argument("--overlap", type=int, default=16, help="what two tiles share")
    options = arguments.parse_args()
    pictures = [read_image(path) for path in list_images(photographs("verify"))[:4]]
    print("| teacher | tile | unprotected: worst PSNR, dB | seam energy | protected: worst PSNR, dB | seam energy |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few"
        few.mkdir()
        write_image(few / "one.png", pictures[0][:61, :80])
        for task in options.tasks:
            files = []
            for layers, name in (("none", "plain"), (LAYER, "node")):
                protected = asvp_export.protect(
                    teacher(task), layers, gain=GAINS[task], residual="gain" if layers != "none" else None
                )
                files.append(Path(folder) / f"{task}.{name}.onnx")
                asvp_export.export(protected, files[-1], images=few, min_psnr=20)
            for tile in options.tiles:
                cells = [cell for file in files for cell in _row(file, pictures, Tiling(tile, options.overlap))]
                print(f"| {task} | {tile} | " + " | ".join(cells) + " |", flush=True)


def _row(file: Path, pictures: list[np.ndarray], tiling: Tiling) -> tuple[str, str]:
    decibels, seams = [], []
    for picture in pictures:
        whole, tiled = (restore(file, picture, tiling=how).transpose(2, 0, 1)[None] for how in (None, tiling))
        scale = whole.shape[2] // picture.shape[0]
        decibels.append(psnr(whole, tiled, 1.0))
        seams.append(seam_energy(whole, tiled, Tiling(tiling.size * scale, tiling.overlap * scale)))
    return f"{min(decibels):.1f}", f"{np.nanmax(seams):.1f}"


if __name__ == "__main__":
    main()
