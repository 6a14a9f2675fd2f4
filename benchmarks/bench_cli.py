"""`asvp-export --help` in a fresh process, beside `python -c "import click"`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from asvp_export.parity.latency import in_turns


def process(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    tool = str(Path(sys.executable).with_name("asvp-export"))
    bare, ours = in_turns(15, lambda: process(sys.executable, "-c", "import click"), lambda: process(tool, "--help"))
    print("| command | seconds | above `import click` |")
    print("|---|---|---|")
    print(f'| `python -c "import click"` | {bare / 1000:.3f} | |')
    print(f"| `asvp-export --help` | {ours / 1000:.3f} | {(ours - bare) / 1000:+.3f} |")


if __name__ == "__main__":
    main()
