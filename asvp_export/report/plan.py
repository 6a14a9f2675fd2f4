"""A plan as tables of the page."""

from __future__ import annotations

from asvp_export.plan.plan import Plan
from asvp_export.report.render import Column, Table

_CANDIDATES = 12  # that are shown


def plan_tables(plan: Plan) -> list[Table]:
    """What each layer got and what stopped it; and the ranking, where the layers were chosen."""
    rows = [
        [
            layer.name, layer.node.rank, layer.node.gain, layer.node.left, layer.strength, layer.stopped_by,
            ", ".join(layer.consumers) or (layer.uncompensated and f"no: {layer.uncompensated}") or "no",
        ]
        for layer in plan.layers
    ]  # fmt: skip
    told = []
    if seen := plan.calibration:
        told.append(
            f"Fitted on {seen['crops']} crops and {seen['held_out']} held-out inputs from {seen['photographs']} photographs"
        )
    if plan.verified_psnr is not None:
        told.append(f"{plan.verified_psnr:.1f} dB on the worst verification image")
    if plan.weights:
        told.append(f"{plan.uncompensated_psnr:.1f} dB with the original weights")
    columns = [
        "layer",
        Column("rank"),
        Column("gain", "g"),
        Column("residual", "g"),
        Column("strength", ".3f"),
        "stopped by",
        "re-solved for it",
    ]
    tables = [Table(columns, rows, intro="; ".join(told) + ("." if told else ""))]
    if plan.ranking:
        ranked = [
            [
                one.name,
                one.rank,
                one.gain,
                one.strength,
                None if one.cost is None else 100 * one.cost,
                "yes" if one.compensated else "no",
                "yes" if one.chosen else "",
            ]
            for place, one in enumerate(plan.ranking)
            if place < _CANDIDATES or one.chosen
        ]
        more = len(plan.ranking) - len(ranked)
        tables.append(
            Table(
                [
                    "candidate",
                    Column("rank"),
                    Column("gain", "g"),
                    Column("strength", ".3f"),
                    Column("cost", ".1f", "%"),
                    "compensated",
                    "chosen",
                ],
                ranked,
                intro="What each candidate could carry alone. Cost: multiply-adds of node and inverse, of those of the model.",
                outro=f"{more} more are in the report's JSON." if more else "",
            )
        )
    return tables
