"""What running a model shows of it: size rule, scale, batch, outputs; and the example images."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from asvp_export.signature import SizeRule
from asvp_export.teacher.load import load
from asvp_export.teacher.model import Teacher, natural_images
from tests.helpers.loading import Residual, Returns, Unet, exported, refused

pytestmark = pytest.mark.usefixtures("one_thread")


class Shuffle(nn.Module):
    """PixelUnshuffle by 2, then PixelShuffle by 2 * scale."""

    def __init__(self, scale: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12 * scale**2, 3, padding=1)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(self.conv(functional.pixel_unshuffle(x, 2)), 2 * self.scale)


def at_least_81(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    assert min(x.shape[2:]) >= 81
    return y


@pytest.mark.parametrize(
    ("module", "scale", "size"),
    [
        (Residual(), 1, SizeRule(1, 1)),
        (Shuffle(), 1, SizeRule(2, 2)),
        (Shuffle(2), 2, SizeRule(2, 2)),
        (Unet(1), 1, SizeRule(2, 2)),
        (Unet(3), 1, SizeRule(8, 8)),
        (Unet(5), 1, SizeRule(32, 32)),
        (nn.Sequential(nn.Conv2d(3, 27, 3, padding=1), nn.PixelShuffle(3)), 3, SizeRule(1, 1)),
        (nn.Sequential(nn.ReflectionPad2d(7), nn.Conv2d(3, 3, 15)), 1, SizeRule(8, 1)),
        (nn.Sequential(nn.ReflectionPad2d(40), nn.Conv2d(3, 3, 81)), 1, SizeRule(41, 1)),
        (Returns(at_least_81), 1, SizeRule(81, 1)),
        (
            nn.Sequential(nn.PixelUnshuffle(4), nn.ReflectionPad2d(3), nn.Conv2d(48, 48, 7), nn.PixelShuffle(4)),
            1,
            SizeRule(16, 4),
        ),
        (nn.Sequential(nn.PixelUnshuffle(7), nn.Conv2d(147, 147, 1), nn.PixelShuffle(7)), 1, SizeRule(7, 7)),
        (nn.Sequential(nn.PixelUnshuffle(6), nn.Conv2d(108, 108, 1), nn.PixelShuffle(6)), 1, SizeRule(6, 6)),
        (nn.Sequential(nn.Conv2d(3, 3, 2, stride=2), nn.Upsample(scale_factor=2)), 1, SizeRule(2, 2)),  # crops
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ConvTranspose2d(3, 1, 3)), 1, SizeRule(3, 1)),  # one channel comes out
    ],
)
def test_size_rule_and_scale_are_found(module: nn.Module, scale: int, size: SizeRule) -> None:
    teacher = load(module)
    assert (teacher.scale, teacher.size) == (scale, size)
    for height, width in [(size.fit(size.minimum), size.fit(size.minimum + 1)), (size.fit(70), size.fit(97))]:
        image = teacher.example(height, width, batch=2)
        assert teacher.module(image).shape[2:] == (scale * height, scale * width)


def fits_only_one(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.reshape(1, 3, *x.shape[2:])


@pytest.mark.parametrize("function", [fits_only_one, lambda y, x: y.mean(0, keepdim=True)])
def test_a_model_for_one_image_at_a_time_has_its_batch_frozen(function: Any) -> None:
    teacher = load(Returns(function))
    assert teacher.static_shape == (1, None, None, None)
    assert teacher.example(batch=2).shape[0] == 1


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda y, x: None, "gives no tensor for 1x3x49x51, which is not an image batch"),
        (lambda y, x: {"mean": y.mean(), "text": "a"}, "gives no dimensions float32 for"),
        (lambda y, x: y.mean(), "gives no dimensions float32 for"),
        (lambda y, x: y.mean((2, 3)), "gives 1x3 float32 for"),
        (lambda y, x: (255 * y).byte(), "gives 1x3x49x51 uint8 for"),
        (lambda y, x: y.argmax(1, keepdim=True), "gives 1x1x49x51 int64 for"),
        (lambda y, x: torch.cat([y, y]), "gives 2x3x49x51 float32 for 1x3x49x51, which is not an image batch"),
        (lambda y, x: y[:, :, :7], "takes none of the sizes.*not a whole scale"),
        (lambda y, x: y / 0, "has NaN or Inf for an ordinary image"),
    ],
)
def test_an_output_that_is_no_image_batch_is_refused(function: Any, match: str) -> None:
    torch.manual_seed(0)
    module = Returns(function)
    module.__deepcopy__ = lambda memo: module  # lambdas copy, but keep the same one
    refused(match, module)


def test_a_model_that_always_fails_is_refused_with_its_own_error() -> None:
    def fail(_y: torch.Tensor, _x: torch.Tensor) -> None:
        raise KeyError("mask\nand more")

    refused("takes none of the sizes.*KeyError", Returns(fail))
    refused("expected input.* to have 5 channels, but got 3", Returns(lambda y, x: y, channels=5))
    refused("takes none of the sizes.*TypeError", Returns(lambda y, x: y + "mask"))


def test_a_static_archive_that_fails_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Upsample(size=(12, 40)))
    refused("own size 24x40: the output for 24x40 has 12x40 pixels", exported(tmp_path / "m.pt2", module))
    assert load(exported(tmp_path / "half.pt2", nn.Conv2d(3, 3, 3, 2, 1))).scale == Fraction(1, 2)


def test_the_example_is_deterministic_and_touches_no_global_state() -> None:
    teacher = load(Unet(3), data_range=255.0)
    before = torch.get_rng_state()
    first, second = teacher.example(50, 61, batch=2), teacher.example(50, 61, batch=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second)
    assert first.shape == (2, 3, 56, 64)  # rounded up to the multiple
    assert first.dtype == torch.float32
    assert not torch.equal(first[0], first[1])
    assert teacher.example().shape == (1, 3, 64, 96)
    assert 0 <= first.min() < 40
    assert 215 < first.max() <= 255


def test_the_example_has_the_statistics_of_a_photograph() -> None:
    image = natural_images(1, 3, 96, 128)
    assert 0.3 < image.mean() < 0.7
    assert image.std() > 0.1
    neighbours = torch.corrcoef(torch.stack([image[..., 1:].flatten(), image[..., :-1].flatten()]))[0, 1]
    assert neighbours > 0.9
    channels = torch.corrcoef(image[0].flatten(1))
    assert channels.min() > 0.6
    for height, width in [(1, 1), (1, 9), (2, 2), (7, 3)]:
        assert torch.isfinite(natural_images(2, 3, height, width)).all()


def test_a_size_rule_rounds_up() -> None:
    rule = SizeRule(minimum=24, multiple=8)
    assert [rule.fit(size) for size in (1, 24, 25, 32)] == [24, 24, 32, 32]
    assert rule.fit_both(20, 30) == (24, 32) and SizeRule(8, 8, square=True).fit_both(20, 30) == (32, 32)
    assert rule.stricter(SizeRule(10, 3)) == SizeRule(24, 24)


def test_a_teacher_is_a_frozen_value() -> None:
    assert dataclasses.is_dataclass(Teacher)
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(Residual()).scale = 3
