"""The summary of a run for GitHub, in Markdown: python summary.py PROTECTED VERDICT REPORTS."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def summary(protected: Path, verdict: str, reports: Path) -> str:
    lines = [f"### `{protected.name}`: {verdict}", ""]
    report = reports / f"{protected.stem}.report.json"
    if report.is_file():
        found = json.loads(report.read_text(encoding="utf-8"))
        lines += ["| gate | worst | mean | worst SSIM | needed | |", "| --- | --- | --- | --- | --- | --- |"]
        for name in ("fidelity", "preservation"):
            if gate := found[name]:
                shown = [f"{gate[key]} dB" for key in ("min_psnr", "mean_psnr")]
                cells = [name, *shown, str(gate["min_ssim"]), f"{gate['threshold']} dB"]
                lines.append(f"| {' | '.join(cells)} | {'passed' if gate['passed'] else '**failed**'} |")
        lines += ["", *(f"- {note}" for note in found["notes"]), ""]
    log = (reports / "log.txt").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    return "\n".join(
        [*lines, "<details><summary>What it said</summary>", "", "`````", log, "`````", "", "</details>", ""]
    )


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
