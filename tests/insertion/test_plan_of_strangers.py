"""A plan, and the weights beside it, can come from anyone: what no export wrote is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import asvp_export
from asvp_export.errors import InputError
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan, PlannedLayer, RankedLayer
from asvp_export.operator import Perturbation
from asvp_export.teacher.model import Teacher
from tests.helpers.commands import call, complaint
from tests.helpers.teachers import example, weights

LAYER = "after_body"
WEIGHT = "tail.0.bias"  # of 12 values


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return example("derain")


@pytest.fixture
def path(teacher, tmp_path) -> Path:
    """A plan with weights, as an export keeps it."""
    bias = teacher.module.state_dict()[WEIGHT].clone()
    layer = PlannedLayer(LAYER, Perturbation(2, 3.0, residual=1.5), 0.25, None, "the tolerance", (WEIGHT,))
    Plan(
        source_sha256=teacher.sha256,
        layers=(layer,),
        min_psnr=48.0,
        compensate="solve",
        held_out_psnr=50.0,
        verified_psnr=49.5,
        uncompensated_psnr=40.0,
        calibration={"photographs": 1, "crops": 2, "held_out": 1, "passes": 9},
        ridges={WEIGHT: 1e-6},
        ranking=(RankedLayer(LAYER, 2, 3.0, 0.25, True, True, 0.01, 0.2), RankedLayer("body.0", 1, 1.5, 0.1, False)),
        weights={WEIGHT: bias},
    ).save(tmp_path / "p.plan.json")
    return tmp_path / "p.plan.json"


def test_a_plan_reads_back_as_it_was_saved(path, teacher):
    plan = Plan.load(path)
    assert (plan.layers[0].node, plan.layers[0].consumers) == (Perturbation(2, 3.0, residual=1.5), (WEIGHT,))
    assert [one.name for one in plan.ranking] == [LAYER, "body.0"] and plan.ridges == {WEIGHT: 1e-6}
    assert torch.equal(plan.weights[WEIGHT], teacher.module.state_dict()[WEIGHT])
    before = path.read_bytes(), path.with_suffix(".safetensors").read_bytes()
    plan.save(path)
    assert (path.read_bytes(), path.with_suffix(".safetensors").read_bytes()) == before
    assert apply(teacher, plan).nodes == plan.nodes


def test_a_plan_from_before_residuals_costs_and_values_still_reads(path):
    data = json.loads(path.read_text())
    del data["layers"][0]["node"]["residual"], data["layers"][0]["uncompensated"]
    for one in data["ranking"]:
        del one["cost"], one["value"], one["chosen"]
    path.write_text(json.dumps(data))
    plan = Plan.load(path)
    assert plan.layers[0].node == Perturbation(2, 3.0) and plan.ranking[0].value is None


def at(*keys: str | int) -> Callable[[Any], Callable[[Any], None]]:
    """A place in the plan that gets a value."""

    def to(value: Any) -> Callable[[Any], None]:
        def change(data: Any) -> None:
            for key in keys[:-1]:
                data = data[key]
            data[keys[-1]] = value

        return change

    return to


LAYERS, NODE = at("layers"), ("layers", 0, "node")


def twice(data: Any) -> None:
    data["layers"] *= 2


WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "a gain that is a text": (at(*NODE, "gain")("3"), r"layers\.0\.node\.gain is '3', a number was expected"),
    "a gain of NaN": (at(*NODE, "gain")(float("nan")), "gain is nan, a finite number was expected"),
    "an infinite gain": (at(*NODE, "gain")(float("inf")), "gain is inf, a finite number was expected"),
    "a gain that no float holds": (at(*NODE, "gain")(10**400), "a finite number was expected"),
    "a negative gain": (at(*NODE, "gain")(-2.0), r"The gain is -2\.0; it must be a finite number above 0"),
    "a gain beyond float32": (at(*NODE, "gain")(1e300), r"The gain is 1e\+300"),
    "a rank that is true": (at(*NODE, "rank")(True), "rank is True, a whole number was expected"),
    "a rank of 1.5": (at(*NODE, "rank")(1.5), r"rank is 1\.5, a whole number was expected"),
    "a rank of 0": (at(*NODE, "rank")(0), "The rank is 0; it must be an integer of at least 1"),
    "a rank that no node holds": (at(*NODE, "rank")(10**30), "it must be an integer of at least 1, and at most"),
    "an axis that no node holds": (at(*NODE, "axis")(-(10**30)), "it must be the channel axis"),
    "an energy of 2": (at(*NODE, "energy")(2), r"The energy is 2\.0; it must be in \(0, 1\]"),
    "a residual above the gain": (at(*NODE, "residual")(4.0), "The residual gain is 4"),
    "a layer twice": (twice, "it names the layer 'after_body' twice"),
    "layers by name": (LAYERS({LAYER: {}}), "layers is {'after_body': {}}, a list was expected"),
    "layers that are texts": (LAYERS([LAYER]), r"layers\.0 is 'after_body', an object was expected"),
    "a name that is a number": (at("layers", 0, "name")(3), "name is 3, a text was expected"),
    "a name of a megabyte": (at("layers", 0, "name")("x" * 2**20), "a text of at most 4096 characters was expected"),
    "consumers in one text": (at("layers", 0, "consumers")("a"), "consumers is 'a', a list was expected"),
    "a strength that is a text": (at("layers", 0, "strength")("0.2"), "strength is '0.2', a number was expected"),
    "a key that nobody knows": (at("layers", 0, "colour")(1), "colour is not known to this version"),
    "a tolerance that is a text": (at("min_psnr")("48"), "min_psnr is '48', a number was expected"),
    "a PSNR that is a list": (at("verified_psnr")([1]), r"verified_psnr is \[1\], a number was expected"),
    "weights without a PSNR": (at("verified_psnr")(None), "it has weights, but not the PSNR"),
    "a compensation of no kind": (at("compensate")("magic"), "compensate is 'magic'; none, solve or refine"),
    "counts that are texts": (at("calibration", "crops")("2"), r"calibration\.crops is '2', a whole number"),
    "counts that are not there": (at("calibration")({"photographs": 1}), "calibration has no crops"),
    "a ranking of numbers": (at("ranking")([1]), r"ranking\.0 is 1, an object was expected"),
    "a cost that is a text": (at("ranking", 0, "cost")("1"), "cost is '1', a number was expected"),
    "a ridge that is an object": (at("ridges", WEIGHT)({}), "a number was expected"),
    "a format that is a text": (at("format")("1"), "format is '1', a whole number was expected"),
    "no version": (lambda data: data.pop("tool_version"), "tool_version is missing"),
    "weights that are a text": (at("weights")("w"), "weights is 'w', an object was expected"),
    "weights above": (at("weights", "file")("../w.safetensors"), "which is not the name of a file in its folder"),
    "weights anywhere": (at("weights", "file")("/etc/passwd"), "which is not the name of a file in its folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_that_no_plan_has_is_named(case, path):
    change, told = WRONG[case]
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    said = complaint(call(weights("derain"), "--plan", path, "-o", path.parent / "out.onnx"))
    assert str(path) in said and len(said) < 500
    with pytest.raises(InputError, match=told):
        Plan.load(path)
    assert not (path.parent / "out.onnx").exists()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (Path.unlink, "cannot be read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "lists in lists": (lambda path: path.write_text("[" * 200_000 + "]" * 200_000), "it is not JSON"),
    "objects in objects": (lambda path: path.write_text('{"format":' * 200_000), "it is not JSON"),
    "a deep value": (lambda path: path.write_text('{"format": 1, "ridges": ' + "[" * 900 + "]" * 900 + "}"), "damaged"),
    "a number without end": (lambda path: path.write_text('{"format": ' + "9" * 10**6 + "}"), "it is not JSON"),
    "text that is none": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is not JSON"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is a pipe or a device"),
    "a device": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is a pipe or a device"),
    "33 MiB": (lambda path: os.truncate(path, 33 * 2**20), "is larger than 32 MiB"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_plan_is_told(case, path):
    damage, told = BROKEN[case]
    damage(path)
    with pytest.raises(InputError, match=told):
        Plan.load(path)


def sealed(content: bytes) -> Callable[[Path], None]:
    """Weights that the plan names rightly: whoever writes the one can write the other."""

    def change(path: Path) -> None:
        path.with_suffix(".safetensors").write_bytes(content)
        data = json.loads(path.read_text())
        data["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
        path.write_text(json.dumps(data))

    return change


def weights_as(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        place = path.with_suffix(".safetensors")
        place.unlink()
        make(place)

    return change


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10 * 2**30)


GOOD = save({WEIGHT: torch.ones(12)})
WEIGHTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (weights_as(os.mkfifo), "is a pipe or a device"),
    "a device": (weights_as(lambda path: path.symlink_to("/dev/zero")), "is a pipe or a device"),
    "a folder": (weights_as(Path.mkdir), "Is a directory"),
    "10 GiB": (weights_as(sparse), "is larger than 1024 MiB"),
    "nothing": (sealed(b""), "is damaged, or not a safetensors file"),
    "garbage": (sealed(b"\x00garbage" * 99), "is damaged, or not a safetensors file"),
    "a header without end": (sealed(b"\xff" * 8 + b"{" * 99), "is damaged, or not a safetensors file"),
    "a header of lists": (sealed((9).to_bytes(8, "little") + b'{"a":[1]}'), "is damaged, or not a safetensors file"),
    "a cut file": (sealed(GOOD[:-4]), "is damaged, or not a safetensors file"),
    "whole numbers": (
        sealed(save({WEIGHT: torch.ones(12, dtype=torch.int64)})),
        "of type int64; finite floating-point",
    ),
    "NaN": (sealed(save({WEIGHT: torch.full((12,), torch.nan)})), f"{WEIGHT} in .* is not finite"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_none_are_told(case, path):
    damage, told = WEIGHTS[case]
    damage(path)
    with pytest.raises(InputError, match=told):
        Plan.load(path)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({WEIGHT: torch.ones(13)}, "has the shape 12 in .*, and has the shape 13 in the plan"),
        ({"no.such": torch.ones(12)}, "no.such does not exist"),
    ],
)
def test_weights_of_another_shape_or_name_do_not_fit(tensors, told, path, teacher):
    sealed(save(tensors))(path)
    with pytest.raises(InputError, match=told):
        asvp_export.apply(teacher, Plan.load(path))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rank": 5000}, "the rank of after_body is 5000, and the layer has 32 channels"),
        ({"rank": 2_000_000}, "the rank of after_body is 2000000, and the layer has 32 channels"),
        ({"rank": 33}, "the rank of after_body is 33, and the layer has 32 channels"),
        ({"axis": 7}, "the axis of after_body is 7, and the layer gives 1x32x"),
        ({"axis": -4}, "the axis of after_body is -4, and the layer gives 1x32x"),
    ],
)
def test_a_node_that_the_layer_cannot_carry_does_not_fit(changes, told, path, teacher):
    data = json.loads(path.read_text())
    data["layers"][0]["node"] |= changes
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=told):
        asvp_export.apply(teacher, Plan.load(path))
