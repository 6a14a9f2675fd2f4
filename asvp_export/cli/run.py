"""asvp-export run PROTECTED IMAGE -o OUTPUT."""

from __future__ import annotations

from pathlib import Path

import click

from asvp_export.cli.command import Command
from asvp_export.cli.from_options import takes
from asvp_export.cli.output import Output, prints
from asvp_export.cli.types import PATH
from asvp_export.console import echo
from asvp_export.options import PictureOutputOptions, RunOptions, TileOptions


@click.command(cls=Command, first=("output",))
@click.argument("protected", type=PATH)
@click.argument("image", type=PATH)
@takes("", PictureOutputOptions)
@takes("options", RunOptions)
@takes("tiles", TileOptions)
@prints
def run(protected: Path, image: Path, output: Path, options: RunOptions, tiles: TileOptions, screen: Output) -> int:
    """Restore IMAGE with PROTECTED, at any size."""
    from asvp_export.workflows.run import RunJob, restore_picture

    restored = restore_picture(protected, image, output, RunJob(options, tiles), screen.note)
    (height_before, width_before), (height, width) = restored.before, restored.after
    sizes = f"{width} x {height} (from {width_before} x {height_before})"
    screen.show(restored.as_dict(), lambda: echo(f"{output}: {sizes}"))
    return 0
