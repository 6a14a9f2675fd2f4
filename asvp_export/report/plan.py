"""A plan as tables of the page."""

from __future__ import annotations

from asvp_export.insertion.plan import Plan
from asvp_export.report.render import Column, Table

_CANDIDATES = 12  # that are shown


def plan_tables(plan: Plan) -> list[Table]:
    """What each layer got and what stopped it; and the ranking, where the layers were chosen."""
    return [_layers(plan), _ranking(plan)] if plan.ranking else [_layers(plan)]


def _layers(plan: Plan) -> Table:
    columns = [
        "layer",
        Column("rank"),
        Column("gain", "g"),
        Column("residual", "g"),
        Column("strength", ".3f"),
        "stopped by",
        "re-solved for it",
    ]
    rows = [
        [
            layer.name,
            layer.node.rank,
            layer.node.gain,
            layer.node.residual_gain,
            layer.strength,
            layer.stopped_by,
            ", ".join(layer.consumers) or (layer.uncompensated and f"no: {layer.uncompensated}") or "no",
        ]
        for layer in plan.layers
    ]
    results = []
    if counts := plan.calibration:
        results.append(
            f"Fitted on {counts['crops']} crops and {counts['held_out']} held-out inputs "
            f"from {counts['photographs']} photographs"
        )
    if plan.verified_psnr is not None:
        results.append(f"{plan.verified_psnr:.1f} dB on the worst verification image")
    if plan.weights:
        results.append(f"{plan.uncompensated_psnr:.1f} dB with the original weights")
    return Table(columns, rows, intro="; ".join(results) + ("." if results else ""))


def _ranking(plan: Plan) -> Table:
    columns = [
        "candidate",
        Column("rank"),
        Column("gain", "g"),
        Column("strength", ".3f"),
        Column("cost", ".1f", "%"),
        "compensated",
        "chosen",
    ]
    rows = [
        [
            layer.name,
            layer.rank,
            layer.gain,
            layer.strength,
            None if layer.cost is None else 100 * layer.cost,
            "yes" if layer.compensated else "no",
            "yes" if layer.chosen else "",
        ]
        for index, layer in enumerate(plan.ranking)
        if index < _CANDIDATES or layer.chosen
    ]
    more = len(plan.ranking) - len(rows)
    return Table(
        columns,
        rows,
        intro="What each candidate could carry alone. Cost: multiply-adds of node and inverse, as part of the model's.",
        outro=f"{more} more are in the report's JSON." if more else "",
    )
