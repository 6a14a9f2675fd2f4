"""`run`: restore one picture with a shipped file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np

from asvp_export.errors import InputError
from asvp_export.files import check_output
from asvp_export.images import image_format, read_npz, read_picture, write_image
from asvp_export.keywords import RunKeywords
from asvp_export.option_groups import grouped
from asvp_export.options import RunOptions, TileOptions
from asvp_export.picture import Picture
from asvp_export.progress import Printer, silent
from asvp_export.runtime.restoration import restore
from asvp_export.workflows.artifacts import keep_apart
from asvp_export.workflows.check import tiling_of
from asvp_export.workflows.reading import model_files


def run(
    protected: str | Path,
    image: str | Path | np.ndarray,
    output: str | Path | None = None,
    *,
    others: Mapping[str, np.ndarray] | Sequence[np.ndarray] = (),
    note: Printer = silent,
    **options: Unpack[RunKeywords],
) -> Restored:
    """Restore a picture with a shipped file, at any size.

    The picture is padded to what the model takes, run once (or tile by tile), and cropped back.

    Args:
        protected: the ONNX file; its metadata says the sizes and the value range (else: any size, 0..1).
        image: a picture's file, or [H, W, 3] float32 in 0..1.
        output: the picture to write: .png, .jpg or .webp; None: none is written.
        others: what the model takes besides the image (a noise map, a noise level), by name or in order.
        note: called with what is not kept of the picture, and where tiles are not what the architecture is made for.
        **options: see `asvp_export.options.RunOptions` and `TileOptions`.

    Raises:
        InputError: a file cannot be used, or the output is there already.
        MachineError: the disk or the memory is full.
    """
    run, tiles = grouped(options, RunKeywords, RunOptions, TileOptions)
    if run.inputs and len(others):
        raise InputError(
            "The model's other inputs were given twice, by others and by the file inputs; leave one of the two out."
        )
    picture = Path(image) if isinstance(image, str) else image
    job = RunJob(run, tiles, others)
    return restore_picture(Path(protected), picture, Path(output) if output else None, job, note)


@dataclass(frozen=True)
class RunJob:
    """The options of a run."""

    run: RunOptions = field(default_factory=RunOptions)
    """Where it runs, and what the model takes beside the picture."""

    tiles: TileOptions = field(default_factory=TileOptions)
    """Whether it runs tile by tile."""

    others: Mapping[str, np.ndarray] | Sequence[np.ndarray] = ()
    """What the model takes beside the picture, where no file of it is named."""


@dataclass(frozen=True)
class Restored:
    """A picture that was restored."""

    pixels: np.ndarray
    """[H * scale, W * scale, 3] float32, around 0..1 (not clipped); less where the model cuts a border off."""

    before: tuple[int, int]
    """Height and width of the picture in pixels."""

    output: Path | None
    """The file that was written."""

    @property
    def after(self) -> tuple[int, int]:
        """Height and width of what was made, in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def as_dict(self) -> dict[str, object]:
        """The file and both sizes, for JSON."""
        written = self.output.name if self.output else None
        return {"written": written, "input": list(self.before), "output": list(self.after)}


def restore_picture(
    protected: Path, image: Path | np.ndarray, output: Path | None, job: RunJob, note: Printer
) -> Restored:
    """`run`, with the options as objects."""
    if output is not None:
        image_format(output)
        check_output(output, force=job.run.force)
        read_files = [*model_files(protected, "protected file")]
        read_files += [("image", image)] if isinstance(image, Path) else []
        read_files += [("inputs", job.run.inputs)] if job.run.inputs else []
        keep_apart(read_files, {"picture": output})
    picture = read_picture(image) if isinstance(image, Path) else Picture(image)
    if output is not None:
        image_format(output, picture)
        for line in picture.notes:
            note(line)
    others = read_npz(job.run.inputs) if job.run.inputs else job.others
    provider, tiling = job.run.provider, tiling_of(job.tiles)
    pixels = restore(protected, picture.pixels, provider=provider, tiling=tiling, others=others, note=note)
    if output is not None:
        write_image(output, pixels, picture, note)
    height, width = picture.pixels.shape[:2]
    return Restored(pixels, (height, width), output)
