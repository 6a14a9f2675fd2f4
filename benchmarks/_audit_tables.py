"""docs/audit.md's tables, from what bench_audit.py measured."""

from __future__ import annotations

import re
from typing import Any

from _teachers import ROOT, TASKS

PAGE = ROOT / "docs" / "audit.md"
SHOWN = ("original/outputs", "shipped/outputs", "original/mse-1", "shipped/mse-1", "scaled/mse-1", "original/normalised-10",
         "shipped/normalised-10")  # fmt: skip

Results = dict[str, Any]


def write(results: Results) -> None:
    text = PAGE.read_text()
    tables = {what: five(results, what) for what in ("full", "scale")} | {"screen": screened(results)}
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = mark.subn(lambda found, table=table: found[1] + table + found[2], text)
        assert count == 1, name
    PAGE.write_text(text)


def five(results: Results, what: str) -> str:
    """What is shipped, then a line a row with a column a teacher."""
    found = {task: results[f"{what}/{task}"] for task in TASKS if f"{what}/{task}" in results}
    if not found:
        return "Not measured yet.\n"
    lines = [
        "| teacher | node: layer, rank, gain, strength | worst preservation, dB | own loss, dB |",
        "|---|---|---|---|",
    ]
    for task, result in found.items():
        nodes = "; ".join(
            f"`{one['name']}`: {one['rank']}, {one['gain']:g}, {result['strength'][one['name']]:.2f}"
            for one in result["layers"]
        )
        lines.append(f"| {task} | {nodes} | {result['own']['worst_preservation']:.1f} | {result['own']['loss']:.3f} |")
    first = next(iter(found.values()))
    lines += ["", f"PSNR in dB, mean and standard deviation over {len(first['seeds'])} seeds, {first['budget']['steps']} steps; below "
              "it what is lost beside the same student of the original, and the p of a paired t-test.", ""]  # fmt: skip
    lines += [f"| student | {' | '.join(found)} | mean loss |", "|---" * (len(found) + 2) + "|"]
    for name in ("truth", *SHOWN):
        rows = [next((row for row in result["rows"] if row["name"] == name), None) for result in found.values()]
        if any(rows):
            losses = [row["loss"] for row in rows if row and row["loss"] is not None]
            mean = f"{sum(losses) / len(losses):.2f}" if losses else ""
            lines.append(f"| `{name}` | {' | '.join(map(_cell, rows))} | {mean} |")
    lines.append("| best of the original: of the shipped | " + " | ".join(map(_best, found.values())) + " | |")
    return "\n".join(lines) + "\n"


def screened(results: Results) -> str:
    found = {key.partition("/")[2]: one for key, one in results.items() if key.startswith("screen/")}
    if not found:
        return "Not measured yet.\n"
    lines = []
    for task, result in found.items():
        lines += [f"{task}, {result['budget']['steps']} steps:", "", "| student | PSNR | loss |", "|---|---|---|"]
        for row in sorted(result["rows"], key=lambda row: -row["psnr"]):
            loss = "" if row["loss"] is None else f"{row['loss']:.2f}"
            lines.append(f"| `{row['name']}` | {row['psnr']:.2f} | {loss} |")
    return "\n".join(lines) + "\n"


def _cell(row: Results | None) -> str:
    if row is None:
        return ""
    spread = f" ± {row['spread']:.2f}" if row["spread"] is not None else ""
    if row["loss"] is None:
        return f"{row['psnr']:.2f}{spread}"
    p = f", p {row['p']:.2g}" if row["p"] is not None else ""
    return (
        f"{row['psnr']:.2f}{spread}<br>{row['loss']:+z.2f}{p}: {row['effect'].split(' ')[0]}".replace(": loses", "")
        .replace(": gains", "")
        .replace(": no", ": no effect")
    )


def _best(result: Results) -> str:
    names = {row["name"]: row for row in result["rows"]}
    clean, shipped = (result["best"][who] for who in ("original", "shipped"))
    return f"`{clean}`: `{shipped}`, {names[clean]['psnr'] - names[shipped]['psnr']:+z.2f}"
