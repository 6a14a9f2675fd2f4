"""Listing the layers that can carry a node."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asvp_export.errors import InputError
from asvp_export.selection.select import select
from asvp_export.selection.survey import Layer, survey_layers
from asvp_export.teacher.load import load
from asvp_export.teacher.model import Teacher
from tests.helpers.survey_nets import (
    Call,
    Net,
    Zoo,
    channels_last,
    first_sample,
    refused,
    to_dict,
    to_grid,
    to_heads,
    to_integers,
    to_list,
    to_matrix,
    to_nan,
    to_nothing,
    to_number,
    to_pair,
    to_pooled,
    to_scalar,
    to_tokens,
    to_vector,
    to_windows,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def named(layers: list[Layer]) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers}


def test_layers_come_in_call_order_with_calls_shapes_and_costs(net: Teacher) -> None:
    layers, reasons = survey_layers(net)
    inside = ["conv1", "act", "conv2"]
    blocks = [f"body.{i}{part}" for i in (0, 1) for part in [*(f".{name}" for name in inside), ""]]
    assert [layer.name for layer in layers] == ["head", *blocks, "tail"]
    found = named(layers)
    assert (found["body.0.act"].type, found["body.0.act"].calls, found["body.0.conv1"].calls) == ("ReLU", 2, 1)
    assert found["body.0.act"].shape == (1, 8, 64, 96)
    assert found["tail"].shape == (1, 3, 64, 96)
    assert {layer.axis for layer in layers} == {1}
    assert all(layer.layer_ms > 0 and layer.node_ms > 0 for layer in layers)
    assert reasons == {
        "spare": "is never called in a forward",
        "body": "is a list of modules, which is never called itself",
    }
    assert not net.module.head._forward_hooks
    assert not net.module.head._forward_pre_hooks


def test_shares_and_ranks_are_those_of_the_singular_values(net: Teacher) -> None:
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        outputs.setdefault(name, output.clone())

    for name, module in net.module.named_modules():
        module.register_forward_hook(lambda _m, _i, y, name=name: keep(name, y))
    net.module(net.example())
    for layer in survey_layers(net)[0]:
        values = torch.linalg.svdvals(outputs[layer.name][0].double().flatten(1)) ** 2
        shares = values / values.sum()
        assert math.isclose(layer.leading_share, shares[0], rel_tol=1e-9)
        assert math.isclose(layer.effective_rank, math.exp(-(shares * shares.log()).nansum()), rel_tol=1e-6)
        assert 1 <= layer.effective_rank <= layer.shape[1]


def test_a_map_of_zeros_and_a_wide_map_have_a_share_and_a_rank() -> None:
    def zeros(y: torch.Tensor) -> torch.Tensor:
        return 0 * y

    def wide(y: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(y, (y.shape[2] // 32, y.shape[3] // 32))

    found = named(survey_layers(load(Zoo(zeros, wide, width=48)))[0])
    assert (found["side.zeros"].leading_share, found["side.zeros"].effective_rank) == (0.0, 0.0)
    assert found["side.wide"].shape == (1, 48, 2, 3)
    assert 1 <= found["side.wide"].effective_rank <= 6


@pytest.mark.parametrize(("function", "axis"), [(to_tokens, -1), (channels_last, -1), (torch.relu, 1), (torch.abs, 1)])
def test_the_channel_axis_is_observed(function: Any, axis: int) -> None:
    layers, _ = survey_layers(load(Zoo(function)))
    layer = named(layers)[f"side.{function.__name__}"]
    assert (layer.axis, layer.shape[axis]) == (axis, 6)


def test_sequences_with_channels_first_are_carried_on_axis_1() -> None:
    def flat(y: torch.Tensor) -> torch.Tensor:
        return y.flatten(2)

    assert named(survey_layers(load(Zoo(flat)))[0])["side.flat"].axis == 1


def test_tokens_of_a_map_padded_to_a_multiple_are_told_from_constants() -> None:
    def padded(y: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(y, (0, -y.shape[3] % 64, 0, -y.shape[2] % 64)).flatten(2).mT

    assert named(survey_layers(load(Zoo(padded)))[0])["side.padded"].axis == -1


def test_a_channel_count_equal_to_a_side_or_to_one_does_not_confuse() -> None:
    def one(y: torch.Tensor) -> torch.Tensor:
        return y.mean(1, keepdim=True)

    found = named(survey_layers(load(Zoo(one, channels_last, width=64)))[0])
    assert found["head"].shape == (1, 64, 64, 96)
    assert (found["head"].axis, found["side.one"].axis, found["side.channels_last"].axis) == (1, 1, -1)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (to_pair, "returns a tuple of 2, not one tensor"),
        (to_list, "returns a list of 1, not one tensor"),
        (to_dict, "returns a dict of 1, not one tensor"),
        (to_nothing, "returns nothing"),
        (to_number, "returns a int, not one tensor"),
        (to_scalar, r"returns a 0-D tensor \(no dimensions\)"),
        (to_vector, r"returns a 1-D tensor \(6\)"),
        (to_matrix, r"returns a 2-D tensor \(1x6\), not a feature map"),
        (to_pooled, "returns 1x6x1x1 at every image size: there is no spatial axis"),
        (to_grid, "returns 1x6x7x7 at every image size"),
        (to_integers, "returns int64 numbers"),
        (to_windows, r"returns 96x64x6, 96 windows or patches of each image on the batch axis"),
        (first_sample, "whose first axis is not the batch"),
        (to_heads, "1x2x3x64x96, in which more than one axis stays .* the channel axis is not clear"),
    ],
)
def test_an_output_that_cannot_carry_the_node_is_refused_by_name_with_a_reason(function: Any, reason: str) -> None:
    teacher = load(Zoo(function))
    layers, reasons = survey_layers(teacher)
    assert [layer.name for layer in layers] == ["head", "tail"]
    refused(teacher, [f"side.{function.__name__}"], reason)
    assert re.search(reason, reasons[f"side.{function.__name__}"])


def test_a_map_that_is_not_finite_is_refused() -> None:
    layers, reasons = survey_layers(load(Zoo(to_nan)))
    assert [layer.name for layer in layers] == ["head", "tail"]
    assert reasons["side.to_nan"] == "returns NaN or Inf for the example image"


def test_a_module_whose_calls_differ_is_refused() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.twist = Call(lambda y, last: channels_last(y) if last else y)
            self.often = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            self.twist(y, False), self.twist(y, True)
            for _ in range(1 + x.shape[2] // 100):
                y = self.often(y)
            return y

    layers, reasons = survey_layers(load(Changing()))
    assert [layer.name for layer in layers] == ["conv"]
    assert reasons["twist"] == "returns its channels on another axis at another call"
    assert reasons["often"] == "is called 1 times at one image size and 2 times at another"


def test_size_rules_are_kept(net: Teacher) -> None:
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 9, 32, stride=32)
            self.up = nn.ConvTranspose2d(9, 3, 32, stride=32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.down(x))

    found = named(survey_layers(load(Down()))[0])
    assert (found["down"].axis, found["down"].shape) == (1, (1, 9, 2, 3))


def test_a_layer_is_a_frozen_value() -> None:
    layer = Layer("a", "Conv2d", 1, (1, 2, 3, 4), 1, 0.5, 1.5, 1.0, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.axis = 2


def test_a_teacher_that_fails_later_is_reported(net: Teacher) -> None:
    net.module.register_forward_pre_hook(lambda _m, _i: 1 / 0)
    with pytest.raises(InputError, match=r"Net fails on an image of 1x3x64x96: ZeroDivisionError"):
        survey_layers(net)


# torch.export archives


def exported(path: Path, module: nn.Module, shape: tuple[int, ...], dynamic: bool) -> Teacher:
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO) if dynamic else {}
    program = torch.export.export(module.eval(), (torch.rand(shape),), dynamic_shapes=(free,))
    torch.export.save(program, path)
    return load(path)


def test_a_dynamic_archive_lists_the_modules_that_were_exported(tmp_path: Path) -> None:
    teacher = exported(tmp_path / "m.pt2", Net(), (2, 3, 32, 40), dynamic=True)
    found = named(survey_layers(teacher)[0])
    assert {name: layer.type for name, layer in found.items() if "body.0" in name} == {
        "body.0.conv1": "Conv2d",
        "body.0.act": "ReLU",
        "body.0.conv2": "Conv2d",
        "body.0": "Block",
    }
    assert found["body.0.act"].calls == 2
    assert found["head"].shape == (1, 8, 64, 96)
    assert list(select(teacher, ["**.conv2"])) == ["body.0.conv2", "body.1.conv2"]


@pytest.mark.parametrize("size", [(24, 40), (32, 32)])
def test_a_static_archive_has_its_layout_inferred(tmp_path: Path, size: tuple[int, int]) -> None:
    module = Zoo(to_tokens, torch.relu, to_matrix, to_pooled, to_windows, width=6)
    teacher = exported(tmp_path / "m.pt2", module, (2, 3, *size), dynamic=False)
    found = named(survey_layers(teacher)[0])
    assert found["head"].shape == (2, 6, *size)
    assert (found["head"].axis, found["tail"].axis) == (1, 1)
    if "side.to_tokens" in found:  # the exporter drops branches that lead nowhere
        assert found["side.to_tokens"].axis == -1


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 6, 24, 40), 1),
        ((1, 24, 40, 6), -1),
        ((1, 12, 20, 6), -1),
        ((1, 64, 12, 20), 1),
        ((1, 960, 6), -1),
        ((1, 6, 240), 1),
        ((1, 6, 1, 1), "no spatial axis"),
        ((1, 5, 7), "not clear"),
        ((4, 6, 12, 20), "windows or patches"),
        ((1, 2, 3, 24, 40), "not clear"),
    ],
)
def test_a_layout_that_cannot_be_observed_is_inferred_from_the_images_shape(
    shape: tuple[int, ...], axis: int | str
) -> None:
    from asvp_export.selection.axes import inferred_axis

    verdict = inferred_axis(shape, 1, (24, 40))
    assert verdict == axis if isinstance(axis, int) else axis in str(verdict)
