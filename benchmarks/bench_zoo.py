"""The table of docs/results/compatibility.md, from what `make test-zoo` wrote into build/zoo."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "zoo"
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"), key=lambda path: path.stem.lower())]
    passed = [row for row in rows if "refused" not in row]
    print("| architecture | parameters, millions | layer | sizes | export, s | fidelity, dB | preservation, dB |")
    print("|---|---|---|---|---|---|---|")
    for row in passed:
        sizes = row["static"].replace("x", " x ") or "free"
        print(
            f"| {row['name']} | {row['parameters'] / 1e6:.2f} | `{row['layer']}` | {sizes} | {row['seconds']:.0f} "
            f"| {row['fidelity']:.0f} | {row['preservation']:.0f} |"
        )
    print(f"\n{len(passed)} of {len(rows)}; not:\n")
    for row in rows:
        if "refused" in row:
            print(f"- {row['name']}: {row['refused']}")


if __name__ == "__main__":
    main()
