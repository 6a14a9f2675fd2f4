"""The matrix of docs/results/compatibility.md, from what `make test-field` wrote into build/field."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks._pages import fill
from tests_field.files import FILES

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    rows = [json.loads((ROOT / "build" / "field" / f"{file.name}.json").read_text()) for file in FILES]
    steps = list(rows[0]["outcomes"])
    lines = [f"| file | what is special | {' | '.join(steps)} | assumed, not certain |"]
    lines.append("|---" * (len(steps) + 3) + "|")
    for row in rows:
        outcomes = [row["outcomes"][step].partition(":")[0] for step in steps]
        assumed = "; ".join(f"{assumption['about']}: {assumption['concluded']}" for assumption in row["assumed"])
        lines.append(f"| `{row['file']}` | {row['kind']} | {' | '.join(outcomes)} | {assumed} |")
    fill(ROOT / "docs" / "results" / "compatibility.md", {"field": "\n".join(lines) + "\n"})


if __name__ == "__main__":
    main()
