"""The gain that rounding allows, the residual that compensation allows, layers by their spectra, and bad options."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import asvp_export
from asvp_export.errors import InputError
from asvp_export.insertion.apply import apply
from asvp_export.insertion.protected import insert
from asvp_export.operator import Perturbation
from asvp_export.options import ProtectOptions
from asvp_export.parity.expected import least_of
from asvp_export.plan.exposure import FULL_DB, LEAST
from asvp_export.plan.protection import check_protect_options
from tests.helpers.commands import call, complaint
from tests.helpers.graphs import legacy
from tests.helpers.teachers import ROOT, example, recurrent, save_pictures
from tests.helpers.two_gains import decibels, maps_of

LAYERS = "body.3,after_body"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 2, 40, 48)


@pytest.fixture(scope="module")
def derain() -> asvp_export.Teacher:
    return example("derain")


# float32


def test_an_automatic_gain_is_the_largest_that_is_allowed(derain, pictures):
    protected = asvp_export.protect(derain, LAYERS, images=pictures)
    assert {(node.gain, node.residual_gain) for node in protected.nodes.values()} == {(100.0, 1.0)}
    assert protected.plan and protected.plan.verified_psnr and protected.plan.verified_psnr >= FULL_DB
    assert all("the largest gain, 100" in layer.stopped_by for layer in protected.plan.layers)
    assert all(layer.strength and layer.strength > 0.3 for layer in protected.plan.layers), "of the exposed map"


def test_a_smaller_limit_is_kept(derain, pictures):
    protected = asvp_export.protect(derain, LAYERS, max_gain=7.5, images=pictures)
    assert {node.gain for node in protected.nodes.values()} == {7.5}


def test_beyond_what_rounding_allows_the_gain_leaves_80_decibels(derain, pictures):
    protected = asvp_export.protect(derain, "body.*", max_gain=1e7, images=pictures)
    (gain,) = {node.gain for node in protected.nodes.values()}
    assert 1000 < gain < 1e7 and least_of(protected) >= FULL_DB
    assert all("rounding" in layer.stopped_by for layer in protected.plan.layers)
    image = derain.example()
    assert decibels(protected(image), derain.module(image).detach()) >= FULL_DB


def test_a_wanted_residual_is_kept_while_the_gain_is_chosen(derain, pictures):
    protected = asvp_export.protect(derain, LAYERS, residual=3.0, images=pictures)
    assert {(node.gain, node.residual_gain) for node in protected.nodes.values()} == {(100.0, 3.0)}
    one = insert(derain, {name: Perturbation(1, 3.0) for name in protected.nodes})
    image = derain.example()
    assert decibels(protected(image), one(image)) >= FULL_DB


# float16


@pytest.fixture(scope="module")
def half(derain, pictures) -> asvp_export.Protected:
    return asvp_export.protect(derain, LAYERS, max_gain=1e5, dtype="fp16", images=pictures)


def test_in_float16_the_gain_is_the_largest_that_clears_the_gates(half, pictures, tmp_path):
    """80 dB are beyond the type, whatever the gain; 49 of preservation and 51 of fidelity are not."""
    (gain,) = {node.gain for node in half.nodes.values()}
    assert LEAST < gain < 1e5
    result = asvp_export.export(half, tmp_path / "p.onnx", images=pictures, dtype="fp16")
    assert result.passed and result.fidelity and result.fidelity.threshold == 50
    assert 50 <= result.fidelity.min_psnr < 62, "not a gain far below what the gate allows"


def test_a_gain_of_100_is_kept_in_float16_where_the_gates_allow_it(derain, pictures):
    protected = asvp_export.protect(derain, "after_body", dtype="fp16", images=pictures)
    assert protected.nodes["after_body"] == Perturbation(1, 100.0, residual=1.0)


def test_where_float16_leaves_no_gain_the_message_names_a_layer_and_what_to_do(derain, pictures):
    with pytest.raises(InputError) as refused:
        asvp_export.protect(derain, LAYERS, dtype="fp16", min_psnr=90.0, images=pictures)
    found = re.fullmatch(
        r"No exposed gain of 1\.5 or more survives the rounding of float16: at 1\.5 the worst input has ([\d.]+) dB "
        r"and 91 dB are needed; (body\.3|after_body) costs most \(([\d.]+) dB alone\)\. Leave that layer out, "
        r"export with --dtype fp32, or give --gain\.",
        str(refused.value),
    )
    assert found and float(found[1]) < 91 and float(found[3]) < 91


class Loud(torch.nn.Module):
    """A map of 35000 to 50000 inside, which float16 holds; one and a half of that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 3, 1)
        self.head.weight.data = 5000 * torch.ones(8, 3, 1, 1)
        self.head.bias.data = torch.full((8,), 35000.0)
        self.tail.weight.data.mul_(1e-4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.tail(self.head(x))


def test_a_map_that_overflows_float16_when_amplified_is_refused_by_name(pictures):
    torch.manual_seed(0)
    teacher = asvp_export.load(Loud())
    with pytest.raises(InputError, match=r"rounding of float16.*; head costs most .*--dtype fp32"):
        asvp_export.protect(teacher, "head", dtype="fp16", min_psnr=30.0, images=pictures)
    assert asvp_export.protect(teacher, "head", images=pictures).nodes["head"].gain == 100.0


def test_a_graph_is_searched_in_float16_too(pictures, tmp_path):
    torch.manual_seed(0)
    legacy(tmp_path / "r.onnx", recurrent())
    teacher = asvp_export.load(tmp_path / "r.onnx")
    protected = asvp_export.protect(teacher, "/head/Conv", max_gain=1e5, dtype="fp16", images=pictures)
    assert LEAST < protected.nodes["/head/Conv"].gain < 1e5
    assert asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, dtype="fp16").passed


# A residual that compensation allows


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Five photographs to fit on; two of the others to verify on."""
    root = tmp_path_factory.mktemp("plan")
    found = save_pictures(root / "all", 7, 56, 72)
    (root / "verify").mkdir()
    for path in sorted(found.iterdir())[:2]:
        path.rename(root / "verify" / path.name)
    return {"images": root / "all", "verify_images": root / "verify"}


@pytest.fixture(scope="module")
def solved(derain, folders) -> asvp_export.Protected:
    options = {"residual": "auto", "compensate": "solve", "min_psnr": 42.0}
    return asvp_export.protect(derain, "after_body", **options, **folders)


def test_with_compensation_the_exposed_gain_is_full_and_the_residual_what_the_tolerance_allows(solved):
    node = solved.nodes["after_body"]
    assert node.gain == 100.0 and 1.001 < node.residual_gain < 100
    assert solved.plan and solved.plan.weights and solved.plan.nodes == solved.nodes
    (layer,) = solved.plan.layers
    assert re.search(r"exposed: the largest gain, 100; residual: the tolerance", layer.stopped_by)
    assert 42.0 <= solved.plan.verified_psnr < 50, "and not far more than was asked for"


def test_no_map_behind_a_compensated_layer_is_the_clean_one(solved, derain):
    """Neither the exposed nor the residual map, nor a multiple of these."""
    ((_, clean, exposed, residual),) = maps_of(solved, derain.example())
    for behind in (exposed, residual):
        scale = (clean * behind).sum() / behind.square().sum()
        assert (scale * behind - clean).norm() > 1e-3 * clean.norm()
        assert (behind - clean).norm() > 1e-2 * clean.norm()


def test_without_its_nodes_a_compensated_graph_is_not_the_original(solved, derain, folders):
    image = derain.example()
    bare = insert(derain, {}, solved.weights)
    wanted = derain.module(image).detach()
    assert decibels(bare(image), wanted) < decibels(solved(image), wanted) - 3


def test_a_compensated_file_keeps_the_tolerance(solved, folders, tmp_path):
    result = asvp_export.export(solved, tmp_path / "p.onnx", images=folders["verify_images"], min_psnr=42.0)
    assert result.passed and result.preservation.min_psnr >= 42.0
    node = solved.nodes["after_body"]
    (found,) = asvp_export.inspect(tmp_path / "p.onnx")["nodes"]
    assert math.isclose(found["gain"], 100.0) and math.isclose(found["residual"], node.residual_gain, rel_tol=1e-6)


def test_a_compensated_plan_is_applied_as_it_was_made(solved, derain, tmp_path):
    solved.plan.save(tmp_path / "p.plan.json")
    again = apply(derain, asvp_export.Plan.load(tmp_path / "p.plan.json"))
    assert again.nodes == solved.nodes
    image = derain.example()
    assert torch.equal(again(image), solved(image))


# Layers by their spectra


@pytest.mark.parametrize("original", ["module", "onnx"])
def test_layers_are_chosen_by_their_spectra_in_modules_and_graphs(original, derain, pictures, tmp_path):
    teacher = derain
    if original == "onnx":
        legacy(tmp_path / "d.onnx", derain.module)
        teacher = asvp_export.load(tmp_path / "d.onnx")
    protected = asvp_export.protect(teacher, "auto:3", images=pictures)
    assert protected.plan and len(protected.nodes) == 3
    ranking = protected.plan.ranking
    assert {one.name for one in ranking if one.chosen} == set(protected.nodes)
    values = [one.value for one in ranking]
    assert values == sorted(values, reverse=True)
    assert all(one.value >= 0.75 * min(values[:3]) for one in ranking if one.chosen)
    assert all(one.cost is not None and 0 < one.cost < 0.2 and 0 <= one.strength < 1 for one in ranking)
    assert {(node.gain, node.residual_gain) for node in protected.nodes.values()} == {(100.0, 1.0)}
    assert protected.plan.as_dict()["ranking"][0]["cost"] == ranking[0].cost


def test_the_layers_that_are_chosen_lie_in_each_third_of_a_forward(derain, pictures):
    forward = list(asvp_export.protect(derain, "**", gain=2.0).nodes)
    chosen = asvp_export.protect(derain, "auto:3", images=pictures).nodes
    places = sorted((forward.index(layer) + 1) / len(forward) for layer in chosen)
    assert places[0] < 1 / 3 <= places[1] < 2 / 3 <= places[2]


def test_the_choice_of_layers_repeats(derain, pictures):
    first, second = (asvp_export.protect(derain, "auto:2", images=pictures) for _ in range(2))
    assert first.nodes == second.nodes and first.plan.ranking == second.plan.ranking


# Bad input

BAD = {
    "a gain below the residual": ({"gain": 2.0, "residual": 3.0}, r"residual gain is 3\.0 and the gain is 2"),
    "a residual below 1": ({"gain": 2.0, "residual": 0.5}, r"residual gain is 0\.5 .* from 1 to the gain was expected"),
    "a residual of NaN": ({"gain": 2.0, "residual": "nan"}, "residual gain is nan"),
    "a residual of text": ({"residual": "some"}, "'some'"),
    "an automatic residual without compensation": (
        {"residual": "auto"},
        "--residual auto was asked for without compensation; .*--compensate solve",
    ),
    "compensation beside a number": (
        {"residual": 2.0, "compensate": "solve"},
        "Compensation was asked for with a residual gain of 2",
    ),
    "an energy below 1": ({"gain": 2.0, "energy": 0.9}, "an energy below 1 needs .*--residual gain"),
    "an energy below 1, automatic gain": ({"energy": 0.9}, "an energy below 1 needs .*--residual gain"),
    "an energy below 1, compensated": (
        {"energy": 0.9, "compensate": "solve"},
        "an energy below 1 needs .*--residual gain",
    ),
    "a largest gain of 1": ({"max_gain": 1.0}, "max gain 1 was asked for|--max-gain.*1.0 is not in the range x>1"),
}


@pytest.mark.parametrize("case", BAD)
def test_wishes_that_do_not_go_together_are_refused(case, derain):
    options, expected = BAD[case]
    options = {name: float("nan") if value == "nan" else value for name, value in options.items()}
    with pytest.raises(InputError, match=expected):
        asvp_export.protect(derain, "after_body", **options)


@pytest.mark.parametrize("case", BAD)
def test_the_command_line_says_so_in_a_sentence_before_it_loads_anything(case, tmp_path):
    options, expected = BAD[case]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    model = ROOT / "examples" / "teachers" / "derain.safetensors"
    answer = call(model, "--layers=after_body", f"--output={tmp_path / 'p.onnx'}", *options)
    assert re.search(expected, complaint(answer)) and "loading" not in answer.err
    assert not list(tmp_path.iterdir())


def test_a_residual_without_layers_is_refused(derain):
    with pytest.raises(InputError, match=r"residual gain of 1\.0 was asked for, and no layer is protected"):
        asvp_export.protect(derain, "none", residual=1.0)
    assert not asvp_export.protect(derain, "none").nodes


def test_an_energy_below_1_goes_with_a_residual_of_gain(derain):
    node = asvp_export.protect(derain, "after_body", gain=2.0, energy=0.9, residual="gain").nodes["after_body"]
    assert (node.energy, node.residual_gain, node.inverse) == (0.9, 2.0, None)
    assert check_protect_options(ProtectOptions(energy=0.9, residual="gain")).calibrated


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"gain": 2.0, "residual": 2.5}, "residual"),
        ({"gain": 2.0, "residual": math.nan}, "residual"),
        ({"gain": 2.0, "residual": math.inf}, "residual"),
        ({"gain": 2.0, "residual": "1"}, "residual"),
        ({"gain": 2.0, "residual": 1.0, "energy": 0.5}, "energy"),
    ],
)
def test_a_value_that_cannot_be_is_refused_when_it_is_made(options, expected):
    with pytest.raises(InputError, match=f"The {expected}"):
        Perturbation(**options)
