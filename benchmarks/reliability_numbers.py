"""Random cases of the operator by every execution path, held against float64: the worst that is seen.

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
from tests.helpers.paths import execution_paths, judged

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "reliability.md"
Found = dict[tuple[bool, bool], dict[str, dict[str, "Worst"]]]  # pair, usual; execution path; type


@dataclass
class Worst:
    """Of one execution path and type."""

    count: int = 0
    energy: float = 0.0
    distance: float = 0.0
    message: str = ""

    def take(self, errors: Errors) -> None:
        """Count it, and keep it where it is worse."""
        if errors.worst > max(self.energy, self.distance):
            self.message = errors.message
        self.count += 1
        self.energy, self.distance = max(self.energy, errors.energy), max(self.distance, errors.distance)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--dry", action="store_true", help="print the tables, leave the page alone")
    chosen = arguments.parse_args()
    worst_errors: Found = defaultdict(lambda: defaultdict(lambda: defaultdict(Worst)))
    start, finished, outside = time.monotonic(), 0, 0
    all_paths = execution_paths(build("tests"))
    for setting, group in cases(chosen.cases, chosen.seed):
        for case in group:
            for result in judged(case, all_paths):
                worst_errors[result.pair, result.usual][result.path][setting.dtype].take(result.errors)
                if not result.errors.worst <= 1:
                    outside += 1
                    print(f"OUTSIDE {result.errors.worst:.3g} {result.path}: {result.errors.message}", flush=True)
        finished += len(group)
        print(f"{finished} cases, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    text = f"{chosen.cases} cases, seed {chosen.seed}: {outside} outside.\n\n" + tables(worst_errors)
    for (pair, usual), by_path in worst_errors.items():
        for path, by_type in by_path.items():
            for dtype, worst in by_type.items():
                print(f"{_title(pair, usual)}, {path}, {dtype}: {worst.message}")
    print(text)
    if not chosen.dry:
        fill(PAGE, {"numbers": text})
    sys.exit(1 if outside else 0)


def tables(worst_errors: Found) -> str:
    """A row for each execution path, a column for each type."""
    lines: list[str] = []
    for pair, usual in ((False, True), (True, True), (False, False), (True, False)):
        lines += [
            f"| {_title(pair, usual)} | " + " | ".join(TYPES) + " | results |",
            "|---" * (len(TYPES) + 2) + "|",
        ]
        for path, by_type in worst_errors[pair, usual].items():
            cells = [_cell(by_type[dtype], pair) for dtype in TYPES]
            lines.append(f"| {path} | " + " | ".join(cells) + f" | {sum(worst.count for worst in by_type.values())} |")
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
