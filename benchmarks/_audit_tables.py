"""docs/audit.md's tables, from what bench_audit.py measured."""

from __future__ import annotations

from typing import Any

from _pages import fill
from _teachers import ROOT, TASKS

PAGE = ROOT / "docs" / "audit.md"
SHOWN = ("original/outputs", "shipped/outputs", "original/mse-1", "shipped/mse-1", "scaled/mse-1", "original/normalised-10",
         "shipped/normalised-10")  # fmt: skip

MISSING = "Not measured yet.\n"

Results = dict[str, Any]


def write(results: Results) -> None:
    tables = {
        "full": five(results),
        "scale": scales(results),
        "limit": limits(results),
        "tried": tried(results),
        "screen": screened(results),
    }
    fill(PAGE, tables)


def five(results: Results) -> str:
    """What is shipped, then a line a row with a column a teacher."""
    found = _of(results, "full")
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
    lines.append("| best of the original: of the shipped | " + " | ".join(map(_best, found.values())) + " | |")
    return "\n".join(lines) + "\n"


def scales(results: Results) -> str:
    """A line a gain and row with a column a teacher."""
    found = _of(results, "scale")
    if not found:
        return MISSING
    gains = sorted({float(key.rpartition("/")[2]) for key in results if key.startswith("scale/")})
    of_gain = {gain: {task: results[f"scale/{task}/{gain:g}"] for task in found} for gain in gains}
    nodes = [f"{task}, `{one['layers'][0]['name']}`" for task, one in found.items()]
    lines = [f"| gain | student | {' | '.join(nodes)} | mean loss |", "|---" * (len(found) + 3) + "|"]
    lines += [f"| |{row.removeprefix('|')}" for row in _students(found, ("original/mse-1",))]
    for gain, those in of_gain.items():
        lines += [f"| {gain:g} |{row.removeprefix('|')}" for row in _students(those, ("shipped/mse-1", "scaled/mse-1"))]
        kept = [f"{one['own']['worst_preservation']:.0f}" for one in those.values()]
        lines.append(f"| {gain:g} | worst preservation, dB | {' | '.join(kept)} | |")
    return "\n".join(lines) + "\n"


def limits(results: Results) -> str:
    """A line a row with a column a teacher, for one node and for three; nothing is shipped here."""
    found = _of(results, "limit")
    if not found:
        return MISSING
    lines = [f"| nodes | student | {' | '.join(found)} | mean loss |", "|---" * (len(found) + 3) + "|"]
    for name in ("one", "three"):
        those = {task: results[f"limit/{task}/{name}"] for task in found}
        layers = ["<br>".join(f"`{layer}`" for layer in one["layers"]) for one in those.values()]
        lines.append(f"| {name} | | {' | '.join(layers)} | |")
        rows = _students(those, ("original/normalised-10", "shipped/normalised-10"))
        lines += [f"| |{row.removeprefix('|')}" for row in rows]
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
    """Teacher to its first result."""
    found = {}
    for task in TASKS:
        keys = [key for key in results if f"{key}/".startswith(f"{what}/{task}/")]
        if keys:
            found[task] = results[keys[0]]
    return found


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
