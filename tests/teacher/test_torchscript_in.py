"""TorchScript modules and archives as teachers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import asvp_export
import asvp_export.images
from asvp_export.insertion.protected import to_onnx


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "written.bin")
        return self.conv(x)


def test_torchscript_that_touches_files_is_refused_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Writes()).save("writes.pt")
    with pytest.raises(asvp_export.InputError, match=r"operator save, which reads or writes files.*--trust-pickle"):
        asvp_export.load("writes.pt")
    assert not Path("written.bin").exists()
    asvp_export.load("writes.pt", trust_pickle=True)
    assert Path("written.bin").exists(), "it does what the screen is there for"


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(self.conv(x))


def test_torchscript_in_memory_and_of_two_inputs_in_any_opset_that_the_exporter_writes(tmp_path):
    module = torch.jit.script(Guided().eval())
    example = {
        "x": np.random.default_rng(0).random((1, 3, 32, 40), np.float32),
        "sigma": np.ones((1, 1, 32, 40), np.float32),
    }
    np.savez(tmp_path / "inputs.npz", **example)
    protected = asvp_export.protect(asvp_export.load(module, inputs=tmp_path / "inputs.npz"), "/first/Conv", gain=2.0)
    inputs = protected.teacher.inputs(protected.teacher.example(batch=2))
    for opset in (11, 20):
        made = to_onnx(protected, opset=opset)
        assert made.opset_import[0].version == opset
        got = ort.InferenceSession(made.SerializeToString()).run(
            None, {name: x.numpy() for name, x in zip(("x", "sigma"), inputs, strict=True)}
        )
        for one, expected in zip(got, protected(*inputs), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-4, atol=1e-5)


class Guided(nn.Module):
    """Takes a noise map beside the image and returns its features as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.first(torch.cat([x, sigma], 1)).relu()
        return x + self.last(features), features


def test_torchscript_that_has_no_graph_is_refused(tmp_path):
    torch.jit.script(Unusual()).save(tmp_path / "m.pt")
    with pytest.raises(asvp_export.AsvpError, match=r"exporter cannot export this TorchScript module \(.*bessel_j0"):
        asvp_export.protect(asvp_export.load(tmp_path / "m.pt"), "/conv/Conv", gain=1.1)
