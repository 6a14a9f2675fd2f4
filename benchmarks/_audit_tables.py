"""docs/audit.md's tables, from what bench_audit.py measured."""

from __future__ import annotations

import re
from typing import Any

from _teachers import ROOT, TASKS

PAGE = ROOT / "docs" / "audit.md"
SHOWN = ("original/outputs", "shipped/outputs", "original/mse-1", "shipped/mse-1", "scaled/mse-1", "original/normalised-10",
         "shipped/normalised-10")  # fmt: skip

MISSING = "Not measured yet.\n"

Results = dict[str, Any]


def write(results: Results) -> None:
    text = PAGE.read_text()
    tables = {what: five(results, what) for what in ("full", "scale")}
    tables |= {"limit": limits(results), "tried": tried(results), "screen": screened(results)}
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = mark.subn(lambda found, table=table: found[1] + table + found[2], text)
        assert count == 1, name
    PAGE.write_text(text)


def five(results: Results, what: str) -> str:
    """What is shipped, then a line a row with a column a teacher."""
    found = _of(results, what)
    if not found:
        return MISSING
    lines = [
        "| teacher | node: layer, rank, gain, strength | worst preservation, dB | own loss, dB |",
        "|---|---|---|---|",
    ]
    for task, result in found.items():
        lines.append(
            f"| {task} | {_nodes(result)} | {result['own']['worst_preservation']:.1f} | {result['own']['loss']:.3f} |"
        )
    first = next(iter(found.values()))
    lines += ["", f"PSNR in dB, mean and standard deviation over {len(first['seeds'])} seeds, {first['budget']['steps']} steps; below "
              "it what is lost beside the same student of the original, and the p of a paired t-test.", ""]  # fmt: skip
    lines += [f"| student | {' | '.join(found)} | mean loss |", "|---" * (len(found) + 2) + "|"]
    lines += _students(found, ("truth", *SHOWN))
    if what == "full":  # two rows and what they are compared with are no choice
        lines.append("| best of the original: of the shipped | " + " | ".join(map(_best, found.values())) + " | |")
    return "\n".join(lines) + "\n"


def limits(results: Results) -> str:
    """A line a row with a column a teacher; nothing is shipped here."""
    found = _of(results, "limit")
    if not found:
        return MISSING
    lines = ["| student | " + " | ".join(f"{task}, `{one['layer']}`" for task, one in found.items()) + " | mean loss |"]
    lines += ["|---" * (len(found) + 2) + "|", *_students(found, ("original/normalised-10", "shipped/normalised-10"))]
    return "\n".join(lines) + "\n"


def tried(results: Results) -> str:
    """A line a node that was tried."""
    found = {key.removeprefix("tried/"): one for key, one in results.items() if key.startswith("tried/")}
    if not found:
        return MISSING
    lines = [
        "| teacher, tried | node: layer, rank, gain, strength | worst preservation, dB | own loss, dB | `shipped/outputs` | `shipped/normalised-10` |",
        "|---" * 6 + "|",
    ]
    for name, one in found.items():
        task, _, what = name.partition("/")
        rows = {row["name"]: row for row in one["rows"]}
        cells = [_cell(rows[row]) for row in ("shipped/outputs", "shipped/normalised-10")]
        own = one["own"]
        lines.append(
            f"| {task}, {what} | {_nodes(one)} | {own['worst_preservation']:.1f} | {own['loss']:.3f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def screened(results: Results) -> str:
    found = {key.partition("/")[2]: one for key, one in results.items() if key.startswith("screen/")}
    if not found:
        return MISSING
    lines = []
    for task, result in found.items():
        lines += [f"{task}, {result['budget']['steps']} steps:", "", "| student | PSNR | loss |", "|---|---|---|"]
        for row in sorted(result["rows"], key=lambda row: -row["psnr"]):
            loss = "" if row["loss"] is None else f"{row['loss']:.2f}"
            lines.append(f"| `{row['name']}` | {row['psnr']:.2f} | {loss} |")
    return "\n".join(lines) + "\n"


def _of(results: Results, what: str) -> dict[str, Results]:
    return {task: results[f"{what}/{task}"] for task in TASKS if f"{what}/{task}" in results}


def _nodes(result: Results) -> str:
    return "; ".join(
        f"`{one['name']}`: {one['rank']}, {one['gain']:g}, {result['strength'][one['name']]:.2f}"
        for one in result["layers"]
    )


def _students(found: dict[str, Results], names: tuple[str, ...]) -> list[str]:
    lines = []
    for name in names:
        rows = [next((row for row in result["rows"] if row["name"] == name), None) for result in found.values()]
        if any(rows):
            losses = [row["loss"] for row in rows if row and row["loss"] is not None]
            mean = f"{sum(losses) / len(losses):.2f}" if losses else ""
            lines.append(f"| `{name}` | {' | '.join(map(_cell, rows))} | {mean} |")
    return lines


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
