"""torch.export archives: sizes and modes, and those that would run code when read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asvp_export.signature import SizeRule
from asvp_export.teacher.load import load
from tests.helpers.attacks import attacks
from tests.helpers.loading import AUTO, Residual, exported, refused, rewritten

pytestmark = pytest.mark.usefixtures("one_thread")

# torch.export archives


def test_a_dynamic_archive_takes_other_sizes_and_hooks(tmp_path: Path) -> None:
    module = Residual()
    teacher = load(exported(tmp_path / "m.pt2", module, (2, 3, 24, 40), n=AUTO, h=AUTO, w=AUTO))
    assert (teacher.format, teacher.static_shape, teacher.scale) == ("pt2", (None, 3, None, None), 1)
    image = teacher.example(33, 57, batch=3)
    assert image.shape == (3, 3, 33, 57)
    assert torch.equal(teacher.module(image), module(image))
    teacher.module.get_submodule("conv").register_forward_hook(lambda _m, _i, output: 0 * output)
    assert torch.equal(teacher.module(image), image)
    assert not any(weight.requires_grad for weight in teacher.module.parameters())


def test_a_static_archive_keeps_its_size(tmp_path: Path) -> None:
    teacher = load(exported(tmp_path / "m.pt2"))
    assert teacher.static_shape == (1, 3, 24, 40)
    assert teacher.example().shape == teacher.example(64, 64, batch=2).shape == (1, 3, 24, 40)
    assert teacher.module(teacher.example()).shape == (1, 3, 24, 40)


def test_an_archive_is_known_by_its_content(tmp_path: Path) -> None:
    exported(tmp_path / "m.pt2").rename(tmp_path / "m.pt")
    assert load(tmp_path / "m.pt").format == "pt2"


def test_an_archive_with_a_multiple_of_its_own(tmp_path: Path) -> None:
    rows, columns = 8 * torch.export.Dim("rows"), torch.export.Dim("columns", min=16)
    teacher = load(exported(tmp_path / "m.pt2", h=rows, w=columns))
    assert (teacher.size, teacher.static_shape) == (SizeRule(16, 8), (1, 3, None, None))


@pytest.mark.parametrize(
    ("module", "inputs", "match"),
    [
        (nn.Linear(4, 4), (torch.rand(2, 4),), "takes 2x4 float32; expected an image batch"),
        (Residual().double(), (torch.rand(1, 3, 8, 8).double(),), "takes 1x3x8x8 float64"),
        (nn.Bilinear(3, 3, 3), (torch.rand(1, 3), torch.rand(1, 3)), "takes 1x3 float32, 1x3 float32; expected"),
    ],
)
def test_an_archive_that_takes_no_image_is_refused(
    tmp_path: Path, module: nn.Module, inputs: tuple[torch.Tensor, ...], match: str
) -> None:
    torch.export.save(torch.export.export(module, inputs), tmp_path / "m.pt2")
    refused(match, tmp_path / "m.pt2")


def test_an_archive_in_training_mode_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)).train()
    torch.export.save(torch.export.export(module, (torch.rand(1, 3, 8, 8),)), tmp_path / "m.pt2")
    refused(r"training mode \(its dropout is active\)", tmp_path / "m.pt2")


def in_graph(old: str, new: str) -> Any:
    """A change of the text of an archive's graph."""

    def change(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        text = content.decode()
        assert json.dumps(old)[1:-1] in text
        return text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]).encode()

    return change


def sample_attack(marker: Path, folder: Path) -> Any:
    attack = attacks(marker, folder)["zip.pt"].read_bytes()
    return lambda name, content: attack if name.startswith("data/sample_inputs") else content


def weight_attack(marker: Path, folder: Path) -> Any:
    attack = attacks(marker, folder)["zip.pt"].read_bytes()

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            config = json.loads(content)
            for payload in config["config"].values():
                payload["use_pickle"] = True
            return json.dumps(config).encode()
        return attack if name.startswith("data/weights/weight_") else content

    return change


def constant_attack(marker: Path, _folder: Path) -> Any:
    return in_graph("torch.ops.aten.conv2d.default", "torch.os.system")


def expression_attack(marker: Path, _folder: Path) -> Any:
    return in_graph("Symbol('s", f"__import__('pathlib').Path({str(marker)!r}).touch() or Symbol('s")


def nested_expression_attack(marker: Path, _folder: Path) -> Any:
    return in_graph("Symbol('s", f"""Mul("__import__('pathlib').Path({str(marker)!r}).touch()") and Symbol('s""")


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (sample_attack, "pickled sample inputs"),
        (weight_attack, "a pickled object"),
        (constant_attack, "unusual target"),
        (expression_attack, "unusual expr_str"),
        (nested_expression_attack, "unusual expr_str"),
    ],
)
def test_an_archive_that_would_run_code_is_refused(tmp_path: Path, attack: Any, match: str) -> None:
    marker, path = tmp_path / "marker", exported(tmp_path / "m.pt2", n=AUTO, h=AUTO, w=AUTO, shape=(2, 3, 24, 40))
    rewritten(path, lambda _name, content: content)
    assert load(path).format == "pt2"
    rewritten(path, attack(marker, tmp_path))
    refused(f"holds .*{match}.*--trust-pickle", path)
    assert not marker.exists()


def test_a_name_in_an_archive_that_is_python_source_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", exported(tmp_path / "m.pt2")

    def change(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        attack = json.dumps(f"x=__import__('pathlib').Path({str(marker)!r}).touch()")
        assert b'"name": "x"' in content
        return content.replace(b'"name": "x"', b'"name": ' + attack.encode())

    rewritten(path, change)
    refused("unusual name", path)
    assert not marker.exists()


def test_an_archive_that_would_fall_back_to_the_old_reader_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("version", "8.20")
    refused("old layout|is damaged", path)
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    refused("layout of PyTorch 2.7 and before", tmp_path / "old.pt2")


def test_bytes_changed_inside_an_archive_are_refused_or_harmless(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.pt2")
    rewritten(path, lambda name, content: b"{}" if name == "models/model.json" else content)
    refused("cannot be loaded|is damaged", path)
    exported(path)
    rewritten(path, lambda name, content: b"?" if name == "archive_version" else content)
    refused("cannot be loaded|is damaged", path)
