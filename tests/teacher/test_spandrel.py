"""What is stated of an architecture, and recognising without spandrel; tests_zoo/ recognises with it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import asvp_export
from asvp_export.errors import InputError
from asvp_export.runtime.restoration import restore
from asvp_export.runtime.tiles import Tiling
from asvp_export.signature import SizeRule
from asvp_export.teacher.model import Architecture
from asvp_export.teacher.probe import Subject, probe
from asvp_export.workflows.publication import _half_notes
from tests.helpers.teachers import save_pictures


class Strict(nn.Module):
    """A residual net for multiples of `multiple` from `minimum` on, or for square images alone."""

    def __init__(self, minimum: int = 1, multiple: int = 1, square: bool = False) -> None:
        super().__init__()
        self.minimum, self.multiple, self.square = minimum, multiple, square
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.tail = nn.Conv2d(8, 3, 3, padding=1)
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        height, width = x.shape[-2:]
        if self.square and height != width:
            raise ValueError("square images only")
        if height % self.multiple or width % self.multiple or min(height, width) < self.minimum:
            raise ValueError("not this size")
        return x + 0.1 * self.tail(self.head(x))


def found(module: nn.Module, stated: SizeRule) -> SizeRule:
    return probe(Subject(module.eval(), "a model"), None, (None, None, None, None), None, stated).size.stricter(stated)


@pytest.mark.parametrize(
    ("truth", "stated", "rule"),
    [
        ({}, SizeRule(64, 8), SizeRule(64, 8)),  # stated more strictly than need be: obeyed
        ({"multiple": 16}, SizeRule(8, 8), SizeRule(16, 16)),  # not strictly enough: the truth counts
        ({"minimum": 24}, SizeRule(16, 4), SizeRule(24, 4)),
        ({"multiple": 4}, SizeRule(6, 6), SizeRule(12, 12)),
        ({"square": True, "multiple": 8}, SizeRule(1, 1), SizeRule(8, 8, True)),
        ({"minimum": 200}, SizeRule(200, 1), SizeRule(200, 1)),  # beyond what is tried without a word
        ({}, SizeRule(32, 32, True), SizeRule(32, 32, True)),
    ],
)
def test_of_what_is_stated_and_what_runs_the_stricter_counts(truth, stated, rule):
    assert found(Strict(**truth), stated) == rule


def test_a_model_of_one_size_alone_is_known_by_what_is_stated():
    class Fixed(Strict):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * self.head.weight.new_ones(1, 3, 40, 40)

    fixed = probe(
        Subject(Fixed().eval(), "a model"), None, (None, None, None, None), None, SizeRule(40, 1)
    ).static_shape
    assert fixed[2:] == (40, 40)


def test_a_model_that_draws_random_numbers_is_refused():
    class Noisy(Strict):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 0.01 * torch.randn_like(x))

    with pytest.raises(InputError, match=r"different output each time it runs on the same image .* draws random"):
        asvp_export.load(Noisy())


def test_a_model_of_square_images_is_exported_checked_and_run_on_any_picture(tmp_path):
    teacher = asvp_export.load(Strict(square=True, multiple=8))
    stated = Architecture(
        "Strict", "Restoration", "discouraged", supports_half=False, channels=3, scale=1, size=teacher.size
    )
    teacher = replace(teacher, architecture=stated)
    assert teacher.size == SizeRule(8, 8, True) and teacher.example().shape[-2] == teacher.example().shape[-1]
    file, pictures = tmp_path / "protected.onnx", save_pictures(tmp_path / "pictures", height=40, width=64)
    assert asvp_export.export(asvp_export.protect(teacher, "head", gain=1.02), file, images=pictures).passed
    assert asvp_export.check(teacher, file, images=pictures).passed
    picture = np.random.default_rng(0).random((33, 50, 3), dtype=np.float32)
    restored, notes = restore(file, picture), []
    assert restored.shape == picture.shape and np.abs(restored - picture).max() < 0.5
    assert restore(file, picture, tiling=Tiling(24, 8), note=notes.append).shape == picture.shape
    assert notes == ["The architecture looks at the whole image: tiles are discouraged."]
    assert "does not list Strict as safe in float16" in str(_half_notes(teacher, "fp16")) and not _half_notes(
        teacher, "fp32"
    )


def weights(folder: Path) -> Path:
    torch.save(nn.Conv2d(3, 3, 1).state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def test_without_spandrel_the_error_says_what_to_install_or_give(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"install asvp-export\[spandrel\].* or give --arch package\.module:factory"):
        asvp_export.load(weights(tmp_path))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import no_torchvision_here",
            r"lacks a package that it needs \(No module named 'no_torchvision_here'\): install that, or give",
        ),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "reinstall torchvision so that it fits PyTorch",
        ),
    ],
)
def test_a_spandrel_that_does_not_import_is_told_in_one_sentence(code, message, tmp_path, monkeypatch):
    (tmp_path / "spandrel.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    with pytest.raises(InputError, match=message) as caught:
        asvp_export.load(weights(tmp_path))
    assert "\n" not in str(caught.value)
