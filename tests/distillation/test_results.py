"""The verdict of an audit: effects beyond the spread of the seeds, requirements, sentences."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from asvp_export.distillation.arms import Arm
from asvp_export.distillation.results import (
    NO_EFFECT,
    ONE_SEED,
    Row,
    check_requirements,
    evaluate_requirements,
    summarise,
)
from asvp_export.errors import InputError
from tests.helpers.audits import audited


def found(**scores: list[float]):
    """Findings in which each row scored the same on all pictures."""
    from asvp_export.distillation.runner import Findings, ModelScores

    made = {
        Arm.parse(name): [
            {"psnr": one, "ssim": 0.9, "to_teacher": one, "select": one, "curve": [[1, one]], "diverged": one < 10}
            for one in values
        ]
        for name, values in scores.items()
    }
    return Findings(made, {}, ModelScores(30.0, 0.9, 29.95, 0.9, 48.5, 50.0))


def rows_of(**scores: list[float]) -> dict[str, Row]:
    return {str(row.arm): row for row in summarise(found(**scores))}


def test_a_loss_within_the_spread_of_the_seeds_is_no_effect():
    base = [30.0, 30.2, 29.8]
    rows = rows_of(
        **{"original/mse-1": base, "shipped/mse-1": [29.9, 30.1, 29.7], "shipped+undo/mse-1": [26.0, 26.2, 25.8]}
    )
    assert rows["shipped/mse-1"].effect == NO_EFFECT and rows["shipped/mse-1"].loss == pytest.approx(0.1)
    assert (
        rows["shipped+undo/mse-1"].effect == "loses 4.00 dB" and rows["shipped+undo/mse-1"].baseline == "original/mse-1"
    )
    better = rows_of(**{"original/mse-1": base, "shipped/mse-1": [one + 1 for one in base]})["shipped/mse-1"]
    assert better.effect == "gains 1.00 dB"
    noisy = rows_of(**{"original/mse-1": base, "shipped/mse-1": [28.9, 30.1, 28.2]})["shipped/mse-1"]
    assert noisy.p == pytest.approx(1 - 2.1167 / (2.1167**2 + 2) ** 0.5, abs=1e-4)  # t of two degrees of freedom
    assert rows_of(**{"original/mse-1": [30.0], "shipped/mse-1": [20.0]})["shipped/mse-1"].effect == ONE_SEED
    lost = rows_of(**{"original/mse-1": base, "shipped/mse-1": [29.0, 6.0, 29.0]})["shipped/mse-1"]
    assert lost.effect.endswith("; 1 of 3 diverged")


def test_requirements_are_held_against_the_numbers():
    metrics = {"feature_kd_drop": 1.4, "shipped/mse-10": 0.2, "best_attacker_drop": None}
    held = evaluate_requirements(metrics, ["feature_kd_drop>=1.0", "shipped/mse-10 > 0.5", "best_attacker_drop>=0"])
    assert [each.passed for each in held] == [True, False, False] and held[2].value is None
    for text, sentence in (
        ("feature_kd_drop", "cannot be read"),
        ("speed>=1", "or the name of a row was expected"),
        ("shipped/zzz>=1", "cannot|names"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_requirements([text])


def test_the_verdict_follows_the_numbers(protected, clean, tmp_path):
    result = audited(protected, clean, tmp_path, rows=["shipped/outputs", "shipped/mse-1", "scaled/mse-1"], seeds=2)
    rows = [
        replace(row, loss=4.2, effect="loses 4.20 dB") if str(row.arm) == "shipped/mse-1" else row
        for row in result.rows
    ]
    rows = [replace(row, loss=0.01, effect=NO_EFFECT) if str(row.arm) == "shipped/outputs" else row for row in rows]
    rows = [replace(row, loss=4.1, effect="loses 4.10 dB") if str(row.arm) == "scaled/mse-1" else row for row in rows]
    told = " ".join(replace(result, rows=tuple(rows)).sentences())
    assert "outputs alone loses nothing beyond the spread" in told
    assert "(MSE, weight 1) loses 4.20 dB" in told and "the control, costs one that imitates them so 4.10 dB" in told
    best = max((row for row in rows if row.arm.teacher in ("truth", "shipped")), key=lambda row: row.select)
    assert result.best["shipped"].arm == best.arm
    assert json.loads(json.dumps(result.as_dict()))["budget"]["steps"] == 2
