from __future__ import annotations

import pytest
import torch
from spandrel import MAIN_REGISTRY

from asvp_export.errors import AsvpError
from tests_zoo.architectures import ENTRIES, Entry
from tests_zoo.road import exported


def test_every_architecture_of_spandrel_is_here():
    assert {entry.name for entry in ENTRIES} == {str(known.architecture.id) for known in MAIN_REGISTRY}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_state_dict_alone_becomes_a_file_that_passes_both_gates(entry: Entry, tmp_path, photographs, note):
    module = entry.module()
    weights = tmp_path / f"{entry.name}.pth"
    torch.save({"params_ema": module.state_dict()}, weights)
    row = {"name": entry.name, "parameters": sum(p.numel() for p in module.parameters()), "layer": entry.layer}
    del module
    options = ["--layers", entry.layer, "--images", photographs(*entry.picture)]
    if entry.static:
        options += ["--static", "--size", entry.static]
    try:
        report = exported(weights, tmp_path / "protected.onnx", *options)
    except AsvpError as error:
        note(entry.name, {**row, "refused": entry.why or str(error)})
        if not entry.refused or entry.refused not in str(error):
            raise
        return
    measured = {gate: report[gate]["min_psnr"] for gate in ("fidelity", "preservation")}
    change = report["layers"][0]["relative_feature_change"]
    if entry.why and not entry.refused:
        note(entry.name, {**row, "refused": entry.why})
        assert report["code"] == 1 and not report["fidelity"]["passed"], "it works by now: take the reason out"
        return
    note(entry.name, {**row, "static": entry.static, "seconds": report["seconds"], "change": change, **measured})
    assert not entry.refused, "it works by now: take the reason out"
    assert report["code"] == 0 and report["passed"], measured
    assert change > 1e-3  # the node does something


def test_what_computes_its_weights_at_each_run_goes_by_way_of_torchscript(tmp_path, photographs):
    module = next(entry for entry in ENTRIES if entry.name == "SPAN").module()
    torch.jit.trace(module.requires_grad_(False), torch.rand(1, 3, 61, 91)).save(tmp_path / "span.pt")
    options = ["--layers", "/block_2/c2_r/eval_conv/Conv", "--images", photographs(48, 56)]
    report = exported(tmp_path / "span.pt", tmp_path / "protected.onnx", *options)
    assert report["passed"] and report["layers"][0]["relative_feature_change"] > 1e-3
