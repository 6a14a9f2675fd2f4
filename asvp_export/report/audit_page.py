"""An audit as one page to look at: what attackers lose, beside the pictures that the students make."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from asvp_export.distillation.results import AuditResult, Row, title
from asvp_export.environment import environment
from asvp_export.report.audit_table import ATTACKERS, BASELINES, CONTROLS, LOSS, SHIPPED, grouped
from asvp_export.report.charts import Series, difference_plot, line_chart, round_range
from asvp_export.report.feature_maps import layer_maps, without_grid
from asvp_export.report.pictures import Picture, encoded, factor_for
from asvp_export.report.render import Column, Table, render_within

_PICTURE_BYTES = 3_500_000  # of all pictures, in base64
_LEAST_END = 0.5  # dB that the axis of the losses reaches to either side: less is not made to look like much
_DEEPEST = 15.0  # dB under the best that learning curves are drawn
_GROUPS = {
    BASELINES: "What the others are compared with; the best first.",
    SHIPPED: "Students of the model that ships, its features taken as they come; the largest loss first.",
    CONTROLS: "Clean features, changed as much as the shipped ones by a scalar or noise. What these lose is not due to "
    "the node.",
    ATTACKERS: "Students of attackers who know the defence and act against it; the last loses least.",
}
_MODELS = {
    "clean": ("Clean", "the truth"),
    "input": ("Input", "what the models are given"),
    "teacher": ("Teacher", "the original's output"),
    "protected": ("Protected", "the shipped model's output"),
}
_TAUGHT_BY = ("original", "shipped")
_CURVES = {
    "Outputs alone": "outputs",
    "Features by a plain MSE, weight 1": "mse-1",
    "Normalised features, weight 10": "normalised-10",
}


@dataclass(frozen=True)
class _StudentPicture:
    """A student's picture."""

    name: str
    """Of the row."""

    title: str
    """The same in words."""

    score: str
    """Its PSNR."""

    picture: Picture
    """What the first seed's student makes of the input."""

    difference: Picture
    """To the clean picture, mean over the colours, times the factor."""

    @property
    def size(self) -> int:
        """Characters of both."""
        return len(self.picture.data) + len(self.difference.data)


def audit_page(result: AuditResult) -> str:
    """The page of an audit; under 5 MB, if need be with fewer pictures."""
    groups = grouped(result)
    models, student_pictures, factor = _pictures(result, [row for rows in groups.values() for row in rows])
    subject = result.file or result.model
    verdict = ("passed" if result.passed else "failed") if result.requirements else ""
    maps = result.feature_maps
    drawn = layer_maps(maps)
    return render_within(
        "audit.html",
        title=f"{subject}: audit{f' {verdict}' if verdict else ''}",
        dispensable={"maps": drawn},
        result=result,
        subject=subject,
        verdict=verdict,
        met=sum(requirement.passed for requirement in result.requirements),
        sentences=result.sentences(),
        requirements=_requirements(result),
        model_scores=_model_scores(result),
        nodes=_nodes(result),
        losses=list(_losses(result, groups)),
        tables={name: _rows(name, rows) for name, rows in groups.items()},
        unavailable=Table(["row", "why"], list(result.unavailable.items())),
        curves=list(_curves(result)),
        models=models,
        student_pictures=student_pictures,
        hidden=sum(name in result.by_name for name in result.pictures) - len(student_pictures),
        factor=factor,
        all_maps=len(drawn) + max(0, len(result.nodes) - len(maps)) if maps else 0,
        maps_without_grid=without_grid(maps),
        settings=_settings(result),
        facts=[(name, str(value)) for name, value in environment().items() if value is not None],
    )


def _requirements(result: AuditResult) -> Table:
    rows = [
        [requirement.text, requirement.value, "passed" if requirement.passed else "failed"]
        for requirement in result.requirements
    ]
    return Table(["asked for", Column("found", "z.2f", "dB"), "verdict"], rows)


def _model_scores(result: AuditResult) -> Table:
    scores = result.model_scores
    preservation = (Column(f"to the original, {which}", ".1f", "dB") for which in ("worst", "mean"))
    original = ["the original", scores.original_psnr, scores.original_ssim, None, None]
    shipped = ["the shipped model", scores.shipped_psnr, scores.shipped_ssim]
    return Table(
        ["model", Column("PSNR", ".2f", "dB"), Column("SSIM", ".4f"), *preservation],
        [original, [*shipped, scores.worst_preservation, scores.mean_preservation]],
        outro="On the test pictures. PSNR and SSIM are against the clean pictures.",
    )


def _nodes(result: AuditResult) -> Table:
    rows = [
        [name, node.rank, node.gain, node.residual_gain, node.energy, node.axis] for name, node in result.nodes.items()
    ]
    return Table(
        ["layer with a node", "rank", *(Column(head, "g") for head in ("gain", "residual", "energy")), "axis"], rows
    )


def _losses(result: AuditResult, groups: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, Markup]]:
    """A chart for each group of rows that are compared with others, all of the same axis."""
    compared = {name: [_by_seed(result, row) for row in rows if row.baseline] for name, rows in groups.items()}
    values = [
        value for rows in compared.values() for _, by_seed, chance in rows for value in (*by_seed, -chance, chance)
    ]
    values = [value for value in values if math.isfinite(value)] + [-_LEAST_END, _LEAST_END]
    border = (max(values) - min(values)) / 25
    ends = min(values) - border, max(values) + border
    for name, rows in compared.items():
        if rows:
            label = f"{name}: dB that each student loses beside its baseline, seed by seed"
            yield name, difference_plot(rows, ends=ends, title=label, unit="dB")


def _by_seed(result: AuditResult, row: Row) -> tuple[str, list[float], float]:
    base = result.by_name[row.baseline]
    losses = [before - after for before, after in zip(base.by_seed, row.by_seed, strict=True)]
    return str(row.arm), losses, max(row.spread or 0.0, base.spread or 0.0)


def _rows(group: str, rows: Sequence[Row]) -> Table:
    scores = [Column("PSNR", ".2f"), Column("spread", ".2f"), Column("SSIM", ".4f"), Column("to the teacher", ".2f")]
    columns: list[Column | str] = ["row", *scores]
    cells = [[str(row.arm), row.psnr, row.spread, row.ssim, row.to_teacher] for row in rows]
    if group != BASELINES:
        columns += [LOSS, "p", "effect"]
        cells = [[*cells_of_row, row.loss, _p(row), row.effect] for cells_of_row, row in zip(cells, rows, strict=True)]
    return Table(columns, cells, _GROUPS[group], details=[_detail(row) for row in rows])


def _detail(row: Row) -> str:
    return title(row.arm) + (f"; compared with {row.baseline}" if row.baseline else "")


def _p(row: Row) -> str | None:
    if row.p is None or math.isnan(row.p):
        return None
    return f"{row.p:.3f}" if row.p >= 0.001 else "<0.001"


def _curves(result: AuditResult) -> Iterator[tuple[str, Markup, str]]:
    """Learning curves of a few rows, the student without a teacher beside each, all of the same axes."""
    by_name, best = result.by_name, result.best
    pairs = {
        name: [(teacher, by_name[f"{teacher}/{row}"]) for teacher in _TAUGHT_BY if f"{teacher}/{row}" in by_name]
        for name, row in _CURVES.items()
    }
    pairs["The best of each"] = list(best.items())
    if "truth" in by_name:
        pairs = {name: [*rows, ("truth", by_name["truth"])] for name, rows in pairs.items() if rows}
    points = [point for rows in pairs.values() for _, row in rows for point in row.curve]
    if not points:
        return
    low, high = round_range([value for _, value in points])
    kinds = {"original": "original", "shipped": "protected", "truth": "difference"}
    for name, rows in pairs.items():
        series = [
            Series(teacher, kinds[teacher], [step for step, _ in row.curve], [value for _, value in row.curve])
            for teacher, row in rows
        ]
        chart = line_chart(
            series,
            title=f"{name}: PSNR over the steps of training",
            x_label="steps",
            y_label="PSNR, dB",
            most_x=max(step for step, _ in points),
            y_range=(max(low, high - _DEEPEST), high),
        )
        yield name, chart, ", ".join(str(row.arm) for teacher, row in rows if teacher != "truth")


def _pictures(
    result: AuditResult, rows: Sequence[Row]
) -> tuple[list[tuple[str, str, Picture]], list[_StudentPicture], int]:
    """Those of the models, those of the students while there is room, and by how much differences are multiplied."""
    opened = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in result.pictures.items()}
    models = [(*words, encoded(opened[name])) for name, words in _MODELS.items() if name in opened]
    students = [row for row in rows if str(row.arm) in opened]
    if "clean" not in opened or not students:
        return models, [], 1
    differences = [np.abs(opened[str(row.arm)] / 255 - opened["clean"] / 255) for row in students]
    factor = factor_for(np.stack(differences))
    shown, size = [], 0
    for row, difference in zip(students, differences, strict=True):
        grey = difference.mean(axis=2) if difference.ndim == 3 else difference
        drawn = np.rint(255 * np.clip(factor * grey, 0, 1)).astype(np.uint8)
        name, output = str(row.arm), encoded(opened[str(row.arm)])
        student = _StudentPicture(name, title(row.arm), f"{row.psnr:.2f} dB", output, encoded(drawn))
        size += student.size
        if size > _PICTURE_BYTES:
            break
        shown.append(student)
    return models, shown, factor


def _settings(result: AuditResult) -> list[tuple[str, str]]:
    budget = result.budget
    return [
        ("task", result.task),
        ("original", result.model),
        ("its SHA-256", result.source_sha256),
        ("shipped", result.file or "protected in memory"),
        ("student", result.student),
        ("seeds", ", ".join(map(str, result.seeds))),
        ("steps of each student", str(budget.steps)),
        ("patches a step", f"{budget.batch} of {budget.patches}"),
        ("largest learning rate", f"{budget.rate:g}"),
    ]
