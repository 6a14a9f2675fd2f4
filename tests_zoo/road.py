"""The road of the command line, in this process: spandrel is imported once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from asvp_export.cli import cli


def exported(model: Path, output: Path, *options: str | Path) -> dict[str, Any]:
    """Run `asvp-export MODEL --gain 1.05 ...`, and return its report with the exit code and the seconds that it took.

    Raises:
        AsvpError: as the command line prints it.
    """
    began = time.perf_counter()
    arguments = [str(model), "-o", str(output), "--force", "--quiet", "--gain", "1.05", *map(str, options)]
    code = cli.main(args=arguments, prog_name="asvp-export", standalone_mode=False)
    seconds = time.perf_counter() - began
    report = json.loads(output.with_name(f"{output.stem}.report.json").read_text())
    return {"code": code, "seconds": seconds, **report}
