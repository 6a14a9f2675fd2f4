"""The seven verbs: Python gets what the command line gives, by the same names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import asvp_export
from asvp_export.images import read_image
from asvp_export.insertion.plan import Plan
from tests.helpers.commands import call, complaint
from tests.helpers.teachers import recurrent, save_pictures

NETS = """
from tests.helpers.teachers import Recurrent
def net():
    return Recurrent()
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, str]:
    """A state dict, and what builds its module."""
    folder = tmp_path_factory.mktemp("model")
    save_file(recurrent().state_dict(), folder / "net.safetensors")
    (folder / "nets.py").write_text(NETS)
    return folder / "net.safetensors", f"{folder / 'nets.py'}:net"


def test_one_call_writes_what_the_command_writes(model, pictures, tmp_path):
    path, arch = model
    for who in ("python", "command"):
        (tmp_path / who).mkdir()
    result = asvp_export.export(
        path,
        tmp_path / "python" / "p.onnx",
        layers="auto:1",
        arch=arch,
        images=pictures,
        report=tmp_path / "python" / "report",
        junit=tmp_path / "python" / "p.xml",
        model_card=True,
    )
    folder = tmp_path / "command"
    answer = call(
        *(path, f"--arch={arch}", "--layers=auto:1", f"--images={pictures}", "-o", folder / "p.onnx", "--model-card"),
        *(f"--report={folder / 'report'}", f"--junit={folder / 'p.xml'}"),
    )
    assert result.passed and answer.code == 0, answer.err
    ours, theirs = (
        sorted(one.relative_to(tmp_path / who) for one in (tmp_path / who).rglob("*")) for who in ("python", "command")
    )
    assert ours == theirs
    assert {"report", "page", "JUnit file", "manifest", "model card", "plan"} == set(result.files)
    assert (tmp_path / "python" / "p.onnx").read_bytes() == (folder / "p.onnx").read_bytes()
    assert asvp_export.verify_manifest(tmp_path / "python" / "p.onnx").passed


def test_a_plan_that_protect_keeps_exports_to_the_bytes_of_a_direct_export(model, pictures, tmp_path):
    path, arch = model
    teacher = [path, f"--arch={arch}"]
    for name, choices in (("auto", ["--layers=auto:1"]), ("given", ["--layers=head", "--gain=3", "--rank=2"])):
        planned, direct = tmp_path / f"{name}.onnx", tmp_path / f"{name}.direct.onnx"
        kept = call("protect", *teacher, *choices, f"--images={pictures}", "-o", tmp_path / f"{name}.plan", "--json")
        assert kept.code == 0, kept.err
        plan = Plan.load(tmp_path / f"{name}.plan")
        assert json.loads(kept.out) == json.loads(json.dumps(plan.as_dict()))
        done = call(*teacher, f"--plan={tmp_path / f'{name}.plan'}", f"--images={pictures}", "-o", planned)
        assert done.code == 0, done.err
        assert call(*teacher, *choices, f"--images={pictures}", "-o", direct).code == 0
        assert planned.read_bytes() == direct.read_bytes()


def test_protect_shows_the_plan_and_does_not_replace_one_unasked(model, pictures, tmp_path):
    path, arch = model
    command = ["protect", path, f"--arch={arch}", "--layers=head", "--gain=3", "-o", tmp_path / "p.plan.json"]
    shown = call(*command)
    assert shown.code == 0 and "head" in shown.out and "the gain that was asked for" in shown.out
    assert "exists" in complaint(call(*command)) and call(*command, "--force").code == 0
    assert "No layers were named" in call("protect", path).err


def test_protect_writes_the_plan_where_python_asks_for_it(model, tmp_path):
    path, arch = model
    ours, theirs = tmp_path / "ours.plan.json", tmp_path / "theirs.plan.json"
    choices = {"arch": arch, "gain": 3.0}
    assert call("protect", path, f"--arch={arch}", "--layers=head", "--gain=3", "-o", theirs).code == 0
    protected = asvp_export.protect(path, "head", output=ours, **choices)
    assert protected.plan and ours.read_bytes() == theirs.read_bytes()
    with pytest.raises(asvp_export.InputError, match="exists"):
        asvp_export.protect(path, "head", output=ours, **choices)
    asvp_export.protect(path, "head", output=ours, force=True, **choices)
    assert asvp_export.protect(path, "head", **choices).plan is None
    with pytest.raises(asvp_export.InputError, match="No layers were named"):
        asvp_export.protect(path, (), output=tmp_path / "none.plan.json", **choices)
    assert sorted(tmp_path.iterdir()) == [ours, theirs]


def test_what_is_chosen_already_is_not_chosen_again(pictures, tmp_path):
    teacher = asvp_export.load(recurrent())
    protected = asvp_export.protect(teacher, "head", gain=2.0)
    for options, word in (
        ({"layers": "head"}, "layers"),
        ({"gain": 3.0}, "gain"),
        ({"data_range": "0..255"}, "data_range"),
    ):
        with pytest.raises(asvp_export.InputError, match=f"A protected model was given, and .*{word}"):
            asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, **options)
    with pytest.raises(asvp_export.InputError, match="A teacher was given, and layout as well"):
        asvp_export.layers(teacher, layout="nchw")
    with pytest.raises(asvp_export.InputError, match="More than one of PROTECTED"):
        asvp_export.audit(protected, tmp_path / "p.onnx", task="derain")
    with pytest.raises(asvp_export.InputError, match="--gain was given, and the model already says how"):
        asvp_export.audit(protected, gain=3.0, task="derain")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "flag"), [({"layers": "head"}, "--layers"), ({"gain": 3.0}, "--gain"), ({"max_gain": 3}, "--max-gain")]
)
def test_beside_a_plan_nothing_says_which_nodes_are_inserted(given, flag, tmp_path):
    with pytest.raises(asvp_export.InputError, match=f"{flag} was given, and p.json already says which nodes are"):
        asvp_export.export("missing.pt", tmp_path / "p.onnx", plan="p.json", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plan": "p.json", "layers": "head"}, "More than one of PROTECTED, --plan FILE and --layers"),
        ({"plan": "p.json", "gain": 3.0}, "--gain was given, and p.json already says how the model is protected"),
        ({"protected": "p.onnx", "images": "pictures"}, "--images was given, and p.onnx already says how"),
        ({"plan": "p.json", "sizes": [(48, 64)]}, "--size was given, and p.json already says how"),
        ({"plan": "p.json", "verify_images": "pictures"}, "--verify-images was given, and p.json already says how"),
        ({"gain": 3.0}, "None of PROTECTED, --plan FILE and --layers NAMES was given"),
    ],
)
def test_an_audit_refuses_what_would_say_nothing(given, message):
    with pytest.raises(asvp_export.InputError, match=message):
        asvp_export.audit("missing.pt", task="derain", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "No pictures were named"),
        ({"task": "snow"}, "snow"),
        ({"task": "derain", "rows": ["shipped/mse"]}, "wrong weight"),
        ({"task": "derain", "seeds": 0}, "at least 1 of each"),
        ({"task": "derain", "require": ["own_loss<"]}, "cannot be read"),
    ],
)
def test_an_audit_refuses_what_cannot_be_run_before_it_looks_for_the_model(given, message):
    with pytest.raises(asvp_export.InputError, match=message):
        asvp_export.audit("missing.pt", "missing.onnx", **given)


def test_run_restores_a_file_or_an_array_and_writes_where_it_is_asked_to(pictures, tmp_path):
    teacher = asvp_export.load(recurrent())
    assert asvp_export.export(
        asvp_export.protect(teacher, "head", gain=2.0), tmp_path / "p.onnx", images=pictures
    ).passed
    picture = min(pictures.iterdir())
    from_file = asvp_export.run(tmp_path / "p.onnx", picture, tmp_path / "out.png")
    from_array = asvp_export.run(tmp_path / "p.onnx", read_image(picture))
    np.testing.assert_array_equal(from_file.pixels, from_array.pixels)
    assert from_file.before == from_file.after == from_array.after == (61, 80) and from_array.output is None
    np.testing.assert_allclose(read_image(tmp_path / "out.png"), from_file.pixels.clip(0, 1), atol=0.51 / 255)
    image = torch.from_numpy(read_image(picture)).permute(2, 0, 1)[None]
    np.testing.assert_allclose(from_file.pixels, teacher.module(image)[0].permute(1, 2, 0), atol=1e-4)


class TwoPictures(torch.nn.Module):
    """Two pictures of one size, neither computed from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.one, self.two = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.head(x)
        return self.one(y), self.two(y)


def test_notes_say_what_was_assumed():
    notes: list[str] = []
    survey = asvp_export.layers(TwoPictures(), note=notes.append)
    uncertain = [one for one in survey.teacher.assumptions if not one.certain]
    assert uncertain and notes == [f"assumed, {one}" for one in uncertain]
    assert "head" in {layer.name for layer in survey.layers}
