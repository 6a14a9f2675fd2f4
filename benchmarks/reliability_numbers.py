"""Random cases of the operator by every way in which it runs, held against float64: the worst that is seen.

Fills the table "Numbers" of docs/results/reliability.md with fractions of the error that docs/concepts/operator.md
allows; ends with 1 when one is over 1.

    python -m benchmarks.reliability_numbers --cases 20000 --seed 0 [--dry]
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks._pages import fill
from tests.helpers.cases import TYPES, cases
from tests.helpers.criterion import Errors
from tests.helpers.native import build
from tests.helpers.paths import judged, ways

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "reliability.md"
Found = dict[tuple[bool, bool], dict[str, dict[str, "Worst"]]]  # pair, usual; way; type


@dataclass
class Worst:
    """Of one way and type."""

    count: int = 0
    energy: float = 0.0
    distance: float = 0.0
    said: str = ""

    def take(self, errors: Errors) -> None:
        """Count it, and keep it where it is worse."""
        if errors.worst > max(self.energy, self.distance):
            self.said = errors.said
        self.count += 1
        self.energy, self.distance = max(self.energy, errors.energy), max(self.distance, errors.distance)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--dry", action="store_true", help="print the tables, leave the page alone")
    chosen = arguments.parse_args()
    found: Found = defaultdict(lambda: defaultdict(lambda: defaultdict(Worst)))
    start, done, outside = time.monotonic(), 0, 0
    all_ways = ways(build("tests"))
    for setting, group in cases(chosen.cases, chosen.seed):
        for case in group:
            for one in judged(case, all_ways):
                found[one.pair, one.usual][one.way][setting.dtype].take(one.errors)
                if not one.errors.worst <= 1:
                    outside += 1
                    print(f"OUTSIDE {one.errors.worst:.3g} {one.way}: {one.errors.said}", flush=True)
        done += len(group)
        print(f"{done} cases, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    text = f"{chosen.cases} cases, seed {chosen.seed}: {outside} outside.\n\n" + tables(found)
    for (pair, usual), by_way in found.items():
        for way, by_type in by_way.items():
            for dtype, worst in by_type.items():
                print(f"{_title(pair, usual)}, {way}, {dtype}: {worst.said}")
    print(text)
    if not chosen.dry:
        fill(PAGE, {"numbers": text})
    sys.exit(1 if outside else 0)


def tables(found: Found) -> str:
    """A row for each way, a column for each type."""
    lines: list[str] = []
    for pair, usual in ((False, True), (True, True), (False, False), (True, False)):
        lines += [
            f"| {_title(pair, usual)} | " + " | ".join(TYPES) + " | results |",
            "|---" * (len(TYPES) + 2) + "|",
        ]
        for way, by_type in found[pair, usual].items():
            cells = [_cell(by_type[dtype], pair) for dtype in TYPES]
            lines.append(f"| {way} | " + " | ".join(cells) + f" | {sum(one.count for one in by_type.values())} |")
        lines.append("")
    return "\n".join(lines)


def _title(pair: bool, usual: bool) -> str:
    return ("node and inverse" if pair else "node") + ("" if usual else ", subnormal or near overflow")


def _cell(worst: Worst, pair: bool) -> str:
    if not worst.count:
        return "-"
    return f"{worst.distance:.2g}" if pair else f"{worst.energy:.2g}, {worst.distance:.2g}"


if __name__ == "__main__":
    main()
