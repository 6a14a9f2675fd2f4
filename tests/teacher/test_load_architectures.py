"""Architectures: where they are found, what they may print, and those that cannot be made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asvp_export.teacher.architecture import build
from tests.helpers.loading import Residual, exported, refused

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_architecture_is_found_in_the_current_folder_and_in_packages(folder: Path) -> None:
    (folder / "shop").mkdir()
    (folder / "shop" / "nets.py").write_text("from torch.nn import Conv2d as Net\n")
    before = sys.path.copy()
    assert isinstance(build("shop.nets:Net", {"in_channels": 3, "out_channels": 3, "kernel_size": 1}), nn.Conv2d)
    assert isinstance(build("torch.nn:ReLU", {}), nn.ReLU)
    assert isinstance(build("nets:Net", {"width": 4}), nn.Module)
    assert isinstance(build(f"{folder}/nets.py:make", {"width": 4}), nn.Module)
    assert sys.path == before


def test_what_an_architecture_prints_stays_off_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("nets.py:make", {"width": 4})
    assert capsys.readouterr() == ("", "made\n")


def test_two_folders_with_siblings_of_one_name_get_their_own(tmp_path: Path) -> None:
    for width in (4, 5):
        (tmp_path / str(width)).mkdir()
        (tmp_path / str(width) / "sibling.py").write_text(f"WIDTH = {width}\n")
        source = "from sibling import WIDTH\nfrom torch import nn\nNet = lambda: nn.Conv2d(3, WIDTH, 1)\n"
        (tmp_path / str(width) / "net.py").write_text(source)
        assert build(f"{tmp_path}/{width}/net.py:Net", {}).out_channels == width


@pytest.mark.parametrize(
    ("arch", "arguments", "match"),
    [
        ("nets", {}, "cannot be read: expected package.module:factory"),
        (":Net", {}, "cannot be read"),
        ("nets.py:", {}, "cannot be read"),
        ("absent.py:Net", {}, "absent.py does not exist"),
        ("sub/absent.py:Net", {}, "does not exist"),
        ("./nets.txt:Net", {}, r"nets\.txt is not a \.py file"),
        ("dir.py:Net", {}, "is a folder"),
        ("absent:Net", {}, "module absent cannot be found"),
        ("nets.absent:Net", {}, "cannot be found"),
        ("needy.py:Net", {}, "No module named 'not_installed_anywhere'. Install what it needs"),
        ("broken.py:Net", {}, "SyntaxError"),
        ("leaving.py:Net", {}, "Importing the architecture leaving.py failed: SystemExit"),
        ("nets.py:Nett", {}, "has no Nett; it defines Net"),
        ("nets.py:Net.Other", {}, "has no Net.Other"),
        ("nets.py:number", {}, "number is an int; expected a class or a function"),
        ("nets.py:fails", {}, "fails failed: RuntimeError: no luck today"),
        ("nets.py:quits", {}, "quits failed: SystemExit"),
        ("nets.py:wrong", {}, "returned a dict; expected a torch.nn.Module"),
        ("nets.py:Net.Half", {}, "returned a Half; expected a torch.nn.Module"),
        ("nets.py:Net", {"depth": 3}, "cannot be made with depth: TypeError: .*unexpected keyword argument 'depth'"),
        ("nets.py:make", {}, "cannot be made with no arguments"),
        ("nets.py:Net", [1], "expected a JSON object"),
    ],
)
def test_an_architecture_that_cannot_be_made_is_refused(
    folder: Path, state: dict[str, torch.Tensor], arch: str, arguments: Any, match: str
) -> None:
    (folder / "needy.py").write_text("import not_installed_anywhere\n")
    (folder / "broken.py").write_text("class Net(\n")
    (folder / "leaving.py").write_text("import sys\nsys.exit('usage')\n")
    (folder / "dir.py").mkdir()
    torch.save(state, folder / "w.pt")
    before = sys.path.copy()
    refused(match, folder / "w.pt", arch=arch, arch_args=arguments)
    assert sys.path == before


def test_arguments_without_an_architecture_and_architectures_without_need_are_refused(folder: Path) -> None:
    refused(r"--arch-args\) were given without an architecture", Residual(), arch_args={"width": 3})
    refused("leave --arch nets.py:Net out", Residual(), arch="nets.py:Net")
    refused(r"torch\.export archive, holds its architecture already", exported(folder / "m.pt2"), arch="nets.py:Net")
    torch.save(Residual(), folder / "m.pt")
    refused("a saved module, holds its", folder / "m.pt", arch="nets.py:Net", trust_pickle=True)
