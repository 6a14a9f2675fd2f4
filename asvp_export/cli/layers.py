"""asvp-export layers MODEL."""

from __future__ import annotations

from pathlib import Path

import click

from asvp_export.cli.command import Command
from asvp_export.cli.from_options import takes
from asvp_export.cli.output import Output, prints
from asvp_export.cli.types import PATH
from asvp_export.options import LoadOptions
from asvp_export.progress import silent


@click.command(cls=Command)
@click.argument("model", type=PATH)
@takes("load", LoadOptions)
@prints
def layers(model: Path, load: LoadOptions, screen: Output) -> int:
    """List the layers of MODEL that can carry the node."""
    from asvp_export.report.tables import layers_as_dict, layers_table
    from asvp_export.workflows.layers import list_layers

    listed = list_layers(model, load, screen.note if screen.as_json else silent)  # the table names them itself
    screen.show(layers_as_dict(listed), lambda: layers_table(listed))
    return 0
