"""What forwards do that a trace at one size would lose, and what no trace survives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import asvp_export
from asvp_export.errors import InputError
from asvp_export.insertion.protected import to_onnx
from tests.helpers.teachers import save_pictures


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = nn.Linear(8, 8)
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * self.tail(self.inside(self.head(x)))

    def inside(self, y: torch.Tensor) -> torch.Tensor:
        return y


class Windows(Net):
    """Pads to windows of 8 x 8 if the size asks for it, sorts in each by a class that ties, has a learnt exponent."""

    def __init__(self) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor([0.7]))

    def inside(self, y: torch.Tensor) -> torch.Tensor:
        n, c, height, width = y.shape
        down, right = (-height) % 8, (-width) % 8
        if down or right:
            y = functional.pad(y, (0, right, 0, down))
        rows, columns = (height + down) // 8, (width + right) // 8
        tokens = y.view(n, c, rows, 8, columns, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, c)
        order = tokens[..., 0].sign().long().sort(dim=-1, stable=True).indices
        tokens = self.mix(tokens.gather(1, order[..., None].expand(-1, -1, c)).abs().pow(self.exponent.item()))
        y = tokens.view(n, rows, columns, 8, 8, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, height + down, width + right)
        return y[:, :, :height, :width]


class OneByOne(Net):
    def inside(self, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[i : i + 1].softmax(1) for i in range(y.shape[0])])


class Merging(Net):
    """Merges its branches into one kernel at every run."""

    def inside(self, y: torch.Tensor) -> torch.Tensor:
        self.mix.weight.data = self.mix.weight.data.clone()
        return self.mix(y.movedim(1, -1)).movedim(-1, 1)


def test_padding_to_windows_that_one_size_needs_and_another_does_not_is_exported(tmp_path):
    protected = asvp_export.protect(asvp_export.load(Windows()), "head", gain=1.02)
    pictures = save_pictures(tmp_path / "pictures", count=1, height=48, width=56)
    result = asvp_export.export(protected, tmp_path / "windows.onnx", images=pictures)  # 48x56, and an odd crop of it
    assert result.passed
    with pytest.raises(InputError, match=r"mix cannot carry the node: it returns .* windows or patches of each image"):
        asvp_export.protect(protected.teacher, "mix", gain=1.1)


def test_a_forward_that_fixes_the_batch_is_told_with_the_way_out():
    protected = asvp_export.protect(asvp_export.load(OneByOne()), "head", gain=1.1)
    with pytest.raises(
        InputError, match=r"forward fixes batch \(2\) while it is traced.*It exports with --static-batch"
    ):
        to_onnx(protected)


def test_a_forward_that_computes_its_weights_anew_is_refused():
    protected = asvp_export.protect(asvp_export.load(Merging()), "head", gain=1.1)
    with pytest.raises(InputError, match=r"recomputes 1 of its weights at each run \(mix\.weight\)"):
        to_onnx(protected)
