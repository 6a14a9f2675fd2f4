"""docs/results/strength.md's tables, from the rows that bench_strength.py measured."""

from __future__ import annotations

from typing import Any

from benchmarks._pages import fill
from benchmarks._teachers import ROOT, TASKS

PAGE = ROOT / "docs" / "results" / "strength.md"

Rows = dict[str, Any]


def write(rows: Rows) -> None:
    fill(PAGE, {"bars": bars(rows), "residuals": residuals(rows), "crops": crops(rows)})


def bars(rows: Rows) -> str:
    lines = [
        "| teacher | nodes | strength | no compensation | channel mix | whole kernel | refined "
        "| nodes deleted | 1x1 map |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for name in ("after_body", "one", "three"):
            solved, refined, mix = (rows.get(f"bars/{task}/{name}/{mode}") for mode in ("solve", "refine", "mix"))
            if not solved:
                continue
            best = refined or solved
            lines.append(
                f"| {task} | {', '.join(f'`{layer}`' for layer in solved['layers'])} "
                f"| {', '.join(f'{strength:.2f}' for strength in solved['strength'].values())} "
                f"| {solved['plain_psnr']:.1f} "
                f"| {_psnr(mix)} | {_psnr(solved)} | {_psnr(refined)} "
                f"| {_removal(best, 'nodes deleted')} | {_removal(best, 'best 1x1 map')} |"
            )
    return "\n".join(lines) + "\n"


def residuals(rows: Rows) -> str:
    lines = [
        "| teacher | layer: exposed gain, residual gain, strength | audit images, worst / mean, dB | own loss, dB "
        "| nodes deleted | 1x1 map |",
        "|---" * 6 + "|",
    ]
    for task in TASKS:
        if row := rows.get(f"residuals/{task}"):
            nodes = "; ".join(
                f"`{layer}`: {gain:g}, {residual:.3g}, {strength:.2f}"
                for layer, (_, gain, residual, strength) in row["nodes"].items()
            )
            lines.append(
                f"| {task} | {nodes} | {row['psnr']:.1f} / {row['mean_psnr']:.1f} | {row['own_loss']:+.3f} "
                f"| {_removal(row, 'nodes deleted')} | {_removal(row, 'best 1x1 map')} |"
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Not measured yet.\n"


def crops(rows: Rows) -> str:
    of_crops = {key: row for key, row in rows.items() if key.startswith("crops/")}
    if not of_crops:
        return "Not measured yet.\n"
    counts = sorted({int(key.rpartition("/")[2]) for key in of_crops})
    lines = [f"| teacher | {' | '.join(f'{count} crops' for count in counts)} |", "|---" * (len(counts) + 1) + "|"]
    for task in TASKS:
        cells = [of_crops.get(f"crops/{task}/{count:03d}") for count in counts]
        if any(cells):
            shown = [f"{row['unseen']:.1f} ({row['crops']:.1f})" if row else "" for row in cells]
            lines.append(f"| {task} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _psnr(row: Rows | None) -> str:
    return f"{row['psnr']:.1f}" if row else "not run"


def _removal(row: Rows, name: str) -> str:
    worst, lost = row["strips"][name]
    return f"{worst:.1f} ({lost - row['own_loss']:+z.2f})"
