"""The commands as a user meets them: what export, check, inspect, layers and run write and answer."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

import asvp_export
from asvp_export.images import pad_to, read_image
from asvp_export.signature import SizeRule
from tests.helpers.commands import call, complaint
from tests.helpers.workshop import CHECK_EVEN, contents, even


def test_export_spelled_out_is_the_default_command_and_the_output_has_a_default(workshop):
    answer = call("export", *even(output=None))
    assert answer.code == 0 and "passed  even.protected.onnx" in answer.out
    assert Path("even.protected.onnx").read_bytes() == Path("even.onnx").read_bytes()
    for written in ("even.protected.onnx", "even.protected.report.json", "even.protected.manifest.json"):
        Path(written).unlink()


def test_the_report_has_every_field(workshop):
    report = json.loads(Path("even.report.json").read_text())
    assert {
        "passed",
        "tool_version",
        "model",
        "source_sha256",
        "output",
        "output_sha256",
        "layers",
        "fidelity",
        "preservation",
        "latency",
        "environment",
    } <= set(report)
    assert report["passed"] is True and report["model"] == "even.pt" and report["output"] == "even.onnx"
    for kind, file in (("source", "even.pt"), ("output", "even.onnx")):
        assert report[f"{kind}_sha256"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    (layer,) = report["layers"]
    attributes = {"rank": 1, "gain": 1.01, "energy": 1.0, "axis": 1, "residual": 1.0}
    assert {"name": "head", **attributes}.items() <= layer.items()
    assert layer["relative_feature_change"] > 0 and layer["strength"] > 0
    for gate, threshold in (("fidelity", 80), ("preservation", 48)):
        found = report[gate]
        assert found["passed"] and found["threshold"] == threshold
        assert threshold <= found["min_psnr"] <= found["mean_psnr"] and 0 < found["min_ssim"] <= 1
        assert found["min_psnr"] == min(one["psnr"] for one in found["per_image"])
    assert report["latency"]["original"] > 0 and report["latency"]["protected"] > 0


def test_a_module_that_prints_does_not_disturb_the_json(workshop):
    for debug in ([], ["--debug"]):
        answer = call("layers", "chatty.pt", "--arch=nets.py:Chatty", "--json", *debug)
        found = json.loads(answer.out)["layers"]
        assert [layer["name"] for layer in found] == ["head", "body.0", "body.1", "body", "tail"]
        assert ("forward" in answer.err) == bool(debug)


def test_a_failed_gate_exits_1_and_leaves_the_reports_but_no_file(workshop, tmp_path):
    junit = tmp_path / "j.xml"
    failing = even(gain="30", residual="gain", output=str(tmp_path / "p.onnx"), junit=str(junit))
    answer = call(*failing, f"--report={workshop / 'out'}")
    assert answer.code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["j.xml"]
    report = Path("out/p.report.json")
    assert json.loads(report.read_text())["passed"] is False and json.loads(report.read_text())["output"] is None
    assert "Failed" in Path("out/report.html").read_text()
    for written in (report, Path("out/report.html")):
        written.unlink()
    assert "failed" in answer.out and "passed  " not in answer.out
    assert re.search(r"preservation: \d+ of 10 comparisons do not reach 48 dB", answer.err)
    assert all(path.name in answer.err for path in Path("pictures").iterdir())
    suites = {suite.get("name"): suite for suite in ElementTree.parse(junit).getroot()}
    assert suites["fidelity"].get("failures") == "0" and int(suites["preservation"].get("failures", 0)) > 0
    assert (
        len(suites["fidelity"].findall("testcase")) == len(suites["preservation"].findall("testcase")) == 10
    )  # two ways


def test_a_failed_file_is_kept_where_one_asks_for_it_and_one_is_told(workshop, tmp_path):
    answer = call(*even(gain="30", residual="gain", output=str(tmp_path / "p.onnx")), "--keep-failed", "--model-card")
    assert answer.code == 1 and "p.failed.onnx" in answer.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.failed.onnx", "p.report.json"], (
        "no card, no manifest"
    )


@pytest.mark.parametrize("original, protected, gates", [("even.pt", "even.onnx", 2), ("same.onnx", "same.onnx", 1)])
def test_check_gives_the_verdict(original, protected, gates, workshop, tmp_path):
    junit = tmp_path / "j.xml"
    command = ["check", original, protected, "--images=pictures", f"--junit={junit}"]
    command += ["--arch=nets.py:Even"] if gates == 2 else []
    before = contents(workshop)
    answer = call(*command)
    assert answer.code == 0 and f"passed  {protected}" in answer.out
    suites = list(ElementTree.parse(junit).getroot())
    assert [suite.get("name") for suite in suites] == ["fidelity", "preservation"][-gates:]
    assert all(len(suite.findall("testcase")) == 10 and suite.get("failures") == "0" for suite in suites)
    assert contents(workshop) == before


def test_check_fails_under_the_threshold(workshop, tmp_path):
    junit = tmp_path / "j.xml"
    answer = call(*CHECK_EVEN, "even.onnx", "--min-psnr=200", f"--junit={junit}")
    assert answer.code == 1
    assert "failed  even.onnx" in answer.out and "passed  even.onnx" not in answer.out
    assert "preservation: 10 of 10 comparisons do not reach 200 dB" in answer.err
    assert ElementTree.parse(junit).getroot().get("failures") == "10"


def test_check_of_an_onnx_original_fails_where_the_files_differ(workshop):
    answer = call("check", "same.onnx", "even.onnx", "--images=pictures", "--min-psnr=150", "--json")
    assert answer.code == 1 and not json.loads(answer.out)["passed"]
    assert json.loads(answer.out)["fidelity"] is None


def test_check_notices_another_teacher(workshop):
    answer = call("check", "even.safetensors", "even.onnx", "--arch=nets.py:Even", "--images=pictures")
    assert answer.code == 0, "the same weights in another file pass"
    assert "even.safetensors (the sha256 differs)" in " ".join(answer.out.split())


def test_check_of_a_file_without_metadata_measures_preservation(workshop, tmp_path):
    model = onnx.load("even.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    answer = call("check", "even.pt", tmp_path / "bare.onnx", "--arch=nets.py:Even", "--images=pictures", "--json")
    report = json.loads(answer.out)
    assert answer.code == 0 and report["passed"] and report["fidelity"] is None
    assert any("metadata" in note for note in report["notes"])


def test_check_writes_a_report_only_where_it_is_told_to(workshop, tmp_path):
    assert call("check", "same.onnx", "same.onnx", "--images=pictures", f"--report={tmp_path}", "--quiet") == (
        0,
        "",
        "",
    )
    assert json.loads((tmp_path / "same.report.json").read_text())["passed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "same.report.json"]


def test_inspect_shows_nodes_and_provenance(workshop):
    found = json.loads(call("inspect", "even.onnx", "--json").out)
    assert found["inputs"] == {"input": ["batch", 3, "height", "width"]}
    assert [node["name"] for node in found["nodes"]] == ["asvp/head"]
    assert found["provenance"]["source_sha256"] == hashlib.sha256(Path("even.pt").read_bytes()).hexdigest()
    assert (found["provenance"]["size"]["multiple"], found["provenance"]["scale"]) == (2, 1)
    shown = call("inspect", "even.onnx")
    assert shown.code == 0 and not shown.err
    for text in (
        "asvp/head",
        "1.01",
        "batch x 3 x height x width",
        "multiples of 2",
        found["provenance"]["source_sha256"],
    ):
        assert text in shown.out
    assert "no ASVP node" in call("inspect", "same.onnx").out


def test_inspect_says_which_data_file_was_left_behind(workshop, tmp_path):
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], np.ones(1, np.float32).tobytes(), raw=True)
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([], "weights", [], [output], [weights]), ir_version=8)
    onnx.save(model, tmp_path / "p.onnx", save_as_external_data=True, location="p.data", size_threshold=0)
    assert call("inspect", tmp_path / "p.onnx").code == 0
    (tmp_path / "p.data").unlink()
    assert "p.data, which is not beside it" in complaint(call("inspect", tmp_path / "p.onnx"))


def test_layers_lists_what_can_carry_the_node(workshop):
    found = json.loads(call("layers", "even.pt", "--arch=nets.py:Even", "--json").out)
    assert [layer["name"] for layer in found["layers"]] == ["head", "body.0", "body.1", "body", "tail"]
    assert found["layers"][0]["shape"] == [1, 8, 32, 48] and found["layers"][0]["axis"] == 1
    shown = call("layers", "even.pt", "--arch=nets.py:Even")
    assert shown.code == 0 and all(layer["name"] in shown.out for layer in found["layers"])


def odd_picture(path: Path) -> np.ndarray:
    """Write an odd part of a photograph; returns what a reader sees, [H, W, 3]."""
    (source, *_) = sorted(Path("pictures").iterdir())
    Image.open(source).crop((0, 0, 79, 61)).save(path)
    return read_image(path)


@pytest.mark.parametrize("net, scale, multiple", [("Even", 1, 2), ("Double", 2, 1)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_run_restores_an_odd_picture_as_pytorch_does(net, scale, multiple, suffix, workshop, tmp_path):
    picture = odd_picture(tmp_path / f"in{suffix}")
    file = f"{net.lower()}.onnx"
    answer = call("run", file, tmp_path / f"in{suffix}", "-o", tmp_path / "out.png", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == {"written": "out.png", "input": [61, 79], "output": [61 * scale, 79 * scale]}
    restored = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    teacher = asvp_export.load(f"{net.lower()}.pt", arch=f"nets.py:{net}")
    padded = pad_to(picture.transpose(2, 0, 1)[None], SizeRule(1, multiple))
    expected = asvp_export.protect(teacher, "head", gain=1.01)(torch.from_numpy(padded))[0].permute(1, 2, 0).numpy()
    expected = np.rint(np.clip(expected[: 61 * scale, : 79 * scale], 0, 1) * 255)
    assert restored.shape == expected.shape and np.abs(restored - expected).max() <= 1
    assert np.mean(restored != expected) < 0.01, "only ties of the rounding may fall otherwise"


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_run_writes_other_formats(suffix, workshop, tmp_path):
    assert call("run", "even.onnx", "pixel/one.png", "-o", tmp_path / f"a{suffix}").code == 0
    assert Image.open(tmp_path / f"a{suffix}").size == (1, 1)


def test_run_replaces_a_picture_only_when_forced(workshop, tmp_path):
    (tmp_path / "a.png").write_bytes(b"older")
    command = ["run", "even.onnx", "pixel/one.png", "-o", tmp_path / "a.png", "--quiet"]
    assert "--force" in complaint(call(*command)) and (tmp_path / "a.png").read_bytes() == b"older"
    assert call(*command, "--force") == (0, "", "")
    assert Image.open(tmp_path / "a.png").size == (1, 1)
