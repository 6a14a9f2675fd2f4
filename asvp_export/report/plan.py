"""A plan as tables of the page."""

from __future__ import annotations

from asvp_export.plan.record import Plan
from asvp_export.report.render import Column, Table

_CANDIDATES = 12  # that are shown


def plan_tables(plan: Plan) -> list[Table]:
    """What each layer got and what stopped it; and the ranking, where the layers were chosen."""
    rows = [
        [
            layer.name, layer.node.rank, layer.node.gain, layer.strength, layer.stopped_by,
            ", ".join(layer.consumers) or (layer.uncompensated and f"no: {layer.uncompensated}") or "no",
        ]
        for layer in plan.layers
    ]  # fmt: skip
    seen = plan.calibration
    intro = (
        f"Fitted on {seen['crops']} crops and {seen['held_out']} held-out inputs from {seen['photographs']} photographs; "
        f"{plan.verified_psnr:.1f} dB on the worst verification image"
    )
    if plan.weights:
        intro += f", {plan.uncompensated_psnr:.1f} dB with the original weights"
    columns = [
        "layer",
        Column("rank"),
        Column("gain", "g"),
        Column("strength", ".3f"),
        "stopped by",
        "re-solved for it",
    ]
    tables = [Table(columns, rows, intro=intro + ".")]
    if plan.ranking:
        ranked = [
            [
                one.name,
                one.rank,
                one.gain,
                one.strength,
                "yes" if one.compensated else "no",
                "yes" if one.chosen else "",
            ]
            for one in plan.ranking[:_CANDIDATES]
        ]
        more = len(plan.ranking) - len(ranked)
        tables.append(
            Table(
                ["candidate", Column("rank"), Column("gain", "g"), Column("strength", ".3f"), "compensated", "chosen"],
                ranked,
                intro="What each candidate could carry alone, for its share of the allowance.",
                outro=f"{more} more are in the report's JSON." if more else "",
            )
        )
    return tables
