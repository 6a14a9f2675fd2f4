"""The model card: what it says, what it leaves to the owner, and the code in it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import TensorProto
from PIL import Image

import asvp_export
from asvp_export.report.card import card
from asvp_export.signature import SizeRule, ValueRange
from tests.helpers.commands import call
from tests.helpers.shipping import load, plain_result


def test_the_front_matter_is_what_a_hub_reads_and_leaves_the_licence_to_the_owner(shipped):
    text = (shipped / "README.md").read_text()
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert front
    assert yaml.safe_load(front[1]) == {
        "library_name": "onnx",
        "pipeline_tag": "image-to-image",
        "license": "other",
        "license_name": "to-be-chosen-by-the-owner",
        "tags": ["onnx", "onnxruntime", "image-restoration", "asvp"],
    }
    assert text.count("OWNER") == 3
    assert text.endswith("-->\n") and not re.search(r"[ \t]$", text, re.MULTILINE)


def test_the_card_shows_what_was_measured_and_nothing_of_the_machine(shipped):
    text, report = (shipped / "README.md").read_text(), load(shipped / "p.report.json")
    for name in ("fidelity", "preservation"):
        gate = report[name]
        psnr = f"{gate['min_psnr']:.2f} dB | {gate['mean_psnr']:.2f} dB | {gate['min_ssim']:.5f}"
        assert re.search(rf"^\| {name} \|.*\| {re.escape(psnr)} \| {gate['threshold']:g} dB \|$", text, re.MULTILINE)
    (layer,) = report["layers"]
    shares = f"{layer['relative_feature_change']:.4f} | {layer['strength']:.4f}"
    assert f"| `after_body` | 1 | 1.003 | 1 | 1 | 1 | {shares} |" in text
    for fact in (
        report["output_sha256"],
        report["source_sha256"],
        "batch x 3 x height x width",
        "Values 0 (black) to 1",
        "at least 2 pixels, multiples of 2",
        "Whole images only",
        "is as high and wide as the image",
    ):
        assert fact in text
    for limit in (
        "not measured for this file",
        "Nothing here is cryptography",
        "delete the node",
        "normalise",
        "outputs alone are not hindered",
    ):
        assert limit in " ".join(text.split())
    for private in (str(shipped), str(shipped.parent), str(Path.home()), "latency", " ms"):
        assert private not in text


def test_the_code_in_the_card_restores_a_picture_as_the_tool_does(folder):
    stock, native = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "asvp" not in stock
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8)).save(folder / "in.png")
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(stock, names)
        assert call("run", "p.onnx", "in.png", "-o", "tool.png").code == 0
        written, expected = (np.asarray(Image.open(name), np.int16) for name in ("out.png", "tool.png"))
        assert np.abs(written - expected).max() <= 1  # one way or the other at the rounding to 8 bits
        exec(native, names)
        (again,) = names["session"].run(None, {"input": names["picture"].transpose(2, 0, 1)[None]})
        assert isinstance(names["session"], asvp_export.InferenceSession)
        assert np.abs(again[0, :, :47, :61].transpose(1, 2, 0) - names["restored"]).max() < 1e-4


@pytest.mark.parametrize(
    "size", [SizeRule(), SizeRule(8, 8), SizeRule(24, 4), SizeRule(1, 1, True), SizeRule(64, 8, True)]
)
@pytest.mark.parametrize("low, high", [(0, 1), (0, 255), (-1, 1), (-0.5, 0.5), (0.5, 1.5)])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_code_in_the_card_meets_every_value_range_size_rule_and_type(kind, low, high, size, tmp_path):
    """By a model that gives back what it is given: float16 moves no pixel by half a step in these ranges."""
    path = tmp_path / "p.onnx"
    text = card(plain_result(path, {"x": ["n", 3, "h", "w"]}, ValueRange(low, high), size, kind), path)
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    assert names["picture"].shape[:2] == size.fit_both(21, 30)
    np.testing.assert_allclose(names["picture"][:21, :30], low + pixels / 255 * (high - low), rtol=1e-5, atol=1e-6)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), pixels)


def test_a_card_without_nodes_claims_no_defence_and_its_code_feeds_every_input(tmp_path):
    name = "a b`c|d_e.onnx"
    result = plain_result(tmp_path / name, model="<b>\n---|`.pt")
    text = card(result, tmp_path / name)
    assert "Nothing in it keeps anyone" in text and "\n- asvp\n" not in text
    assert "Strength" not in text and "Whole images" not in text
    assert "| input, the image | `grey` | n x 1 x h x w | float32 |" in text and "| input | ``le`vel`` |" in text
    assert "| exported from | ``<b>\N{REPLACEMENT CHARACTER}---\\|`.pt``, SHA-256" in text
    assert "# a b\\`c|d\\_e\n" in text
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    assert [one.shape for one in names["outputs"]] == [(1, 1, 64, 64)]


def test_what_the_owner_writes_into_the_card_is_his(folder):
    path = folder / "README.md"
    text = re.sub(r"license: other.*\nlicense_name.*", "license: apache-2.0", path.read_text())
    path.write_text(re.sub(r"\*OWNER.*?\*\n", "It brightens.\n", text, flags=re.DOTALL) + "\n## Citation\n")
    assert "OWNER: say" not in path.read_text() and "apache-2.0" in path.read_text()
    assert asvp_export.verify_manifest(folder / "p.onnx").passed
