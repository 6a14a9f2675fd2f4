"""What an audit shows to people: every row and the verdict, losses drawn where they lie, and text that stays text."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asvp_export.distillation.arms import Arm
from asvp_export.distillation.results import NO_EFFECT, ONE_SEED, AuditResult, Requirement, Row, title
from asvp_export.distillation.runner import ModelScores
from asvp_export.distillation.training import Budget
from asvp_export.operator import Perturbation
from asvp_export.report.audit_page import audit_page
from asvp_export.report.audit_table import audit_table
from asvp_export.report.charts import Series, line_chart, round_range
from tests.helpers.reading import Page, pixels, read

DASH = "\N{EN DASH}"
HOSTILE = '"><script>alert(1)</script><img src="http://x/y.png" onerror=alert(1)>{{ 7 * 7 }}[red]\udce9'
ATTACKED = "shipped+normalise/normalised-10"

# PSNR of each seed; the original's student above what is compared with it.
SCORES = {
    "truth": (28.10, 28.30, 28.20),
    "original/outputs": (28.40, 28.50, 28.60),
    "shipped/outputs": (28.42, 28.49, 28.60),
    "original/mse-1": (28.80, 28.90, 29.00),
    "shipped/mse-1": (24.10, 24.60, 24.20),
    "scaled/mse-1": (24.80, 24.90, 25.00),
    "original/normalised-10": (28.70, 28.80, 28.90),
    "shipped/normalised-10@before": (27.30, 27.50, 27.30),
    "original+normalise/normalised-10": (28.20, 28.30, 28.40),
    ATTACKED: (28.62, 28.75, 28.83),
}
BASES = {
    "shipped/outputs": "original/outputs",
    "shipped/mse-1": "original/mse-1",
    "scaled/mse-1": "original/mse-1",
    "shipped/normalised-10@before": "original/normalised-10",
    ATTACKED: "original+normalise/normalised-10",
}
EFFECTS = {
    "shipped/outputs": NO_EFFECT,
    "shipped/mse-1": "loses 4.60 dB",
    "scaled/mse-1": "loses 4.00 dB",
    "shipped/normalised-10@before": "loses 1.43 dB",
    ATTACKED: "gains 0.43 dB",
}
GROUPS = ["No teacher, and the original", "The shipped model as it is", "Controls", "Attackers who adapt"]


def rows(seeds: int) -> tuple[Row, ...]:
    found = []
    for name, scores in SCORES.items():
        some = scores[:seeds]
        mean, spread = float(np.mean(some)), float(np.std(some, ddof=1)) if seeds > 1 else None
        curve = tuple((step, mean - 900 / step) for step in (100, 300, 500))
        row = Row(Arm.parse(name), mean, 0.9012, mean + 2, mean - 1, some, spread, curve=curve)
        if name in BASES:
            loss = float(np.mean(SCORES[BASES[name]][:seeds])) - mean
            p, effect = (0.0004, EFFECTS[name]) if seeds > 1 else (None, ONE_SEED)
            row = replace(row, baseline=BASES[name], loss=loss, p=p, effect=effect)
        found.append(row)
    return tuple(found)


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def pictures(*channels: int) -> dict[str, bytes]:
    """Each student is off by the number of its row, in all pixels and colours."""
    clean = np.random.default_rng(0).integers(0, 200, (16, 20, *channels), np.uint8)
    found = {"clean": clean, "input": clean[:8, :10], "teacher": clean + 1, "protected": clean + 2}
    found |= {name: clean + i for i, name in enumerate(SCORES)}
    return {name: png(one) for name, one in found.items()}


@pytest.fixture(scope="module")
def result() -> AuditResult:
    return AuditResult(
        model="net.pt",
        source_sha256="ab" * 32,
        file="net.onnx",
        nodes={"body.3": Perturbation(2, 11.5)},
        task="derain",
        model_scores=ModelScores(31.234, 0.91, 31.20, 0.9, 48.76, 52.3),
        rows=rows(3),
        unavailable={"original/normalised-10@next": HOSTILE},
        seeds=(0, 1, 2),
        budget=Budget(),
        student="ours",
        pictures=pictures(3),
        requirements=(
            Requirement("feature_kd_drop>=1.0", 4.6, True),
            Requirement("preservation>=50", 48.76, False),
            Requirement("noise/mse-1>=1", None, False),
        ),
    )


def seen_of(result: AuditResult) -> Page:
    return read(audit_page(result).encode("utf-8", "replace").decode("utf-8"))


@pytest.fixture(scope="module")
def seen(result) -> Page:
    return seen_of(result)


def test_the_verdict_comes_first_and_every_row_is_there(result, seen):
    assert [tag for tag, _ in seen.tags if re.fullmatch("h[1-6]|li|table|svg|img", tag)][:2] == ["h1", "li"]
    assert "net.onnx meets 1 of 3 requirements." in seen.text("h1") and "Failed" in seen.text("span")
    assert [one for one in seen.texts["li"] if one.strip()] == result.sentences()
    assert seen.text("h2") == (
        "Requirements The models What the students lose All rows Learning curves Pictures Settings "
        "What this does not say"
    )
    heads = [one.strip() for one in seen.texts["th"] if one.strip()]
    assert {*SCORES, "body.3", *(each.text for each in result.requirements)} <= set(heads)
    assert [one for one in heads if one.startswith("original")][:2] == ["original/mse-1", "original/normalised-10"]
    assert [one for one in seen.texts["h3"] if one in GROUPS] == GROUPS[1:] + GROUPS
    assert [one for one in heads if one in ("shipped/mse-1", "shipped/outputs")] == ["shipped/mse-1", "shipped/outputs"]
    cells = seen.texts["td"]
    assert {"passed", "failed", DASH, "11.5", "48.8 dB", "<0.001", "-0.43", *EFFECTS.values()} <= set(cells)
    compared = {name: f"; compared with {base}" for name, base in BASES.items()}
    assert {title(row.arm) + compared.get(str(row.arm), "") for row in result.rows} <= set(seen.texts["span"])
    # The first of the shipped model: PSNR, spread, SSIM, to the teacher, loss, p, effect.
    at = cells.index("loses 4.60 dB")
    assert cells[at - 6 : at + 1] == ["24.30", "0.26", "0.9012", "26.30", "4.60", "<0.001", "loses 4.60 dB"]
    assert {"derain", "0, 1, 2", "500", "8 of 256", result.source_sha256} <= set(seen.texts["dd"])
    assert not seen.all("script") and "script-src" not in str(seen.all("meta"))


def test_losses_are_drawn_where_they_lie_and_chance_as_wide_as_it_is(result):
    charts = re.findall(r'<svg class="chart dots".*?</svg>', audit_page(result))
    assert len(charts) == len(GROUPS) - 1
    drawn, scales = {}, []
    for chart in charts:
        ticks = {
            float(text): float(x)
            for x, text in re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="\w+">(-?[\d.]+)</text>', chart)
        }
        scale = (ticks[4] - ticks[0]) / 4
        scales.append((ticks[0], scale))
        for part in chart.split('<text class="name"')[1:]:
            name = part[part.index(">") + 1 : part.index("<")]
            dots = [(float(x) - ticks[0]) / scale for x in re.findall(r'"dot" cx="([\d.]+)"', part)]
            band = re.search(r'"chance" x="([\d.]+)" y="\d+" width="([\d.]+)"', part)
            assert band
            drawn[name] = dots, float(band[2]) / scale / 2
    assert len(set(scales)) == 1, "the charts have axes of their own"
    assert set(drawn) == set(BASES)
    near = 0.11 / scales[0][1]  # places have one decimal: a tick and a dot are off by 0.05 each, and a scale by less
    for name, base in BASES.items():
        np.testing.assert_allclose(drawn[name][0], np.subtract(SCORES[base], SCORES[name]), atol=near)
        chance = max(np.std(SCORES[one], ddof=1) for one in (name, base))
        np.testing.assert_allclose(drawn[name][1], chance, atol=near)


def test_a_learning_curve_is_drawn_over_a_linear_axis_and_ends_at_its_borders():
    line = Series("a", "original", (0, 50, 100), (20.0, 25.0, -40.0))
    chart = line_chart([line], title="t", x_label="x", y_label="y", most_x=100, y_range=(20, 30))
    ys = {float(text): float(y) - 4 for y, text in re.findall(r'x="40" y="([\d.]+)" text-anchor="end">(\d+)<', chart)}
    xs = {
        float(text): float(x) for x, text in re.findall(r'<text x="([\d.]+)" y="215" text-anchor="\w+">(\d+)<', chart)
    }
    assert list(ys) == [20, 22, 24, 26, 28, 30] and list(xs) == [0, 20, 40, 60, 80, 100]
    points = re.findall(r'points="([^"]+)"', chart)[-1].split()
    found = [tuple(map(float, point.split(","))) for point in points]
    wanted = [(xs[0], ys[20]), ((xs[40] + xs[60]) / 2, (ys[24] + ys[26]) / 2), (xs[100], ys[20])]
    np.testing.assert_allclose(found, wanted, atol=0.11)  # one decimal each
    assert round_range([14.06, float("nan"), 11.73]) == (11.5, 14.5)


@pytest.mark.parametrize("value", [15.0, 15.123, 0.0])
def test_one_value_has_an_axis_too(value):
    low, high = round_range([value, value])
    assert low <= value <= high and 1 <= high - low <= 2
    line = Series("a", "original", (1,), (value,))
    assert line_chart([line], title="t", x_label="x", y_label="y", most_x=1, y_range=(low, high))


@pytest.mark.parametrize("channels", [(3,), ()], ids=["colour", "grey"])
def test_the_pictures_are_the_students_and_their_differences_times_one_factor(channels, result):
    seen = seen_of(replace(result, pictures=pictures(*channels)))
    factor = 20  # the largest difference is 9 of 255: 20 times it is still in 0..1, 50 times it is not
    shown = {str(one["alt"]): pixels(one["src"]).astype(int) for one in seen.all("img")}
    clean = next(one for alt, one in shown.items() if alt.startswith("Clean"))
    assert len(shown) == 4 + 2 * len(SCORES) and clean.shape == (16, 20, 3)
    for i, name in enumerate(SCORES):
        assert (shown[f"{name}, output of the student"] == clean + i).all()
        assert (shown[f"{name}, difference to the clean picture times {factor}"] == factor * i).all()
    assert f"times {factor} for all: black is none, white is 12.8 of 255" in seen.text("p")
    assert [one.get("class") for one in seen.all("figure")].count("coarse") == 1, "the input alone is small"


def test_names_and_reasons_are_text_whatever_they_hold(result, capsys):
    hostile = replace(
        result,
        model=HOSTILE,
        file=HOSTILE,
        task=HOSTILE,
        student=HOSTILE,
        nodes={HOSTILE: Perturbation(1, 2.0)},
        requirements=(Requirement(HOSTILE, 1.0, True),),
    )
    seen = seen_of(hostile)
    assert not seen.all("script") and "{{ 7 * 7 }}[red]" in seen.text("th")
    assert "<script>alert(1)</script>" in seen.text("td"), "the reason of the row that is not available"
    audit_table(replace(result, unavailable={"shipped/mse-1": "[red]no[/] layer"}), {"page": Path("[b].html")})
    out = capsys.readouterr().out
    assert "[red]no[/] layer" in out and "[b].html" in out


def test_one_seed_and_scores_without_a_number_have_a_page(result):
    nan = float("nan")
    one, *_, last = rows(1)
    broken = replace(
        last, psnr=nan, ssim=nan, select=-1.0, by_seed=(nan,), loss=nan, p=nan, effect="", curve=((500, nan),)
    )
    changed = replace(
        result, rows=(one, *rows(1)[1:-1], broken), seeds=(0,), requirements=(), pictures={}, file="", unavailable={}
    )
    seen = seen_of(changed)
    assert "net.pt: what its defence costs attackers" in seen.text("h1")
    assert not {"Failed", "Passed"} & set(seen.texts["span"])
    assert seen.text("h2") == (
        "The models What the students lose All rows Learning curves Settings What this does not say"
    )
    assert seen.texts["td"].count(ONE_SEED) == len(BASES) - 1 and "nan" not in seen.text("td").lower()
    assert not [one for one in seen.all("rect") if one.get("class") == "chance"]
    dots = [one for one in seen.all("circle") if one.get("class") == "dot"]
    assert len(dots) == len(BASES) - 1, "what is not finite is drawn"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_terminal_of_80_columns_shows_each_row_on_a_line(seeds, result, monkeypatch):
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, no colours
    path = Path("a-folder-with-a-long-name" * 4) / "audit.html"
    audit_table(
        replace(result, rows=rows(seeds), seeds=tuple(range(seeds)), unavailable={"truth": "no layer"}), {"page": path}
    )
    lines = screen.getvalue().splitlines()
    assert [line for line in lines if len(line.rstrip()) > 80] == [f"page  {path}"]
    for row in rows(seeds):
        shown = [line.split() for line in lines if line.split() and line.split()[0] == str(row.arm)]
        assert len(shown) == 1 and shown[0][1] == f"{row.psnr:.2f}"
        assert " ".join(shown[0]).endswith(row.effect if row.effect else DASH), "the effect is cut or broken"
    told = " ".join(" ".join(lines).split())
    assert all(sentence in told for sentence in replace(result, rows=rows(seeds)).sentences())
    assert "passed feature_kd_drop>=1.0, found 4.60 dB" in told and "failed preservation>=50, found 48.76 dB" in told
    assert "noise/mse-1>=1, its row was not run" in told and "not available: truth: no layer" in told
    assert lines[0].split()[1:] == ["PSNR", *(["spread"] if seeds > 1 else []), "SSIM", "loss", "effect"]
    groups = [line.strip() for line in lines if line.strip() in GROUPS]
    assert groups == GROUPS
