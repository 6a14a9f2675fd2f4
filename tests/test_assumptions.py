"""What loading concludes where it could conclude something else: the right value, told, and overridden by an option."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

import asvp_export
from asvp_export.assumptions import Assumption
from asvp_export.cli import cli
from asvp_export.errors import InputError
from tests.helpers import field_nets
from tests.helpers.graphs import legacy
from tests.helpers.teachers import save_pictures

NETS = Path(field_nets.__file__)


def made(name: str) -> nn.Module:
    return getattr(field_nets, name)()


def graph_of(name: str, path: Path, outputs: list[str]) -> Path:
    """An ONNX file of a net, all of whose pictures have one size."""
    free = {value: {0: "n", 2: "h", 3: "w"} for value in ("x", *outputs)}
    return legacy(path, made(name), sample=(1, 3, 32, 40), free=free, outputs=outputs)


def about(teacher: asvp_export.Teacher, what: str) -> Assumption:
    return next(one for one in teacher.assumptions if one.about == what)


@pytest.mark.parametrize(
    ("name", "output", "certain", "why"),
    [
        ("Pyramid", "output.2", False, "the largest picture"),
        ("TwoSteps", "output.1", False, "computed from output.0, output.2"),
        ("Twins", "output.0", False, "the first of several"),
        ("WithFeatures", "restored", True, "alone has a picture's channels"),
    ],
)
def test_the_main_output_is_the_picture_and_the_reason_is_told(name: str, output: str, certain: bool, why: str) -> None:
    teacher = asvp_export.load(made(name))
    assert teacher.signature.outputs[teacher.signature.main] == output
    assert teacher.scale == 1
    told = about(teacher, "main output")
    assert (told.concluded, told.certain, told.option) == (output, certain, "--main-output NAME")
    assert why in told.because


def test_an_output_alone_leaves_nothing_to_conclude() -> None:
    teacher = asvp_export.load(made("Restorer"))
    assert "main output" not in {one.about for one in teacher.assumptions}
    assert all(one.certain for one in teacher.assumptions)


@pytest.mark.parametrize("asked", ["output.0", "0"])
def test_the_main_output_can_be_named(asked: str) -> None:
    teacher = asvp_export.load(made("TwoSteps"), main_output=asked)
    assert teacher.signature.main == 0
    assert "main output" not in {one.about for one in teacher.assumptions}


@pytest.mark.parametrize("asked", ["sharp", "7"])
def test_a_main_output_that_is_not_there_is_refused_with_those_that_are(asked: str) -> None:
    with pytest.raises(InputError, match=rf"The main output {asked} was asked for; .*output\.0 1x3x.*--main-output"):
        asvp_export.load(made("TwoSteps"), main_output=asked)


def test_a_graph_tells_its_main_output_by_what_it_is_computed_from(tmp_path: Path) -> None:
    path = graph_of("TwoSteps", tmp_path / "steps.onnx", ["first", "second", "curve"])
    teacher = asvp_export.load(path)
    assert about(teacher, "main output").concluded == "second"
    assert teacher.signature.outputs[teacher.signature.main] == "second"
    assert asvp_export.load(path, main_output="first").signature.main == 0


@pytest.mark.parametrize(
    ("name", "values", "certain"),
    [
        ("Levels", "0..255", False),
        ("Subpixels", "0..255", False),
        ("Restorer", "0..1", True),
        ("Curved", "0..1", False),
    ],
)
def test_the_range_of_values_is_told_with_its_reason(name: str, values: str, certain: bool) -> None:
    net = Curved() if name == "Curved" else made(name)
    told = about(asvp_export.load(net), "value range")
    assert (told.concluded, told.certain, told.option) == (values, certain, "--data-range LOW..HIGH")
    given = asvp_export.load(net, data_range="0..1")
    assert "value range" not in {one.about for one in given.assumptions}


class Curved(nn.Module):
    """Brightens so much that no range shows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        nn.init.constant_(self.mix.weight, 1.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.mix(x)) + 0.4


def test_stored_statistics_are_told_where_the_inputs_own_give_another_picture() -> None:
    net = made("Instance")
    teacher = asvp_export.load(net)
    told = about(teacher, "normalisation")
    assert not told.certain
    assert told.option == "--norm-statistics input"
    assert "another picture" in told.because
    of_input = asvp_export.load(net, norm_statistics="input")
    x = of_input.example()
    with torch.no_grad():
        torch.testing.assert_close(of_input.module(x), net.train()(x))
        assert float((teacher.module(x) - of_input.module(x)).abs().max()) > 0.01
    assert "normalisation" not in {one.about for one in of_input.assumptions}


def test_batch_statistics_are_made_for_evaluation_unless_no_training_updated_them() -> None:
    assert "training never updated" in about(asvp_export.load(made("Batch")), "normalisation").because
    net = made("Batch")
    with torch.no_grad():
        net.train()(torch.rand(2, 3, 32, 32))
    assert about(asvp_export.load(net), "normalisation").certain


def test_norm_statistics_are_refused_where_there_are_none() -> None:
    with pytest.raises(InputError, match="no normalisation layer of Restorer stores statistics"):
        asvp_export.load(made("Restorer"), norm_statistics="input")
    with pytest.raises(InputError, match="stored or input was expected"):
        asvp_export.load(made("Instance"), norm_statistics="batch")


def test_a_batch_that_the_model_freezes_is_told() -> None:
    told = about(asvp_export.load(made("TwoAtATime")), "batch")
    assert (told.concluded, told.because) == ("1", "the model fails on two images at a time")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A file from a teacher with two guesses, and what its export said on stdout and stderr."""
    folder = tmp_path_factory.mktemp("exported")
    torch.save(made("TwoSteps").state_dict(), folder / "steps.pth")
    images = save_pictures(folder / "pictures")
    output = folder / "steps.onnx"
    command = [str(folder / "steps.pth"), f"--arch={NETS}:TwoSteps", "--layers=head", f"--output={output}"]
    command += [f"--images={images}", "--model-card", f"--report={folder / 'report'}"]
    found = CliRunner().invoke(cli, command, standalone_mode=False)
    assert found.return_value == 0, found.output
    return output, found.stdout, found.stderr


BECAUSE = "it is computed from output.0, output.2, and is equally large"
LINE = f"assumed, main output: output.1, because {BECAUSE}; --main-output"


def test_an_export_prints_what_is_not_certain_and_nothing_else(exported: tuple[Path, str, str]) -> None:
    _, stdout, stderr = exported
    assert [line for line in stderr.splitlines() if line.startswith("assumed")] == [f"{LINE} NAME overrides it"]
    assert "assumed" not in stdout


def test_report_card_page_metadata_and_inspect_carry_all_of_them(exported: tuple[Path, str, str]) -> None:
    output = exported[0]
    report = json.loads((output.parent / "report" / "steps.report.json").read_text())
    expected = {"main output": False, "value range": True, "sizes": True, "scale": True}
    assert {one["about"]: one["certain"] for one in report["assumptions"]} == expected
    properties = {one.key: one.value for one in onnx.load(output).metadata_props}
    assert json.loads(properties["asvp.assumptions"]) == report["assumptions"]
    shown = CliRunner().invoke(cli, ["inspect", str(output)], standalone_mode=False).stdout
    assert LINE in shown
    assert "value range: 0..1" in shown
    assert "| main output | output.1 |" in (output.parent / "README.md").read_text()
    assert "main output, not certain" in (output.parent / "report" / "report.html").read_text()


def test_layers_opens_with_what_the_teacher_is(exported: tuple[Path, str, str]) -> None:
    weights = str(exported[0].parent / "steps.pth")
    arguments = ["layers", weights, "--arch", f"{NETS}:TwoSteps"]
    shown = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert shown.stdout.startswith("steps.pth (state-dict)\ninput: input, 3 channel(s)\noutput: output.0, output.1")
    assert LINE in shown.stdout
    assert "assumed" not in shown.stderr
    as_json = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], standalone_mode=False).stdout)
    assert as_json["teacher"]["main_output"] == "output.1"


def test_check_judges_the_output_that_the_file_names(exported: tuple[Path, str, str], tmp_path: Path) -> None:
    """An ONNX original is loaded by the gate itself: with the main output that the shipped file has in its metadata."""
    path, images = graph_of("Twins", tmp_path / "twins.onnx", ["bright", "dark"]), save_pictures(tmp_path / "pictures")
    shipped = tmp_path / "shipped.onnx"
    common = ["--images", str(images)]
    made_by = ["--layers", "auto:1", "--main-output", "dark", "-o", str(shipped)]
    first = CliRunner().invoke(cli, [str(path), *made_by, *common], standalone_mode=False)
    assert first.return_value == 0, first.output
    assert "assumed, main" not in first.stderr
    second = CliRunner().invoke(cli, ["check", str(path), str(shipped), *common], standalone_mode=False)
    assert second.return_value == 0, second.output
    assert "assumed, main output: bright" not in second.stderr
