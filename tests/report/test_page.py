"""The report page: it shows what was verified, asks the network for nothing, and no missing piece breaks it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

import asvp_export
from asvp_export.insertion.spectrum import SingularValues
from asvp_export.operator import Perturbation
from asvp_export.parity.evidence import Evidence, VisualSample
from asvp_export.parity.result import ParityResult
from asvp_export.report.page import page
from asvp_export.report.pictures import factor_for, radial_power
from asvp_export.report.render import Column, Table
from tests.helpers.commands import call
from tests.helpers.reading import Page, pixels, read
from tests.helpers.teachers import Video, example, recurrent, save_pictures
from tests.helpers.web import FLAGS, drive, missing

GAIN = 3.0
LAYERS = ("body.3", "after_body")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("page") / "pictures")


@pytest.fixture(scope="module")
def teacher() -> asvp_export.Teacher:
    return example("lowlight")


@pytest.fixture(scope="module")
def result(teacher, pictures) -> ParityResult:
    protected = asvp_export.protect(teacher, LAYERS, gain=GAIN, residual="gain")
    path = pictures.parent / "p.onnx"
    return asvp_export.export(protected, path, images=pictures, min_psnr=-20, report=pictures.parent / "report")


@pytest.fixture(scope="module")
def seen(result) -> Page:
    return read(page(result))


def test_the_verdict_comes_first_then_everything_in_order(result, seen):
    assert next(tag for tag, _ in seen.tags if re.fullmatch("h[1-6]", tag)) == "h1"
    shown = result.preservation.as_dict()
    assert f"the worst of 5 inputs is at {shown['min_psnr']:.2f} dB" in seen.text("h1") and "Passed" in seen.text(
        "span"
    )
    assert seen.text("h2") == (
        "Gates Protected layers Pictures Feature maps Singular values Latency Assumptions Environment"
    )
    assert all(name in seen.text("th") for name in (*LAYERS, "fidelity", "preservation"))
    assert result.source_sha256 in seen.text("dd")
    failed = read(
        page(replace(result, passed=False, output=None, preservation=replace(result.preservation, passed=False)))
    )
    assert "Failed" in failed.text("span") and "Nothing was published" in failed.text("p")


def test_the_pictures_are_what_the_verified_file_puts_out(result, seen, teacher, pictures):
    scores = [one for one in result.preservation.per_image if one.batch == 1]
    worst = min(scores, key=lambda one: one.psnr)
    assert result.evidence.samples[0].score.name == worst.name == seen.texts["h3"][0].strip()
    assert len({one.score.name for one in result.evidence.samples}) == len(result.evidence.samples) == 2
    height, width = map(int, worst.size.split("x"))
    x = asvp_export.images.read_image(pictures / worst.name)
    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
    x = x[top : top + height, left : left + width].transpose(2, 0, 1)[None]
    x = asvp_export.images.pad_to(x, teacher.size)
    opened = asvp_export.InferenceSession if worst.execution_path == "library" else ort.InferenceSession
    got = opened(str(result.output), providers=["CPUExecutionProvider"]).run(None, {"input": x})[0][
        0, :, :height, :width
    ]
    with torch.inference_mode():
        original = teacher.module(torch.from_numpy(x))[0, :, :height, :width].numpy()
    shown = {str(one["alt"]).rpartition(", ")[2]: pixels(one["src"]) for one in seen.all("img")[:4]}

    def drawn(values: np.ndarray) -> np.ndarray:
        return np.rint(values.clip(0, 1) * 255).transpose(1, 2, 0)

    assert np.abs(shown["output of the original"] - drawn(original)).max() <= 1
    assert np.abs(shown["output of the protected file"] - drawn(got)).max() <= 1
    factor = factor_for(np.abs(got - original))
    assert f" {factor}" in seen.text("b")
    assert np.abs(shown[f"difference times {factor}"] - drawn(factor * np.abs(got - original))).max() <= 1
    assert shown["map of the structural similarity"].shape == (height, width, 3)


def test_the_singular_values_are_those_of_the_feature_maps(result, teacher, pictures):
    """In float64; the Gram matrix squares the float32 map's values, and 1e-6 of the largest is left of that."""
    assert list(result.evidence.singular_values) == list(LAYERS)
    name, _, size = result.evidence.singular_values_of.partition(", ")
    height, width = map(int, size.split("x"))
    x = asvp_export.images.read_image(pictures / name)
    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
    x = torch.from_numpy(x[top : top + height, left : left + width].transpose(2, 0, 1)[None].copy())
    x = torch.from_numpy(asvp_export.images.pad_to(x.numpy(), teacher.size))
    maps = []
    hook = teacher.module.body[3].register_forward_hook(
        lambda module, inputs, output: maps.append(output[0].flatten(1))
    )
    with hook, torch.inference_mode():
        teacher.module(x)
    expected = torch.linalg.svdvals(maps[0].double()).numpy()
    found = result.evidence.singular_values["body.3"]
    np.testing.assert_allclose(found.before, expected, atol=1e-6 * expected[0])
    expected[0] *= GAIN
    np.testing.assert_allclose(found.after, expected, atol=1e-6 * expected[0])


def test_the_power_spectrum_is_flat_for_white_noise_and_peaks_at_a_wave():
    generator = np.random.default_rng(0)
    frequencies, power = radial_power(0.1 * generator.standard_normal((3, 256, 256)))
    assert frequencies[0] > 0 and frequencies[-1] < 0.5
    # A bin holds at least 19 independent values a channel (the Hann window binds neighbours): 5 sigma are 70 %.
    np.testing.assert_allclose(power, 0.01, rtol=0.7)
    assert abs(power.mean() / 0.01 - 1) < 0.05
    wave = np.sin(2 * np.pi * 0.3 * np.arange(256)) + np.zeros((1, 256, 1))
    frequencies, power = radial_power(wave)
    assert abs(frequencies[np.argmax(power)] - 0.3) < 1 / 128
    assert radial_power(np.zeros((1, 5, 9)))[0].size == 0


def test_the_factor_makes_differences_visible_without_clipping_them():
    assert [factor_for(np.full(9, value)) for value in (2.0, 1.0, 0.3, 0.02, 1e-9)] == [1, 1, 2, 50, 1000]


HOSTILE = '"><script>alert(1)</script><img src="http://x/y.png" onerror=alert(1)>{{ 7 * 7 }}\udce9'


def test_names_are_text_whatever_they_hold(result):
    node, values = Perturbation(1, 2.0), result.evidence.singular_values["body.3"]
    samples = tuple(replace(one, score=replace(one.score, name=HOSTILE)) for one in result.evidence.samples)
    changed = replace(
        result,
        model=HOSTILE,
        output=Path(HOSTILE.replace("/", "-")),
        nodes={HOSTILE: node},
        effects={},
        notes=(HOSTILE,),
        evidence=Evidence(samples, {HOSTILE: values}, HOSTILE),
    )
    text = page(changed, plan=[Table([HOSTILE], [[HOSTILE]], HOSTILE, HOSTILE)])
    seen = read(text.encode("utf-8", "replace").decode("utf-8"))
    assert len(seen.all("script")) == 1 and len(seen.all("img")) == 8
    assert seen.text("li").count("<script>alert(1)</script>") == 1 and "{{ 7 * 7 }}" in seen.text("th")


def sample(result: ParityResult, *shape: int, change: float = 0.1, noise: float = 0.3) -> VisualSample:
    generator = np.random.default_rng(0)
    original = 0.5 + noise * generator.standard_normal(shape).astype(np.float32)
    protected = original + change * generator.standard_normal(shape).astype(np.float32)
    return VisualSample(result.preservation.per_image[0], original, protected, 1.0, shape[1:], (0, 0))


def test_the_page_stays_small_whatever_the_pictures_are(result):
    """Noise in 16 million colours, which nothing compresses."""
    six = Evidence((sample(result, 3, 512, 512),) * 6, {}, "")
    text = page(replace(result, evidence=six))
    assert len(read(text).all("img")) == 24
    assert "around the largest difference" in text


SHAPES = {
    "grey": (1, 40, 50),
    "Bayer": (4, 40, 50),
    "two channels": (2, 40, 50),
    "tiny": (3, 3, 3),
    "a pixel": (3, 1, 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_of_any_kind_are_shown(shape, result):
    seen = read(page(replace(result, evidence=Evidence((sample(result, *SHAPES[shape]),), {}, ""))))
    assert len(seen.all("img")) == 4
    said = {"grey": "grey", "Bayer": "the first 3 of 4 channels", "two channels": "the first one of 2 channels"}
    assert said.get(shape, "pixels") in seen.text("p")


def test_values_that_are_not_finite_are_shown_as_such(result):
    broken = sample(result, 3, 40, 50)
    broken.protected[:, 3, 4] = np.nan
    gate = replace(result.preservation, min_psnr=np.nan, mean_psnr=np.nan, min_ssim=np.nan, passed=False)
    gate = replace(gate, per_image=tuple(replace(one, psnr=np.nan, ssim=np.nan) for one in gate.per_image))
    values = {
        "body.3": SingularValues((np.nan,) * 3, (np.nan,) * 3),
        "after_body": SingularValues((0.0,) * 3, (0.0,) * 3),
    }
    changed = replace(result, passed=False, preservation=gate, evidence=Evidence((broken,), values, ""))
    seen = read(page(changed))
    assert "no number against the original" in seen.text("h1") and "3 values of the file's output" in seen.text(
        "figcaption"
    )
    assert tuple(pixels(seen.all("img")[1]["src"])[3, 4]) == (255, 0, 255)


MISSING = {
    "evidence": {"evidence": None},
    "nodes": {"nodes": {}, "effects": {}, "evidence": Evidence((), {}, "")},
    "effects": {"effects": {}},
    "fidelity": {"fidelity": None},
}


@pytest.mark.parametrize("piece", MISSING)
def test_a_page_without_a_piece_has_the_others(piece, result):
    seen = read(page(replace(result, **MISSING[piece])))
    assert ("Pictures" in seen.text("h2")) == (piece not in ("evidence", "nodes"))
    assert ("Protected layers" in seen.text("h2")) == (piece != "nodes")
    assert "Environment" in seen.text("h2") and "preservation" in seen.text("th")


def test_identical_outputs_have_a_page(result):
    same = sample(result, 3, 40, 50, change=0.0)
    seen = read(page(replace(result, evidence=Evidence((same,), {}, ""))))
    assert " 1000" in seen.text("b") and not pixels(seen.all("img")[2]["src"]).any()


def test_plan_and_removal_tests_stand_behind_the_layers(result):
    plan = Table(
        ["layer", Column("gain", "g"), "stopped by"], [["body.3", 4.0, "the allowance"]], intro="Two bisections."
    )
    removals = Table(
        ["test", Column("worst", ".2f", "dB"), Column("truth", ".2f", "dB")], [["nodes deleted", 21.456, None]]
    )
    seen = read(page(result, plan=[plan], removal_tests=[removals]))
    assert seen.text("h2").startswith("Gates Protected layers Plan Removal tests Pictures")
    assert {"the allowance", "21.46 dB", "\N{EN DASH}", "4"} <= set(seen.texts["td"])


def test_of_a_video_the_first_frame_is_shown(pictures, tmp_path):
    protected = asvp_export.protect(asvp_export.load(Video()), "body", gain=2.0)
    result = asvp_export.export(protected, tmp_path / "v.onnx", images=pictures, min_psnr=0, report=tmp_path)
    seen = read(page(result))
    assert "frame 1 of 5" in seen.text("p") and "Singular values" in seen.text("h2")


def test_check_writes_a_page_of_a_file_without_nodes_into_a_folder_that_it_makes(pictures, tmp_path):
    torch.save(recurrent(), tmp_path / "net.pt")
    teacher = [tmp_path / "net.pt", "--trust-pickle", f"--images={pictures}"]
    answer = call(*teacher, "--layers=none", "-o", tmp_path / "bare.onnx", f"--report={tmp_path / 'a'}")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["bare.report.json", "report.html"]
    assert str(tmp_path / "a" / "report.html") in answer.out
    answer = call(
        "check", tmp_path / "bare.onnx", tmp_path / "bare.onnx", f"--images={pictures}", f"--report={tmp_path / 'b'}"
    )
    assert answer.code == 0, answer.err
    for folder in "ab":
        seen = read((tmp_path / folder / "report.html").read_text())
        assert len(seen.all("img")) == 8 and "Singular" not in seen.text("h2")
        assert json.loads((tmp_path / folder / "bare.report.json").read_text())["passed"]
    before = sorted(tmp_path.rglob("*"))
    answer = call(*teacher, "--layers=none", "-o", tmp_path / "c.onnx", f"--report={tmp_path / 'c' / 'd'}")
    assert answer.code == 2 and "does not exist" in answer.err
    answer = call("nothing.pt", "--layers=none", "-o", tmp_path / "c.onnx", f"--report={tmp_path / 'c'}")
    assert answer.code == 2 and sorted(tmp_path.rglob("*")) == before, "a folder was made for nothing"


@pytest.mark.web
def test_in_a_browser_the_page_fits_a_phone_and_is_used_by_the_keyboard(result, tmp_path):
    if reason := missing():
        (pytest.fail if os.environ.get("ASVP_WEB") else pytest.skip)(reason)
    (tmp_path / "report.html").write_text(page(result), encoding="utf-8")
    seen = drive("report.mjs", url=(tmp_path / "report.html").as_uri(), flags=FLAGS, folder=str(tmp_path))
    assert not seen["problems"] and not seen["broken"]
    assert {one.partition(":")[0] for one in seen["asked"]} <= {"file", "data"} and len(seen["asked"]) < 20
    assert seen["first"].startswith("Passed") and seen["title"] == "p.onnx: passed"
    assert seen["overflow"] == {"360": 0, "1280": 0}, "the page is wider than the screen"
    slider = seen["slider"]
    assert slider["line"] == "53%", "three presses of a key moved the line from the middle"
    assert slider["ring"] == "solid" and "53" in slider["says"] and "original" in slider["label"]
    assert seen["printed"] == 0, "a slider is printed"
    for name in ("phone", "phone-dark", "desktop", "desktop-dark"):
        shot = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), np.float64)
        assert shot.shape[0] > 2000 and shot.std() > 20, "the page is blank"
        assert (np.median(shot) < 64) == ("dark" in name)
