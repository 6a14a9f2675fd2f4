"""`asvp-export --help` in a fresh process, beside `python -c "import click"`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from _timing import in_turns


def process(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    tool = str(Path(sys.executable).with_name("asvp-export"))
    bare, ours = in_turns(15, lambda: process(sys.executable, "-c", "import click"), lambda: process(tool, "--help"))
    print("| command | seconds | above `import click` |")
    print("|---|---|---|")
    print(f'| `python -c "import click"` | {bare:.3f} | |')
    print(f"| `asvp-export --help` | {ours:.3f} | {ours - bare:+.3f} |")


if __name__ == "__main__":
    main()
