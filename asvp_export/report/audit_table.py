"""An audit for the terminal, and the order of its rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from asvp_export.distillation.arms import Arm
from asvp_export.distillation.results import AuditResult, Row
from asvp_export.report.render import Column
from asvp_export.report.tables import bare_table, terminal, verdict_text

BASELINES, SHIPPED = "No teacher, and the original", "The shipped model as it is"
CONTROLS, ATTACKERS = "Controls", "Attackers who adapt"

LOSS = Column("loss", "z.2f")
"""In dB; what rounds to zero has no sign."""


def grouped(result: AuditResult) -> dict[str, list[Row]]:
    """The rows by what is asked of them, without empty groups: the best baseline first, then the largest loss."""
    groups: dict[str, list[Row]] = {name: [] for name in (BASELINES, SHIPPED, CONTROLS, ATTACKERS)}
    for row in result.rows:
        groups[_group(row.arm)].append(row)
    return {name: sorted(rows, key=_rank, reverse=True) for name, rows in groups.items() if rows}


def _group(arm: Arm) -> str:
    if arm.teacher in ("truth", "original"):
        return BASELINES
    if arm.teacher != "shipped":
        return CONTROLS
    return ATTACKERS if arm.attack else SHIPPED


def _rank(row: Row) -> float:
    value = row.psnr if row.loss is None else row.loss
    return value if math.isfinite(value) else -math.inf


def audit_table(result: AuditResult, files: Mapping[str, Path]) -> None:
    """Print the rows, the verdict, what was asked for, and where the reports lie, by what they are."""
    console, several_seeds = terminal(), len(result.seeds) > 1
    columns = {
        "psnr": Column("PSNR", ".2f"),
        "spread": Column("spread", ".2f"),
        "ssim": Column("SSIM", ".4f"),
        "loss": LOSS,
    }
    if not several_seeds:
        del columns["spread"]
    table = bare_table("row", *(column.name for column in columns.values()), "effect")
    for name, rows in grouped(result).items():
        table.add_row(name, style="dim")
        for row in rows:
            cells = (column.show(getattr(row, key)) for key, column in columns.items())
            table.add_row(str(row.arm), *cells, row.effect)
    console.print(table)
    console.print(
        "PSNR on the test pictures, and its loss beside the same student of the original; dB"
        + (
            f", mean over {len(result.seeds)} seeds; spread: standard deviation over them."
            if several_seeds
            else ", of one seed."
        ),
        style="dim",
    )
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in result.unavailable.items():
        reasons[reason].append(name)
    for reason, names in reasons.items():
        console.print(f"not available: {', '.join(names)}: {reason}", style="dim")
    for sentence in result.sentences():
        console.print(sentence)
    for requirement in result.requirements:
        value = "its row was not run" if requirement.value is None else f"found {requirement.value:z.2f} dB"
        console.print(verdict_text(requirement.passed, bold=True), end="  ")
        console.print(f"{requirement.text}, {value}", soft_wrap=True)
    for kind, path in files.items():
        console.print(f"{kind}  {path}", soft_wrap=True)


def missed_lines(result: AuditResult) -> list[str]:
    """The requirements that are not met."""
    return [
        f"The requirement {requirement.text} is not met: "
        + ("its row was not run." if requirement.value is None else f"it is {requirement.value:.2f}.")
        for requirement in result.requirements
        if not requirement.passed
    ]
