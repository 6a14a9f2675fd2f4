"""`run`: restore one picture with a shipped file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from asvp_export.files import check_output
from asvp_export.images import image_format, read_npz, read_picture, write_image
from asvp_export.options import RunOptions, TileOptions
from asvp_export.progress import Printer
from asvp_export.runtime.restoration import restore
from asvp_export.workflows.artifacts import keep_apart
from asvp_export.workflows.check import tiling_of


@dataclass(frozen=True)
class RunJob:
    """What a run is told."""

    run: RunOptions = field(default_factory=RunOptions)
    """Where it runs, and what the model takes beside the picture."""

    tiles: TileOptions = field(default_factory=TileOptions)
    """Whether it runs tile by tile."""


@dataclass(frozen=True)
class Restored:
    """A picture that was written."""

    output: Path
    """The file."""

    before: tuple[int, int]
    """Height and width of the picture."""

    after: tuple[int, int]
    """Height and width of what was written."""


def run(protected: Path, image: Path, output: Path, job: RunJob, note: Printer) -> Restored:
    """Restore a picture with a shipped file, at any size.

    Args:
        protected: the ONNX file.
        image: the picture.
        output: the picture to write: .png, .jpg or .webp.
        job: everything else.
        note: called with what is not kept of the picture.

    Raises:
        InputError: a file cannot be used, or the output is there already.
        MachineError: the disk or the memory is full.
    """
    image_format(output)
    check_output(output, force=job.run.force)
    keep_apart({"protected file": protected, "image": image}, {"output": output})
    picture = read_picture(image)
    image_format(output, picture)
    for line in picture.notes:
        note(line)
    others = read_npz(job.run.inputs) if job.run.inputs else ()
    restored = restore(
        protected, picture.pixels, provider=job.run.provider, tiling=tiling_of(job.tiles), others=others, note=note
    )
    write_image(output, restored, picture, note)
    height, width = picture.pixels.shape[:2]
    return Restored(output, (height, width), (restored.shape[0], restored.shape[1]))
