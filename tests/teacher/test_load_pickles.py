"""Pickles and modules: nothing in a file runs unless its author is trusted."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asvp_export.teacher.architecture import build
from asvp_export.teacher.load import load
from tests.helpers.attacks import attacks
from tests.helpers.loading import Residual, refused

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["zip.pt", "old.pt", "dict.pt", "plain.pkl", "module.pt", "tensors.bin"])
def test_a_malicious_pickle_is_refused_before_it_runs(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    path = attacks(marker, tmp_path)[name]
    for arch in (None, "torch.nn:Identity"):
        refused(r"pickled Python object.*torch\.save\(model\.state_dict\(\).*--arch.*--trust-pickle", path, arch=arch)
    assert not marker.exists()
    with path.open("rb") as file:  # the attack does work on a reader that unpickles
        pickle.load(file) if name == "plain.pkl" else torch.load(file, weights_only=False)
    assert marker.exists()


def test_the_environment_cannot_turn_the_refusal_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    refused("pickled Python object", attacks(marker, tmp_path)["zip.pt"])
    assert not marker.exists()


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}, lambda m: {"ema": m, "model": None}])
@pytest.mark.parametrize("modern", [True, False])
def test_a_saved_module_needs_trust(tmp_path: Path, wrap: Any, modern: bool) -> None:
    module = Residual().train()
    torch.save(wrap(module), tmp_path / "m.pt", _use_new_zipfile_serialization=modern)
    refused(r"it names [\w.]*Residual.*--trust-pickle", tmp_path / "m.pt")
    teacher = load(tmp_path / "m.pt", trust_pickle=True)
    image = teacher.example()
    assert (teacher.format, teacher.source, teacher.module.training) == ("pickle", "m.pt", False)
    assert torch.equal(teacher.module(image), module(image))


def test_a_trusted_state_dict_with_other_objects_in_it_is_read(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"params": state, "options": Path("x")}, folder / "w.pt")
    refused("pickled Python object", folder / "w.pt", arch="nets.py:Net")
    assert load(folder / "w.pt", arch="nets.py:Net", trust_pickle=True).format == "state-dict"


def test_a_saved_module_whose_code_is_not_here_is_refused(folder: Path) -> None:
    (folder / "passing.py").write_text("from torch import nn\nclass Net(nn.Conv2d):\n    pass\n")
    torch.save(build("passing:Net", {"in_channels": 3, "out_channels": 3, "kernel_size": 1}), folder / "m.pt")
    assert load(folder / "m.pt", trust_pickle=True).scale == 1  # found in the current folder
    del sys.modules["passing"]
    (folder / "passing.py").unlink()
    refused(
        "needs Python code that cannot be imported: ModuleNotFoundError: No module named 'passing'",
        folder / "m.pt",
        trust_pickle=True,
    )


def test_a_module_in_memory_is_copied_and_left_alone() -> None:
    module = Residual().train()
    teacher = load(module)
    assert (teacher.format, teacher.source) == ("module", "Residual")
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())
    assert teacher.module is not module
    again = Residual()
    again.load_state_dict(module.state_dict())
    assert load(again).sha256 == teacher.sha256
    assert load(Residual().bfloat16()).sha256 != teacher.sha256
    assert load(Residual().half()).module.conv.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Identity(), "Identity has no weights"),
        (nn.LazyConv2d(3, 1), "weights without values"),
        (nn.Conv2d(3, 3, 1, device="meta"), "weights without values"),
    ],
)
def test_a_module_without_weights_is_refused(module: nn.Module, match: str) -> None:
    refused(match, module)
