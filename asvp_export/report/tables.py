"""Tables for the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asvp_export.assumptions import Assumption
from asvp_export.console import printable, stdout, width
from asvp_export.onnx_graph.metadata import MOST_DB
from asvp_export.parity.result import ParityResult
from asvp_export.parity.verify import GateResult, failure_text
from asvp_export.selection.survey import ListedLayers
from asvp_export.signature import NCHW, shape_text
from asvp_export.teacher.model import Teacher

if TYPE_CHECKING:
    from asvp_export.insertion.plan import Plan
    from asvp_export.parity.removal import RemovalTest

_CANDIDATES = 8  # of the ranking, in the terminal


def layers_as_dict(listed: ListedLayers) -> dict[str, object]:
    """The teacher, the layers that can carry the node, and why the others cannot, for JSON."""
    layers = [asdict(layer) for layer in listed.layers]
    return {"teacher": _described(listed.teacher), "layers": layers, "refused": dict(listed.refused)}


def _described(teacher: Teacher) -> dict[str, object]:
    signature = teacher.signature
    return {
        "source": teacher.source,
        "format": teacher.format,
        "architecture": teacher.architecture.name if teacher.architecture else None,
        "inputs": list(signature.names),
        "image": signature.image_name,
        "channels": signature.channels,
        "outputs": list(signature.outputs),
        "main_output": signature.outputs[signature.main],
        "assumptions": [assumption.as_dict() for assumption in teacher.assumptions],
    }


def _teacher_lines(teacher: Teacher) -> list[str]:
    """What the teacher is, and what was concluded of it."""
    signature = teacher.signature
    architecture = f", {teacher.architecture.name}" if teacher.architecture else ""
    frames = f"{signature.frames} frames of " if signature.frames else ""
    other_inputs = [name for name in signature.names if name != signature.image_name]
    lines = [
        f"{teacher.source} ({teacher.format}{architecture})",
        f"input: {signature.image_name}, {frames}{signature.channels} channel(s)"
        + (f"; beside it {', '.join(other_inputs)}" if other_inputs else ""),
        f"output: {', '.join(signature.outputs)}",
    ]
    return lines + [("" if assumption.certain else "assumed, ") + str(assumption) for assumption in teacher.assumptions]


def layers_table(listed: ListedLayers) -> None:
    """Print what the teacher is, the layers that can carry the node, then the others by the reason why they cannot."""
    console = terminal()
    for line in _teacher_lines(listed.teacher):
        console.print(line, soft_wrap=True)
    console.print()
    table = bare_table("layer", "type", "output", "axis", "s1", "rank", "ms", "node ms")
    for layer in listed.layers:
        calls = f" (x{layer.calls})" if layer.calls > 1 else ""
        table.add_row(
            layer.name,
            layer.type + calls,
            shape_text(layer.shape[1:]),
            str(layer.axis),
            f"{layer.leading_share:.3f}",
            f"{layer.effective_rank:.1f}",
            f"{layer.layer_ms:.2f}",
            f"{layer.node_ms:.2f}",
        )
    console.print(table)
    console.print(
        "output: of the first call, without the batch; s1: share of the squared singular values that the first one "
        "holds; rank: the effective rank; ms, node ms: of the layer and of the node, in PyTorch, here, at this size.",
        style="dim",
    )
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in listed.refused.items():
        names[reason].append(name)
    for reason, refused in names.items():
        shown = ", ".join(refused[:3]) + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")
        console.print(f"no node: {shown}: {reason}", style="dim")


def result_table(result: ParityResult, file: Path) -> None:
    """Print the verdict of an export or a check: layers, gates, latency, and where the files lie, by what they are."""
    console = terminal()
    if result.nodes:
        table = bare_table(
            "layer", "rank", "gain", "residual", "energy", "axis", "feature change", "strength", "at most"
        )
        for name, node in result.nodes.items():
            effect = result.effects.get(name)
            shares = (effect.relative_feature_change, effect.strength, effect.strength_cap) if effect else ()
            row = [
                name,
                str(node.rank),
                f"{node.gain:g}",
                f"{node.residual_gain:g}",
                f"{node.energy:g}",
                str(node.axis),
            ]
            table.add_row(*row, *(f"{share:.4f}" for share in shares))
        console.print(table)
    gates = bare_table("gate", "worst", "mean", "worst SSIM", "needed", "by", "")
    for name, gate in result.gates.items():
        *scores, verdict = _gate_row(gate)
        gates.add_row(name, *scores, ", ".join(result.execution_paths), verdict)
    console.print(gates)
    original, protected = result.latency_ms
    console.print(
        f"latency in onnxruntime, by the {result.execution_paths[-1]}: {protected:.1f} ms, unprotected {original:.1f} "
        f"ms (x {protected / original:.2f})"
    )
    if result.comparison:
        console.print(f"compared: {result.comparison}")
    if result.plan:
        _print_plan(console, result.plan)
    if result.removal_tests:
        console.print(_removal_tests(result.removal_tests))
    for note in result.notes:
        console.print(note)
    shown = str(file)
    console.print(verdict_text(result.passed, bold=True), end="  ")
    has_file = result.passed or result.output
    console.print(shown if has_file else f"nothing was written to {shown}", soft_wrap=True)
    for kind, path in result.files.items():
        console.print(f"{kind}  {path}", soft_wrap=True)


def failure_lines(result: ParityResult) -> list[str]:
    """What a user has to know of the gates that failed."""
    lines = [failure_text(name, gate) for name, gate in result.gates.items() if not gate.passed]
    if result.fitting_gain:
        taken_back = any(node.inverse for node in result.nodes.values())
        advice = (
            " Or accept a lower --min-psnr, or leave --residual gain out: the outputs then stay the original's at "
            "any gain."
        )
        lines.append(f"At these layers, about --gain {result.fitting_gain:g} would pass.{'' if taken_back else advice}")
    return lines


def plan_table(plan: Plan, files: Mapping[str, Path]) -> None:
    """Print a plan, and where it was written."""
    console = terminal()
    table = bare_table("layer", "rank", "gain", "residual", "energy", "axis", "strength")
    for layer in plan.layers:
        node, strength = layer.node, layer.strength
        row = [str(node.rank), f"{node.gain:g}", f"{node.residual_gain:g}", f"{node.energy:g}", str(node.axis)]
        table.add_row(layer.name, *row, "" if strength is None else f"{strength:.4f}")
    console.print(table)
    _print_plan(console, plan)
    for kind, path in files.items():
        console.print(f"{kind}  {path}", soft_wrap=True)


def _print_plan(console: Console, plan: Plan) -> None:
    """What stopped the layers, and what compensation brought; the ranking, where there was one."""
    stopped: dict[str, list[str]] = defaultdict(list)
    for layer in plan.layers:
        reason = f"; not compensated: {layer.uncompensated}" if layer.uncompensated else ""
        stopped[f"{layer.stopped_by}{reason}"].append(layer.name)
    for reason, names in stopped.items():
        console.print(f"{', '.join(names)}: stopped by {reason}")
    if plan.weights:
        console.print(
            f"compensated ({plan.compensate}): {plan.verified_psnr:.1f} dB on the worst verification image, "
            f"{plan.uncompensated_psnr:.1f} dB with the original weights"
        )
    if plan.ranking:
        table = bare_table("candidate", "rank", "gain", "strength", "cost", "value", "compensated", "chosen")
        shown = [candidate for index, candidate in enumerate(plan.ranking) if index < _CANDIDATES or candidate.chosen]
        for candidate in shown:
            cost = "" if candidate.cost is None else f"{100 * candidate.cost:.1f} %"
            row = [candidate.name, str(candidate.rank), f"{candidate.gain:g}", f"{candidate.strength:.4f}", cost]
            row.append("" if candidate.value is None else f"{candidate.value:.4f}")
            table.add_row(*row, "yes" if candidate.compensated else "no", "yes" if candidate.chosen else "")
        console.print(table)
        if len(plan.ranking) > len(shown):
            console.print(f"and {len(plan.ranking) - len(shown)} more in the plan", style="dim")


def _removal_tests(tests: Sequence[RemovalTest]) -> Table:
    """What is left when the nodes are taken out, in dB."""
    with_truth = tests[0].truth_min_psnr is not None
    table = bare_table(
        "removal test", "worst", "mean", *(("worst, truth", "mean, truth", "lost") if with_truth else ())
    )
    for test in tests:
        values = [test.min_psnr, test.mean_psnr]
        values += [test.truth_min_psnr, test.truth_mean_psnr, test.loss] if with_truth else []
        table.add_row(test.name, *(f"{value:z.2f} dB" for value in values))
    return table


def description_table(description: Mapping[str, Any]) -> None:
    """Print what `describe` found in a file."""
    console = terminal()
    opsets = ", ".join(f"{domain} {version}" for domain, version in description["opset"].items())
    console.print(description["file"], style="bold", end="")
    console.print(f"  {description['bytes']} bytes, IR {description['ir_version']}, opset {opsets}")
    for kind in ("inputs", "outputs"):
        for name, shape in description[kind].items():
            console.print(f"{kind[:-1]}: {name} {' x '.join(map(str, shape))}")
    if description["nodes"]:
        table = bare_table("node", "rank", "gain", "residual", "energy", "axis")
        for node in description["nodes"]:
            row = [str(node["rank"]), *(f"{node[key]:g}" for key in ("gain", "residual", "energy")), str(node["axis"])]
            table.add_row(node["name"], *row)
        console.print(table)
    else:
        console.print("no ASVP node")
    for name, size in description["functions"].items():
        console.print(f"function body: {name}, {size} nodes")
    provenance = description["provenance"]
    if provenance is None:
        console.print("no asvp metadata")
        return
    rule, values = provenance["size"], provenance["data_range"]
    size = f"at least {rule['minimum']}, multiples of {rule['multiple']}{', square' if rule['square'] else ''}"
    console.print(
        f"made by asvp-export {provenance['version']} from sha256 {provenance['source_sha256']}",
        soft_wrap=True,
    )
    console.print(
        f"height and width: {size}; scale x{provenance['scale']:g}; values {values['low']:g}..{values['high']:g}"
    )
    if provenance["layout"] != NCHW:
        console.print("layout: N,H,W,C (channels last)")
    if provenance["portable"]:
        console.print("portable: the operator's body is inlined in the graph; no native kernel takes its place")
    for assumption in provenance["assumptions"]:
        console.print(("" if assumption["certain"] else "assumed, ") + str(Assumption(**assumption)), soft_wrap=True)
    console.print(f"scope: {provenance['scope']} (a tiled run differs from a run on the whole image)")
    for gate, values in provenance["gates"].items():
        more = " or more" if values["min_psnr"] == MOST_DB else ""
        console.print(f"{gate}: {values['min_psnr']} dB{more} measured, {values['threshold']:g} dB needed")


def _gate_row(gate: GateResult) -> list[str | Text]:
    values = gate.as_dict()
    worst, mean, ssim = (values[key] for key in ("min_psnr", "mean_psnr", "min_ssim"))
    verdict = verdict_text(gate.passed)
    shown = [f"{value:.2f} dB" if value is not None else "NaN" for value in (worst, mean)]
    return [*shown, f"{ssim:.5f}" if ssim is not None else "NaN", f"{gate.threshold:g} dB", verdict]


def verdict_text(passed: bool, *, bold: bool = False) -> Text:
    """The word, in its colour."""
    style = ("bold " if bold else "") + ("green" if passed else "red")
    return Text("passed" if passed else "failed", style)


class _Plain(Console):
    """A console that takes every text as it is: no markup, no emoji, nothing that a terminal obeys."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich."""
        return super().render_str(printable(text), **options)


def terminal() -> Console:
    """As wide as the terminal; where there is none (a pipe, a log), wide enough not to break names."""
    out = stdout()
    return _Plain(file=out, width=width(out) if out.isatty() else 160, highlight=False, markup=False, emoji=False)


def bare_table(*columns: str) -> Table:
    """A table without lines; the first column is never broken."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    return table
