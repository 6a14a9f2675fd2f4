"""The report as one page to look at: HTML with everything inside, which asks the network for nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from asvp_export.report.charts import Series, dot_plot, line_chart
from asvp_export.report.feature_maps import layer_maps, without_grid
from asvp_export.report.pictures import Pictures, draw, radial_power, visible
from asvp_export.report.render import Column, Table, render_within

if TYPE_CHECKING:
    from asvp_export.insertion.spectrum import SingularValues
    from asvp_export.parity.evidence import VisualSample
    from asvp_export.parity.result import ParityResult
    from asvp_export.parity.verify import GateResult, ImageScore

_PICTURE_BYTES = 3_000_000  # of all pictures; base64 makes 4 MB of them
_MOST_CHARTS, _MOST_SCORES = 24, 200
_GATES = {
    "fidelity": "the file against the protected model in PyTorch: the export is right",
    "preservation": "the file against the original: what its user loses",
    "tiled": "the file run tile by tile against the original on the whole image",
}


def page(result: ParityResult, *, plan: Sequence[Table] = (), removal_tests: Sequence[Table] = ()) -> str:
    """The report page; under 5 MB, if need be with fewer pictures.

    Args:
        result: of an export or a check; with `evidence` it has pictures, feature maps and singular values in it.
        plan: what was planned and what stopped each layer.
        removal_tests: what the file is worth once the nodes are taken out.
    """
    samples = list(result.evidence.samples) if result.evidence else []
    share = _PICTURE_BYTES // max(1, len(samples))
    views = [_view(sample, share) for sample in samples]
    maps = result.evidence.feature_maps if result.evidence else {}
    drawn = layer_maps(maps)
    content = {
        "result": result,
        "verdict": _verdict(result),
        "gates": _gates(result),
        "meanings": {name: _GATES[name] for name in result.gates},
        "dots": _dots(result),
        "layers": _layers(result) if result.nodes else None,
        "plan": plan,
        "removal_tests": removal_tests,
        "all_maps": len(drawn) + max(0, len(result.nodes) - len(maps)) if maps else 0,
        "maps_without_grid": without_grid(maps),
        "spectra": list(_spectra(result)),
        "more_spectra": max(0, len(result.evidence.singular_values) - _MOST_CHARTS) if result.evidence else 0,
        "scores": _scores(result.preservation),
        "latency": _latency(result),
        "assumptions": sorted(result.assumptions, key=lambda assumption: assumption.certain),
        "facts": _facts(result),
    }
    title = f"{_subject(result)}: {'passed' if result.passed else 'failed'}"
    shortened = {"maps": drawn, "views": views}
    return render_within("page.html", title=title, script="page.js", dispensable=shortened, **content)


def _subject(result: ParityResult) -> str:
    return result.output.name if result.output else f"The export of {result.model}"


def _decibels(value: object) -> str:
    return f"{value:.2f} dB" if isinstance(value, float) else "no number"


def _verdict(result: ParityResult) -> str:
    """The verdict in one sentence, dB rounded down."""
    preservation = result.preservation
    worst_psnr = _decibels(preservation.as_dict()["min_psnr"])
    count = len({(score.name, score.size) for score in preservation.per_image})
    worst = (
        f"the worst of {count} inputs is at {worst_psnr} against the original, {preservation.threshold:g} dB were "
        "needed"
    )
    if not preservation.passed:
        return f"{_subject(result)} does not preserve enough: {worst}."
    for name, gate in result.gates.items():
        if not gate.passed:
            psnr = _decibels(gate.as_dict()["min_psnr"])
            return f"{_subject(result)} fails the gate {name}: {psnr} found, {gate.threshold:g} dB needed."
    if not result.passed:
        return f"{_subject(result)} reaches its gates but fails: see the notes."
    return f"{_subject(result)} passes every gate: {worst}."


def _gates(result: ParityResult) -> Table:
    rows = []
    for name, gate in result.gates.items():
        values = gate.as_dict()
        shown: list[Any] = [values[key] for key in ("min_psnr", "mean_psnr", "min_ssim")]
        rows.append([name, *shown, gate.threshold, "passed" if gate.passed else "failed"])
    columns = ["gate", *(Column(head, ".2f", "dB") for head in ("worst", "mean")), Column("worst SSIM", ".5f")]
    return Table([*columns, Column("needed", "g", "dB"), "verdict"], rows)


def _dots(result: ParityResult) -> Markup:
    """Of the gates that a loss shows in; fidelity lies far above, and would press them together."""
    shown = {name: gate for name, gate in result.gates.items() if name != "fidelity"}
    rows = [(name, [score.psnr for score in gate.per_image], gate.threshold) for name, gate in shown.items()]
    return dot_plot(rows, title="PSNR of every comparison, and what each had to reach", unit="dB")


def _layers(result: ParityResult) -> Table:
    rows = []
    for name, node in result.nodes.items():
        effect = result.effects.get(name)
        shares = (effect.relative_feature_change, effect.strength, effect.strength_cap) if effect else (None,) * 3
        rows.append([name, node.rank, node.gain, node.residual_gain, node.energy, *shares])
    columns = ["layer", Column("rank"), Column("gain", "g", ""), Column("residual", "g"), Column("energy", "g")]
    shares = [Column(head, ".4f") for head in ("feature change", "strength", "at most")]
    return Table(
        [*columns, *shares],
        rows,
        outro="Gain: the factor in the exposed map; residual: the factor that is left for the layer's readers. Feature "
        "change: ||F' - F|| / ||F||, F the clean and F' the exposed feature map. Strength: what of it no "
        "rescaling takes back, 0 to 1; at most: what the strength tends to as the gain grows.",
    )


def _scores(gate: GateResult) -> Table:
    ranked = sorted(gate.per_image, key=lambda score: score.psnr if math.isfinite(score.psnr) else -math.inf)
    rows = [
        [score.name, score.size, score.batch, score.output, score.execution_path, *_psnr_and_ssim(score)]
        for score in ranked[:_MOST_SCORES]
    ]
    hidden = len(ranked) - len(rows)
    return Table(
        ["input", "size", Column("batch"), "output", "by", Column("PSNR", ".2f", "dB"), Column("SSIM", ".5f")],
        rows,
        outro=f"The {hidden} better ones are in the JSON report." if hidden else "",
    )


def _psnr_and_ssim(score: ImageScore) -> tuple[Any, Any]:
    values = score.as_dict()
    return values["psnr"], values["ssim"]


def _latency(result: ParityResult) -> dict[str, Any]:
    original, protected = result.latency_ms
    longest = max(original, protected) or 1.0
    bars = [("original", original), ("protected", protected)]
    return {
        "bars": [(name, f"{value:.1f} ms", round(300 * value / longest, 1)) for name, value in bars],
        "sentence": f"The protected file takes {protected / original:.2f} times as long: {protected:.1f} ms instead of "
        f"{original:.1f} ms, in onnxruntime, by the {result.execution_paths[-1]}, on the first input.",
    }


def _facts(result: ParityResult) -> list[tuple[str, str]]:
    data: Any = result.as_dict()
    facts = {"original": result.model, "its SHA-256": result.source_sha256}
    facts |= {"file": data["output"] or "not published", "SHA-256 as verified": result.output_sha256}
    facts |= {key: value for key, value in data["environment"].items() if isinstance(value, str | int)}
    return [(key, str(value)) for key, value in facts.items()]


def _spectra(result: ParityResult) -> Iterator[dict[str, Any]]:
    spectra = list(result.evidence.singular_values.items()) if result.evidence else []
    for name, values in spectra[:_MOST_CHARTS]:
        node = result.nodes[name]
        yield {
            "layer": name,
            "node": f"rank {node.rank}, gain {node.gain:g}, residual {node.residual_gain:g}",
            "chart": _scree(name, values),
            "caption": _shares(values),
        }


def _scree(name: str, values: SingularValues) -> Markup:
    numbers = range(1, len(values.before) + 1)
    series = [
        Series("before", "before", numbers, values.before, "circle"),
        Series("after", "after", numbers, values.after, "square"),
    ]
    return line_chart(
        series,
        title=f"Singular values of {name} before and after its node",
        x_label="number of the singular value",
        y_label="value",
        most_x=None,
        decades=8,
    )


def _shares(values: SingularValues) -> str:
    """How much of the feature map the first singular value is, before and after."""
    before, after = (np.square(np.array(singular_values)) for singular_values in (values.before, values.after))
    if not (np.isfinite(before).all() and np.isfinite(after).all() and before.sum() > 0 and after.sum() > 0):
        return "The feature map is zero or not finite."
    return (
        f"The first of {len(before)} goes from {_short(values.before[0])} to {_short(values.after[0])}; its share of "
        f"the squared values from {before[0] / before.sum():.1%} to {after[0] / after.sum():.1%}."
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def _view(sample: VisualSample, most_bytes: int) -> dict[str, Any]:
    """All that is said and shown of one visual sample."""
    drawn, score = draw(sample, most_bytes), sample.score
    shown = score.as_dict()
    similar = f", SSIM {shown['ssim']:.5f}" if shown["ssim"] is not None else ""
    return {
        "name": score.name,
        "score": f"{_decibels(shown['psnr'])}{similar}",
        "part": _part(sample, drawn),
        "pictures": drawn,
        "difference": _difference(sample, drawn),
        "worst": f"{drawn.least_ssim:.7g}",
        "power": _power(sample),
    }


def _part(sample: VisualSample, drawn: Pictures) -> str:
    score, picture = sample.score, drawn.original
    height, width = sample.output_size
    size = f"{width} x {height} pixels"
    if (picture.width, picture.height) != (width, height):
        top, left = drawn.offset
        shown = f"{picture.width} x {picture.height}"
        size = f"{shown} of {size}, from column {left} and row {top}, around the largest difference"
    channels = sample.original.shape[0]
    colours = {1: "grey", 3: ""}.get(channels, f"the first {3 if channels > 3 else 'one'} of {channels} channels")
    parts = [
        size,
        sample.part,
        colours,
        "nodes run by the library" if score.execution_path == "library" else "nodes run by the function body",
    ]
    return "; ".join(part for part in parts if part)


def _difference(sample: VisualSample, drawn: Pictures) -> str:
    if drawn.not_finite:
        return f"{drawn.not_finite} values of the file's output are not finite: magenta."
    difference = np.abs(sample.protected - sample.original)
    largest = 255 * float(difference.max())
    white = _short(255 / drawn.factor)
    return f"Black: none; white: {white} of 255 or more. The largest here is {_short(largest)} of 255."


def _power(sample: VisualSample) -> Markup:
    images = visible(sample.original), visible(sample.protected)
    if not all(np.isfinite(picture).all() for picture in images):
        return Markup("")
    kinds = {"original": images[0], "protected": images[1], "difference": images[1] - images[0]}
    series = [Series(name, name, *map(np.ndarray.tolist, radial_power(image))) for name, image in kinds.items()]
    return line_chart(
        series,
        title=f"Radial power spectrum of {sample.score.name}: original, protected and difference",
        x_label="cycles per pixel",
        y_label="power",
        most_x=0.5,
        decades=14,
    )
