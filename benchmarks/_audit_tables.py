"""docs/results/audit.md's tables, from what bench_audit.py measured."""

from __future__ import annotations

from typing import Any

from benchmarks._pages import fill
from benchmarks._teachers import ROOT, TASKS

PAGE = ROOT / "docs" / "results" / "audit.md"
STRENGTH = ROOT / "docs" / "results" / "strength.md"
KINDS = ("outputs", "mse-0.1", "mse-1", "normalised-1", "normalised-10", "attention-10", "affinity-1")
HONEST = ("shipped/mse-1@before", "shipped+bypass/mse-1")
MISSING = "Not measured yet.\n"

Results = dict[str, Any]


def write(results: Results) -> None:
    tables = {name: setting(results, name) for name in ("default", "blocks", "compensated")}
    fill(STRENGTH, {"layers": layers(results)})
    fill(PAGE, {"nodes": nodes(results), **tables, "battery": battery(results)})


def layers(results: Results) -> str:
    """A line a teacher and set of layers, for docs/results/strength.md."""
    kinds = ("mse-1", "normalised-1", "attention-10")
    lines = [f"| teacher | layers | {' | '.join(f'`{kind}`' for kind in kinds)} |", "|---" * 5 + "|"]
    for key, result in results.items():
        group, _, task_and_name = key.partition("/")
        if group == "layers":
            task, _, name = task_and_name.partition("/")
            lost = [_row(result, f"shipped/{kind}") for kind in kinds]
            cells = [f"{row['loss']:.2f}" if row and row["loss"] is not None else "" for row in lost]
            shown = ", ".join(f"`{layer}`" for layer in result["layers"])
            lines.append(f"| {task} | {name}: {shown} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else MISSING


def nodes(results: Results) -> str:
    """What is shipped in each setting, and what it costs its user."""
    lines = [
        "| setting | teacher | layer: gain, residual, strength | worst preservation, dB | own loss, dB |",
        "|---" * 5 + "|",
    ]
    for name in ("default", "blocks", "compensated"):
        for task, result in _of(results, name).items():
            scores = result["own"]
            lines.append(
                f"| {name} | {task} | {_nodes(result)} | {scores['worst_preservation']:.1f} | {scores['loss']:+.3f} |"
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else MISSING


def setting(results: Results, name: str) -> str:
    """A line a kind of student with a column a teacher."""
    by_task = _of(results, name)
    if not by_task:
        return MISSING
    any_result = next(iter(by_task.values()))
    lines = [
        f"{len(any_result['seeds'])} seed(s), {any_result['budget']['steps']} steps.",
        "",
        f"| student | {' | '.join(by_task)} | mean loss |",
        "|---" * (len(by_task) + 2) + "|",
        f"| `truth` | {' | '.join(_cell(_row(result, 'truth')) for result in by_task.values())} | |",
    ]
    names = [f"{teacher}/{kind}" for kind in KINDS for teacher in ("original", "shipped")]
    present = [name for name in (*names, *HONEST) if any(_row(result, name) for result in by_task.values())]
    lines += [_line(by_task, name) for name in present]
    lines.append(f"| best of the original: of the shipped | {' | '.join(map(_best, by_task.values()))} | |")
    return "\n".join(lines) + "\n"


def battery(results: Results) -> str:
    """Every row, the best student first."""
    lines = []
    for task, result in _of(results, "battery").items():
        lines += [
            f"{task}, {result['budget']['steps']} steps:",
            "",
            "| student | PSNR | SSIM | loss |",
            "|---" * 4 + "|",
        ]
        for row in sorted(result["rows"], key=lambda row: -row["psnr"]):
            loss = "" if row["loss"] is None else f"{row['loss']:.2f}"
            lines.append(f"| `{row['name']}` | {row['psnr']:.2f} | {row['ssim']:.3f} | {loss} |")
    return "\n".join(lines) + "\n" if lines else MISSING


def _of(results: Results, setting: str) -> dict[str, Results]:
    return {task: results[f"{setting}/{task}"] for task in TASKS if f"{setting}/{task}" in results}


def _nodes(result: Results) -> str:
    too_many = len(result["layers"]) > 3
    shown = [
        f"`{node['name']}`: {node['gain']:g}, {node['residual']:.3g}, {result['strength'][node['name']] or 0:.2f}"
        for node in (result["layers"][:1] if too_many else result["layers"])
    ]
    return "; ".join(shown) + (f"; and {len(result['layers']) - 1} more blocks" if too_many else "")


def _row(result: Results, name: str) -> Results | None:
    return next((row for row in result["rows"] if row["name"] == name), None)


def _line(by_task: dict[str, Results], name: str) -> str:
    rows = [_row(result, name) for result in by_task.values()]
    losses = [row["loss"] for row in rows if row and row["loss"] is not None]
    mean = f"{sum(losses) / len(losses):.2f}" if losses else ""
    return f"| `{name}` | {' | '.join(map(_cell, rows))} | {mean} |"


def _cell(row: Results | None) -> str:
    if row is None:
        return ""
    spread = f" ± {row['spread']:.2f}" if row["spread"] is not None else ""
    shown = f"{row['psnr']:.2f}{spread}, {row['ssim']:.2f}"
    if row["loss"] is None:
        return shown
    chance = ": no effect" if row["effect"].startswith("no effect") else ""
    p = f", p {row['p']:.2g}" if row["p"] is not None else ""
    return f"{shown}<br>{row['loss']:+z.2f}{p}{chance}"


def _best(result: Results) -> str:
    names = {row["name"]: row for row in result["rows"]}
    clean, shipped = (result["best"][teacher] for teacher in ("original", "shipped"))
    return f"`{clean}`: `{shipped}`, {names[clean]['psnr'] - names[shipped]['psnr']:+z.2f}"
