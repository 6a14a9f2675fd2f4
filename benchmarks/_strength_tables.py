"""docs/strength.md's tables and plot, from the rows that bench_strength.py measured."""

from __future__ import annotations

from typing import Any

from _pages import fill
from _teachers import DAT, ROOT, TASKS

PAGE = ROOT / "docs" / "strength.md"
FRONT = ROOT / "README.md"
PLOT = ROOT / "docs" / "strength.png"
SHOWN = (*TASKS, DAT)
MODES = {"none": "plain", "solve": "solved", "refine": "refined"}

Rows = dict[str, Any]


def write(rows: Rows) -> None:
    fill(PAGE, {"bars": bars(rows), "sums": sums(rows), "tolerances": tolerances(rows), "crops": crops(rows)})
    fill(FRONT, {"sums": sums(rows)})
    plot(rows)


def bars(rows: Rows) -> str:
    lines = [
        "| teacher | nodes | strength | no compensation | channel mix | whole kernel | refined | nodes deleted | 1x1 map |",
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
                f"| {', '.join(f'{one:.2f}' for one in solved['strength'].values())} | {solved['plain_psnr']:.1f} "
                f"| {_psnr(mix)} | {_psnr(solved)} | {_psnr(refined)} "
                f"| {_strip(best, 'nodes deleted')} | {_strip(best, 'best 1x1 map')} |"
            )
    return "\n".join(lines) + "\n"


def sums(rows: Rows) -> str:
    """What 48 dB buy."""
    lines = [
        "| teacher | plain: gains | strengths | unseen, worst | compensated: gains | strengths | unseen, worst | nodes deleted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in SHOWN:
        cells = []
        for mode in ("none", "solve"):
            row = rows[f"tolerances/{task}/{mode}/48"]
            gains = ", ".join(f"{node[1]:.3g}" for node in row["nodes"].values())
            cells += [gains, f"{sum(node[2] for node in row['nodes'].values()):.2f}", f"{row['psnr']:.1f} dB"]
        lines.append(f"| {task} | {' | '.join(cells)} | {_strip(row, 'nodes deleted')} |")
    return "\n".join(lines) + "\n"


def tolerances(rows: Rows) -> str:
    lines = [
        "| teacher | tolerance, dB | weights | layer: rank, gain, strength, feature change | audit images, worst / mean, dB | nodes deleted | 1x1 map | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in SHOWN:
        for tolerance in (40, 45, 48, 55):
            for mode, shown in MODES.items():
                if row := rows.get(f"tolerances/{task}/{mode}/{tolerance}"):
                    nodes = "; ".join(
                        f"`{layer}`: {rank}, {gain:g}, {strength:.3f}, {change:.2f}"
                        for layer, (rank, gain, strength, change, _) in row["nodes"].items()
                    )
                    lines.append(
                        f"| {task} | {tolerance} | {shown} | {nodes} | {row['psnr']:.1f} / {row['mean_psnr']:.1f} "
                        f"| {_strip(row, 'nodes deleted')} | {_strip(row, 'best 1x1 map')} | {row['seconds']} |"
                    )
    return "\n".join(lines) + "\n"


def crops(rows: Rows) -> str:
    found = {key: row for key, row in rows.items() if key.startswith("crops/")}
    if not found:
        return "Not measured yet.\n"
    counts = sorted({int(key.rpartition("/")[2]) for key in found})
    lines = [f"| teacher | {' | '.join(f'{count} crops' for count in counts)} |", "|---" * (len(counts) + 1) + "|"]
    for task in TASKS:
        cells = [found.get(f"crops/{task}/{count:03d}") for count in counts]
        if any(cells):
            shown = [f"{row['unseen']:.1f} ({row['crops']:.1f})" if row else "" for row in cells]
            lines.append(f"| {task} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _psnr(row: Rows | None) -> str:
    return f"{row['psnr']:.1f}" if row else "not run"


def _strip(row: Rows, name: str) -> str:
    worst, lost = row["strips"][name]
    return f"{worst:.1f} ({lost - row['own_loss']:+z.2f})"


def plot(rows: Rows) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [task for task in SHOWN if any(key.startswith(f"tolerances/{task}/") for key in rows)]
    figure, panels = plt.subplots(-(-len(tasks) // 3), 3, figsize=(10, 6.4), squeeze=False, layout="constrained")
    for panel, task in zip(panels.flat, tasks, strict=False):
        for (mode, shown), marker in zip(MODES.items(), "o^s", strict=True):
            points = sorted(
                (row["psnr"], sum(node[2] for node in row["nodes"].values()))
                for key, row in rows.items()
                if key.startswith(f"tolerances/{task}/{mode}/")
            )
            if points:
                panel.plot(*zip(*points, strict=True), marker=marker, label=shown)
        panel.set(title=task, xlabel="worst audit image, dB")
        panel.grid(alpha=0.3)
        panel.set_ylim(bottom=0)
    for panel in panels[:, 0]:
        panel.set_ylabel("sum of strengths")
    panels[0, 0].legend()
    figure.savefig(PLOT, dpi=90)
