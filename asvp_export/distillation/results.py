"""The results of an audit: rows, requirements, and a verdict in words that follow the numbers."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

from asvp_export.distillation.arms import OUTPUTS, Arm
from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.runner import Findings, ModelScores
from asvp_export.distillation.training import Budget
from asvp_export.environment import environment, tool_version
from asvp_export.errors import InputError
from asvp_export.insertion.feature_maps import FeatureMaps
from asvp_export.operator import Perturbation

NO_EFFECT, ONE_SEED = "no effect", "one seed: not tested"

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_REQUIREMENT = re.compile(r"\s*(?P<metric>[^<>=\s]+)\s*(?P<comparison>>=|<=|>|<)\s*(?P<limit>-?[0-9.]+)\s*")
_DROPS = {
    "feature_kd_drop": "shipped/mse-1",
    "normalised_kd_drop": "shipped/normalised-10",
    "output_kd_drop": "shipped/outputs",
}
_LOSSES = {
    "mse": "the features by a plain MSE",
    "normalised": "normalised features by an MSE",
    "attention": "attention maps",
    "affinity": "affinities",
}
_TEACHERS = {
    "original": "the original",
    "shipped": "the shipped model",
    "scaled": "clean features times a scalar",
    "noise": "clean features and noise",
}
_TAPS = {
    "before": ", read before the node",
    "readers": ", read behind the inverse",
    "next": ", read behind the next layer",
}


def title(arm: Arm) -> str:
    """What the student of a row learns from, in words."""
    if arm.teacher == "truth":
        return "clean pictures, no teacher"
    teacher = _TEACHERS[arm.teacher]
    if arm.loss == OUTPUTS:
        return f"{teacher}: its outputs alone"
    imitated = f"{_LOSSES[arm.loss]}, weight {arm.weight:g}{_TAPS.get(arm.tap, '')}"
    schedule = "first, then its outputs" if arm.first else "beside its outputs"
    attack = f"; {attacks()[arm.attack].title}" if arm.attack else ""
    return f"{teacher}: {imitated}, {schedule}{attack}"


@dataclass(frozen=True)
class Row:
    """One kind of student; dB are of PSNR on the test pictures against clean ones, means over pictures and seeds."""

    arm: Arm
    psnr: float
    ssim: float

    to_teacher: float
    """dB against the original teacher's outputs."""

    select: float
    """dB on the pictures that attackers choose by."""

    by_seed: tuple[float, ...]
    """dB of each seed."""

    spread: float | None
    """Standard deviation over seeds; None for one."""

    baseline: str = ""
    """Name of the row that it is compared with."""

    loss: float | None = None
    """dB less than the baseline, mean over seeds; negative: it is better."""

    p: float | None = None
    """Of a paired t-test over seeds, two-sided; None for fewer than three."""

    effect: str = ""
    """In words: "no effect" where the loss is within the spread of the two rows."""

    diverged: int = 0
    """How many of the students put out NaN or infinity, which is scored as black."""

    curve: tuple[tuple[int, float], ...] = ()
    """Step and `select` of the first seed."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {key: _rounded(value) for key, value in asdict(self).items() if key != "arm"}
        return {"name": str(self.arm), "title": title(self.arm), **values}


@dataclass(frozen=True)
class Requirement:
    """Something that a build asks of an audit."""

    text: str
    """As it was given."""

    value: float | None
    """dB that were measured; None where its row was not run."""

    passed: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON, where the value is called "found"."""
        return {"text": self.text, "found": self.value, "passed": self.passed}


@dataclass(frozen=True, eq=False)
class AuditResult:
    """The audit of one model."""

    model: str
    source_sha256: str
    file: str
    """Name of the shipped file; "" where the model was protected in memory."""

    nodes: Mapping[str, Perturbation]
    task: str
    model_scores: ModelScores
    """"own" in JSON."""

    rows: tuple[Row, ...]
    unavailable: Mapping[str, str]
    """Name of a row to why this model does not allow it."""

    seeds: tuple[int, ...]
    budget: Budget
    student: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """As in `Findings`."""

    feature_maps: Mapping[str, FeatureMaps | None] = field(default_factory=dict)
    """As in `Findings`."""

    requirements: tuple[Requirement, ...] = ()
    """"bars" in JSON."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """The reports that were written, by what they are."""

    @property
    def passed(self) -> bool:
        """Whether every requirement is met."""
        return all(requirement.passed for requirement in self.requirements)

    @cached_property
    def by_name(self) -> dict[str, Row]:
        """The rows by name."""
        return {str(row.arm): row for row in self.rows}

    @property
    def best(self) -> dict[str, Row]:
        """The best student of the original and of the shipped model, each chosen on the pictures for choosing."""
        clean = [row for row in self.rows if row.arm.teacher in ("truth", "original")]
        of_attackers = [row for row in self.rows if row.arm.teacher in ("truth", "shipped")]
        return {
            name: max(rows, key=lambda row: row.select)
            for name, rows in (("original", clean), ("shipped", of_attackers))
        }

    @property
    def metrics(self) -> dict[str, float | None]:
        """What requirements are about: dB of loss, of a row or under a name of its own."""
        rows = self.by_name
        metrics: dict[str, float | None] = {name: row.loss for name, row in rows.items() if row.loss is not None}
        metrics |= {name: rows[row].loss if row in rows else None for name, row in _DROPS.items()}
        metrics["best_attacker_drop"] = self.best["original"].psnr - self.best["shipped"].psnr
        metrics["own_loss"] = self.model_scores.loss
        metrics["preservation"] = self.model_scores.worst_preservation
        return metrics

    def sentences(self) -> list[str]:
        """The verdict in plain words."""
        return _sentences(self)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        best, scores = self.best, asdict(self.model_scores) | {"loss": self.model_scores.loss}
        return {
            "passed": self.passed,
            "tool_version": tool_version(),
            "model": self.model,
            "source_sha256": self.source_sha256,
            "file": self.file,
            "task": self.task,
            "layers": [{"name": name, **node.described()} for name, node in self.nodes.items()],
            "own": {key: _rounded(value) for key, value in scores.items()},
            "verdict": self.sentences(),
            "best": {name: str(row.arm) for name, row in best.items()},
            "metrics": {name: _rounded(value) for name, value in self.metrics.items() if name not in self.by_name},
            "rows": [row.as_dict() for row in self.rows],
            "unavailable": dict(self.unavailable),
            "seeds": list(self.seeds),
            "budget": asdict(self.budget),
            "student": self.student,
            "bars": [requirement.as_dict() for requirement in self.requirements],
            "environment": environment(),
        }


def summarise(findings: Findings) -> tuple[Row, ...]:
    """Means, spreads and losses of all rows, in their order."""
    plain = {str(arm): _row(arm, scores) for arm, scores in findings.scores.items()}
    rows = []
    for row in plain.values():
        base = plain.get(str(row.arm.baseline)) if row.arm.baseline else None
        rows.append(_compared(row, base) if base else row)
    return tuple(rows)


def _row(arm: Arm, scores: Sequence[Mapping[str, Any]]) -> Row:
    by_seed = tuple(student["psnr"] for student in scores)
    psnr, ssim, to_teacher, select = (
        float(np.mean([student[key] for student in scores])) for key in ("psnr", "ssim", "to_teacher", "select")
    )
    spread = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    curve = tuple((int(step), float(value)) for step, value in scores[0]["curve"])
    diverged = sum(bool(student["diverged"]) for student in scores)
    return Row(arm, psnr, ssim, to_teacher, select, by_seed, spread, curve=curve, diverged=diverged)


def _compared(row: Row, base: Row) -> Row:
    differences = np.subtract(base.by_seed, row.by_seed)
    loss = float(differences.mean())
    p = None
    if len(differences) > 2:
        p = float(ttest_rel(base.by_seed, row.by_seed).pvalue) if np.ptp(differences) else float(loss == 0)
    if row.spread is None or base.spread is None:
        effect = ONE_SEED
    elif abs(loss) <= max(row.spread, base.spread):
        effect = NO_EFFECT
    else:
        effect = f"loses {loss:.2f} dB" if loss > 0 else f"gains {-loss:.2f} dB"
    if row.diverged:
        effect += f"; {row.diverged} of {len(row.by_seed)} diverged"
    return replace(row, baseline=str(base.arm), loss=loss, p=p, effect=effect)


def evaluate_requirements(metrics: Mapping[str, float | None], requirements: Sequence[str]) -> tuple[Requirement, ...]:
    """Hold an audit's numbers against what a build asks for.

    Args:
        metrics: of `AuditResult.metrics`.
        requirements: such as "feature_kd_drop>=1.0"; the names are those of the metrics, rows included.
    """
    evaluated = []
    for text in requirements:
        metric, compare, limit = _parsed(text)
        value = metrics.get(str(Arm.parse(metric)) if "/" in metric else metric)
        if value is None:
            evaluated.append(Requirement(text, None, False))
        else:
            evaluated.append(Requirement(text, round(value, 2), compare(value, limit)))
    return tuple(evaluated)


def check_requirements(requirements: Sequence[str], rows: Collection[Arm] | None = None) -> None:
    """Refuse a requirement that cannot be read or names nothing, before the long work.

    Args:
        requirements: as for `evaluate_requirements`.
        rows: that are to be run; None: not known yet.

    Raises:
        InputError: there is one.
    """
    names = (*_DROPS, "best_attacker_drop", "own_loss", "preservation")
    for text in requirements:
        metric = _parsed(text)[0]
        if metric not in names and "/" not in metric:
            raise InputError(
                f"The requirement {text!r} is about {metric!r}; {', '.join(names)} or the name of a row was expected."
            )
        row = Arm.parse(_DROPS.get(metric, metric)) if metric in _DROPS or "/" in metric else None
        if row and not row.baseline:
            raise InputError(
                f"The requirement {text!r} is about a row that others are compared with, which has no loss. Name "
                "another row."
            )
        if row and rows is not None and row not in rows:
            raise InputError(f"The requirement {text!r} is about the row {row}, which is not run; add --rows {row}.")


def _parsed(text: str) -> tuple[str, Any, float]:
    parts = _REQUIREMENT.fullmatch(text)
    try:
        if parts:
            return parts["metric"], _COMPARISONS[parts["comparison"]], float(parts["limit"])
    except ValueError:
        pass
    raise InputError(
        f"The requirement {text!r} cannot be read; a requirement such as 'feature_kd_drop>=1.0' was expected."
    )


def _sentences(result: AuditResult) -> list[str]:
    scores = result.model_scores
    return [
        f"The shipped model keeps {scores.worst_preservation:.1f} dB to the original on the worst test picture, and "
        + ("loses" if scores.loss >= 0 else "gains")
        + f" {abs(scores.loss):.2f} dB against ground truth.",
        *_about(result, "shipped/outputs", "A student of the outputs alone"),
        *_about(result, "shipped/mse-1", "A student that imitates the features as they are (MSE, weight 1)"),
        *_about(result, "scaled/mse-1", "A plain scalar of the same size, the control,", "one that imitates them so"),
        *_about(result, "shipped/normalised-10", "A student that normalises the features (weight 10)"),
        _about_the_best(result),
    ]


def _about_the_best(result: AuditResult) -> str:
    best = result.best
    loss = best["original"].psnr - best["shipped"].psnr
    spread = max(best["original"].spread or 0.0, best["shipped"].spread or 0.0)
    untested = best["shipped"].spread is None
    outcome = f"loses {loss:.2f} dB" if loss > spread else "loses nothing beyond the spread of the seeds"
    if untested and loss <= 0:
        outcome = "loses nothing"
    subject = "The best student of the shipped model"
    if best["shipped"].arm.teacher == "truth":
        subject = "The best attackers do without the shipped model: their student of clean pictures"
    return f"{subject} ({best['shipped'].arm}) {outcome} beside the best of the original ({best['original'].arm})" + (
        " (one seed, not tested)." if untested else "."
    )


def _about(result: AuditResult, name: str, subject: str, whom: str = "") -> list[str]:
    row = result.by_name.get(name)
    if row is None or row.loss is None:
        return []
    if whom:
        outcome = f"costs {whom} nothing beyond the spread of its seeds"
        if row.effect != NO_EFFECT:
            outcome = f"costs {whom} {row.loss:.2f} dB" if row.loss > 0 else f"helps {whom} by {-row.loss:.2f} dB"
    elif row.effect == NO_EFFECT:
        outcome = "loses nothing beyond the spread of its seeds"
    else:
        outcome = f"loses {row.loss:.2f} dB" if row.loss > 0 else f"gains {-row.loss:.2f} dB"
    return [f"{subject} {outcome}" + (" (one seed, not tested)." if row.effect == ONE_SEED else ".")]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
