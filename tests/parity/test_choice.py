"""What a verification compares by default follows from the model's cost in multiply-adds; the report says it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import asvp_export
from asvp_export.images import list_images, photographs
from asvp_export.parity.cases import Case
from asvp_export.parity.choice import BUDGET, Comparison, RequestedInputs, same_inputs, verification_inputs
from asvp_export.teacher.cost import multiply_adds
from tests.helpers.graphs import legacy
from tests.helpers.teachers import recurrent, save_pictures


class Wide(nn.Module):
    """Three convolutions of 3 x 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def wide(width: int) -> asvp_export.Teacher:
    torch.manual_seed(0)
    return asvp_export.load(Wide(width))


def hand_count(width: int) -> int:
    """Multiply-adds of a `Wide` for each pixel."""
    return 9 * (3 * width + width * width + width * 3)


SMALL, LARGE, HUGE = 8, 230, 480


@pytest.fixture(scope="module")
def teachers() -> dict[int, asvp_export.Teacher]:
    return {width: wide(width) for width in (SMALL, LARGE, HUGE)}


def chosen(teacher: asvp_export.Teacher, **asked) -> tuple[list[Case], Comparison]:
    return verification_inputs(teacher, RequestedInputs(**asked), teacher.size, teacher.static_shape)


def pictures_in(cases: Sequence[Case]) -> set[str]:
    return {name for case in cases for name in case.name.split(" + ")}


def sizes_of(cases: Sequence[Case]) -> set[tuple[int, int]]:
    return {(case.height, case.width) for case in cases}


OWN = [path.name for path in list_images(photographs("verify"))]
SCENES = {name.rpartition("_")[0] for name in OWN}


# How much is compared


def test_the_projects_own_photographs_are_two_of_each_of_four_scenes():
    assert len(OWN) == 8 and len(SCENES) == 4


def test_a_small_model_is_compared_on_every_photograph_whole(teachers):
    cases, told = chosen(teachers[SMALL])
    assert pictures_in(cases) == set(OWN) and (256, 256) in sizes_of(cases)
    assert told.images == 8 and told.inputs == len(cases) and told.reason == "all of the default photographs"


@pytest.mark.parametrize("width", [LARGE, HUGE])
def test_an_expensive_model_is_compared_on_one_photograph_of_each_scene_and_smaller(width, teachers):
    cases, told = chosen(teachers[width])
    assert {name.rpartition("_")[0] for name in pictures_in(cases)} == SCENES and len(pictures_in(cases)) == 4
    assert max(max(size) for size in sizes_of(cases)) < 256
    assert told.images == 4 and "--thorough takes all 8, whole" in told.reason and "60e9" in told.reason


@pytest.mark.parametrize("width", [SMALL, LARGE, HUGE])
def test_however_much_it_costs_there_are_two_sizes_an_odd_one_and_a_batch(width, teachers):
    cases, _ = chosen(teachers[width])
    assert len(sizes_of(cases)) >= 2
    assert any(height % 2 and width % 2 and height != width for height, width in sizes_of(cases))
    assert [case.batch for case in cases if case.batch != 1] == [2]
    for picture in pictures_in(cases):
        assert len({case.size for case in cases if case.name == picture}) >= 2


def test_what_fits_the_budget_keeps_it_and_beyond_it_the_least_set_is_taken(teachers):
    _, large = chosen(teachers[LARGE])
    assert BUDGET / 4 < large.multiply_adds <= BUDGET
    cases, huge = chosen(teachers[HUGE])
    assert huge.multiply_adds > BUDGET and max(sizes_of(cases)) == (64, 64)


def test_thorough_lifts_the_budget(teachers):
    cases, told = chosen(teachers[HUGE], thorough=True)
    assert pictures_in(cases) == set(OWN) and (256, 256) in sizes_of(cases) and told.images == 8
    assert told.multiply_adds > 10 * BUDGET


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 6, 120, 161)


def test_images_that_are_named_are_all_used_whatever_they_cost(teachers, named):
    cases, told = chosen(teachers[HUGE], images=named)
    assert pictures_in(cases) == {path.name for path in list_images(named)} and len(pictures_in(cases)) == 6
    assert (120, 161) in sizes_of(cases), "whole"
    assert told.images == 6 and told.reason == "all that were named"


def test_sizes_that_are_named_are_all_used_whatever_they_cost(teachers):
    cases, _ = chosen(teachers[HUGE], sizes=[(250, 250), (33, 47), (128, 96)])
    assert sizes_of(cases) == {(250, 250), (33, 47), (128, 96)}
    assert {name.rpartition("_")[0] for name in pictures_in(cases)} == SCENES


def test_images_and_sizes_that_are_named_together_are_all_used(teachers, named):
    cases, _ = chosen(teachers[HUGE], images=named, sizes=[(64, 64)])
    assert (64, 64) in sizes_of(cases) and len(sizes_of(cases)) == 2 and len(pictures_in(cases)) == 6


def test_the_choice_is_counted_and_repeats(teachers):
    (first, told), (second, again) = chosen(teachers[LARGE]), chosen(wide(LARGE))
    assert told == again and same_inputs(first, second)


def to_onnx_file(path: Path, module: nn.Module, free: bool = True, side: int = 32) -> Path:
    axes = {"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n"}} if free else None
    return legacy(path, module, sample=(1, 3, side, side), free=axes)


def test_a_graph_is_compared_on_what_its_module_is(teachers, tmp_path):
    teacher = asvp_export.load(to_onnx_file(tmp_path / "w.onnx", teachers[LARGE].module))
    (cases, told), (_, of_module) = chosen(teacher), chosen(teachers[LARGE])
    assert told == of_module and len(pictures_in(cases)) == 4


def test_an_expensive_model_of_one_size_is_compared_at_that_size(tmp_path):
    """Four scenes at its size are over the budget, and there is no smaller crop to try."""
    teacher = asvp_export.load(to_onnx_file(tmp_path / "w.onnx", Wide(330), free=False, side=128))
    cases, told = chosen(teacher)
    assert sizes_of(cases) == {(128, 128)} and told.images == 4 and told.multiply_adds > BUDGET
    assert chosen(teacher, thorough=True)[1].images == 8


# The count


@pytest.mark.parametrize("width", [SMALL, LARGE])
def test_the_multiply_adds_of_convolutions_are_those_of_a_hand_count(width, teachers, tmp_path):
    assert multiply_adds(teachers[width]) == hand_count(width)
    graph = asvp_export.load(to_onnx_file(tmp_path / "w.onnx", teachers[width].module))
    assert multiply_adds(graph) == hand_count(width)


def test_what_is_told_of_the_cost_is_the_sum_over_the_inputs(teachers):
    cases, told = chosen(teachers[SMALL])
    pixels = [case.batch * case.input.shape[-2] * case.input.shape[-1] for case in cases]
    assert (
        told.multiply_adds == hand_count(SMALL) * sum(pixels)
        and told.first_multiply_adds == hand_count(SMALL) * pixels[0]
    )


class Mixed(nn.Module):
    """Strided, grouped and transposed convolutions, and a linear layer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 4, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.tokens = nn.Linear(8, 12)
        self.up = nn.ConvTranspose2d(12, 3, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.grouped(self.down(x))
        return x + self.up(self.tokens(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


MIXED = (8 * 3 * 16 + 8 * 2 * 9 + 8 * 12 + 12 * 3 * 16) / 4  # a quarter of the pixels, also where `up` reads


@pytest.mark.parametrize("original", ["module", "onnx"])
def test_strides_groups_transposed_kernels_and_linear_layers_are_counted(original, tmp_path):
    torch.manual_seed(0)
    module = Mixed().eval()
    teacher = asvp_export.load(module if original == "module" else to_onnx_file(tmp_path / "m.onnx", module))
    assert multiply_adds(teacher) == MIXED


def test_a_layer_that_is_called_again_counts_again():
    assert multiply_adds(asvp_export.load(recurrent())) == 9 * (3 * 8 + 3 * 8 * 8 + 8 * 3)


# What is said of it


def test_the_report_says_what_was_compared(named, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    for path in list_images(named)[:2]:
        (two / path.name).write_bytes(path.read_bytes())
    teacher = asvp_export.load(recurrent())
    lines: list[str] = []
    protected = asvp_export.protect(teacher, "head", gain=100.0)
    result = asvp_export.export(protected, tmp_path / "p.onnx", images=two, progress=lines.append)
    assert result.passed
    compared, scores = result.as_dict()["compared"], result.preservation.per_image
    assert isinstance(compared, dict)
    ran = {(one.name, one.size) for one in scores}
    assert compared["inputs"] == len(ran) == 5 and compared["images"] == 2
    assert set(compared["sizes"]) == {one.size for one in scores}
    assert compared["reason"] == "all that were named"
    assert result.comparison and compared["multiply_adds"] == result.comparison.multiply_adds
    assert any("5 inputs from 2 images" in line for line in lines)
    again = asvp_export.check(teacher, tmp_path / "p.onnx", images=two)
    assert again.as_dict()["compared"] == compared


def test_original_and_protected_module_run_once_an_input_and_not_once_a_gate(named, tmp_path):
    """Counted by the module itself, whose hooks a protected copy has too."""
    calls: list[tuple[int, ...]] = []
    module = recurrent()
    module.register_forward_hook(lambda m, inputs, output: calls.append(tuple(inputs[0].shape[2:])))
    protected = asvp_export.protect(asvp_export.load(module), "head", images=named)
    assert calls.count((120, 161)) == 2 * 7, "six pictures and a batch, in both"
    result = asvp_export.export(protected, tmp_path / "p.onnx", images=named)
    assert result.passed and result.execution_paths == ("function", "library")
    assert calls.count((120, 161)) == 2 * 7, "what was run to find the gain is not run again"
