"""The command line as a user meets it: what it prints, writes and answers, and what it says to what it cannot use."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save_file

import asvp_export
from asvp_export.images import pad_to, read_image
from asvp_export.signature import SizeRule
from asvp_export.teacher.architecture import build
from tests.helpers.commands import call, complaint
from tests.helpers.teachers import save_pictures

NETS = '''
"""Tiny restoration nets."""
import torch
from torch import nn
from torch.nn.functional import interpolate

class Net(nn.Module):
    def __init__(self, inputs=3, outputs=3, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(inputs, width, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.tail = nn.Conv2d(width, outputs, 3, padding=1)

    def work(self, x):
        y = self.head(x)
        return 0.1 * self.tail(y + self.body(y))

    def forward(self, x):
        return x + self.work(x)

class Even(Net):
    """Takes even heights and widths."""
    def __init__(self, width=8):
        super().__init__(12, 12, width)
    def forward(self, x):
        return x + nn.functional.pixel_shuffle(self.work(nn.functional.pixel_unshuffle(x, 2)), 2)

class Double(Net):
    """Twice as large."""
    def __init__(self):
        super().__init__(3, 12)
    def forward(self, x):
        return interpolate(x, scale_factor=2.0) + nn.functional.pixel_shuffle(self.work(x), 2)

class Pair(Net):
    def forward(self, x):
        return x, self.work(x)

class Large(Net):
    def forward(self, x):
        assert x.shape[2] >= 70, "at least 70 pixels"
        return super().forward(x)

class Chatty(Net):
    def forward(self, x):
        print("forward", x.shape)
        return super().forward(x)
'''


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if path.name != "__pycache__" and path.suffix != ".pyc"
    }


def identity(path: Path, *shapes: list[int | str], **metadata: str) -> None:
    """An ONNX file that adds its inputs up."""
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[0] if shapes else [1])
    names = [one.name for one in inputs]
    nodes = [helper.make_node("Sum", names, ["y"])] if names else []
    constant = [] if names else [helper.make_tensor("y", TensorProto.FLOAT, [1], [0.0])]
    graph = helper.make_graph(nodes, "sum", inputs, [output], constant)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)


def even(**changes: str | None) -> list[str]:
    """The arguments of an export that works, some of them changed or, with None, left out."""
    options = {"arch": "nets.py:Even", "layers": "head", "gain": "1.01", "images": "pictures", "output": "out/new.onnx"}
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    model = options.pop("model", "even.pt")
    return [str(model), *(f"--{name}={value}" for name, value in options.items() if value is not None)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Iterator[Path]:
    """A folder with teachers, pictures, exported files and much that is none of these; commands run in it."""
    folder = tmp_path_factory.mktemp("workshop")
    with contextlib.chdir(folder):
        fill_the_workshop()
        yield folder


def fill_the_workshop() -> None:
    Path("nets.py").write_text(NETS)
    for name in ("Even", "Double", "Pair", "Large", "Chatty"):
        torch.save(build(f"nets.py:{name}", {}).state_dict(), f"{name.lower()}.pt")
    save_file(build("nets.py:Even", {}).state_dict(), "even.safetensors")
    Path("empty.pt").touch()
    for whole in ("even.pt", "even.safetensors"):
        Path(f"cut_{whole}").write_bytes(Path(whole).read_bytes()[:-300])
    Path("notes.txt").write_text("not a model")
    Path("failing.py").write_text("raise RuntimeError('no luck')")
    torch.save(build("nets.py:Even", {}), "pickled.pt")

    save_pictures(Path("pictures"))
    for name in ("out", "no_pictures", "damaged", "pixel"):
        Path(name).mkdir()
    Path("out/old.onnx").write_bytes(b"older")
    Path("no_pictures/readme.txt").write_text("none here")
    Path("damaged/broken.png").write_text("no picture")
    Image.new("RGB", (1, 1), (9, 99, 199)).save("pixel/one.png")

    identity(Path("grey.onnx"), ["n", 1, "h", "w"])
    identity(Path("rank3.onnx"), [3, "h", "w"])
    identity(Path("two.onnx"), ["n", 3, "h", "w"], ["n", 3, "h", "w"])
    identity(Path("none.onnx"))
    identity(Path("same.onnx"), ["n", 3, "h", "w"])
    identity(Path("fixed.onnx"), [1, 3, 48, 64])
    identity(Path("garbled.onnx"), ["n", 3, "h", "w"], **{"asvp.version": "1"})
    flat = onnx.load("same.onnx")
    flat.graph.node[0].op_type = "Flatten"
    flat.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "values"]))
    onnx.save(flat, "flat.onnx")
    Path("text.onnx").write_text("not a model")
    Path("empty.onnx").touch()
    for net, file in (("Even", "even.onnx"), ("Double", "double.onnx")):
        done = call(*even(model=f"{net.lower()}.pt", arch=f"nets.py:{net}", output=file), "--json")
        assert done.code == 0, done.err
        assert done.out == Path(file).with_suffix(".report.json").read_text()


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

BAD_EXPORT = {
    "a model that is not there": (even(model="nothing.pt"), "nothing.pt is not there"),
    "an empty model": (even(model="empty.pt"), "empty.pt is empty"),
    "a truncated model": (even(model="cut_even.pt"), "cut_even.pt is truncated"),
    "truncated safetensors": (even(model="cut_even.safetensors"), "cut_even.safetensors is truncated"),
    "a directory": (even(model="pictures"), "pictures is a directory"),
    "an unknown format": (even(model="notes.txt"), "unknown format"),
    "an ONNX file as the teacher": (even(model="even.onnx", arch=None), "carries 2 ASVP node"),
    "a pickle without trust": (even(model="pickled.pt", arch=None), "--trust-pickle"),
    "a state dict that does not fit": (even(arch="nets.py:Double"), r"ill-shaped keys? \(head.weight"),
    "missing keys": (even(model="large.pt", arch="torch.nn:Identity"), "6 unexpected keys .head.weight"),
    "a state dict without an architecture": (even(arch=None), "--arch"),
    "an architecture that is not in its file": (even(arch="nets.py:Nothing"), "no Nothing; it defines .*Even"),
    "an architecture's file that is not there": (even(arch="nowhere.py:Even"), "nowhere.py is not there"),
    "a module that does not import": (even(arch="nowhere.nets:Even"), "cannot be found"),
    "a file that fails to import": (even(arch="failing.py:Even"), "failed: RuntimeError: no luck"),
    "arguments that the factory does not take": (even(arch_args='{"depth": 3}'), "depth"),
    "arguments that are no JSON": (even(arch_args="{depth: 3}"), "is not JSON"),
    "arguments that are no object": (even(arch_args="[3]"), "not an object"),
    "a folder without images": (even(images="no_pictures"), "no image in no_pictures"),
    "a folder of images that is not there": (even(images="nothing"), "nothing does not exist"),
    "a file as the folder of images": (even(images="notes.txt"), "is a file, a folder"),
    "the model as the folder of images": (even(images="even.pt"), "is a file, a folder"),
    "an unreadable image": (even(images="damaged"), "broken.png is not a picture"),
    "an image of one pixel": (even(images="pixel"), r"one.png is 1x1 .* at least 3x3"),
    "images smaller than the model takes": (even(model="large.pt", arch="nets.py:Large"), "61x80.* the model needs at"),
    "rank 0": (even(rank="0"), "rank is 0"),
    "a rank that is no number": (even(rank="some"), "neither auto nor a number"),
    "gain 0": (even(gain="0"), "gain is 0"),
    "gain -1": (even(gain="-1"), "gain is -1"),
    "gain nan": (even(gain="nan"), "gain is nan"),
    "gain inf": (even(gain="inf"), "gain is inf"),
    "energy 0": (even(energy="0"), "energy is 0"),
    "energy 1.5": (even(energy="1.5"), "energy is 1.5"),
    "energy nan": (even(energy="nan"), "energy is nan"),
    "the batch as the axis": (even(axis="0"), "axis is 0"),
    "an axis beyond": (even(axis="7"), "axis 7"),
    "an output folder that is not there": (even(output="nothing/new.onnx"), "folder nothing does not exist"),
    "an output below a file": (even(output="notes.txt/new.onnx"), "folder notes.txt"),
    "a folder as the output": (even(output="out"), "out is a folder"),
    "an output that exists": (even(output="out/old.onnx"), "old.onnx exists; give --force"),
    "the model as the output": ([*even(output="even.pt"), "--force"], "output even.pt is the model itself"),
    "the architecture as the output": ([*even(output="nets.py"), "--force"], "nets.py is the architecture itself"),
    "opset 17": (even(opset="17"), "18 to 26"),
    "opset 27": (even(opset="27"), "18 to 26"),
    "a size of one number": (even(size="64"), "'64' is not a size"),
    "a size of 0": (even(size="0x64"), "'0x64' is not a size"),
    "a size of other digits": (even(size="²x²"), "is not a size"),
    "a size without end": (even(size="9" * 5000 + "x9"), "is not a size"),
    "a size of 1x1": (even(size="1x1"), "at least 3x3"),
    "a size larger than the images": (even(size="100000x100000"), "needs at least 100000x100000"),
    "a data range of 0": (even(data_range="0"), "data range is '0'"),
    "a data range of nan": (even(data_range="nan"), "data range is 'nan'"),
    "a PSNR of nan": (even(min_psnr="nan"), "PSNR asked for is nan"),
    "a PSNR of inf": (even(min_psnr="inf"), "PSNR asked for is inf"),
    "a PSNR above identity": (even(min_psnr="201"), "at most 200"),
    "an unknown layer": (even(layers="head,boddy.0"), "no layer 'boddy.0'; the nearest are body.0"),
    "a pattern without a layer": (even(layers="boody.*"), "the nearest names are body"),
    "no name of a layer": (even(layers=","), "No layer is named"),
    "a frozen size that is not given": ([*even(), "--static"], "exactly one --size"),
    "two frozen sizes": ([*even(size="48x64"), "--size=32x32", "--static"], "exactly one --size"),
    "a frozen size that does not fit": ([*even(size="49x64"), "--static"], "multiple of 2"),
    "an unknown option": ([*even(), "--layer=head"], "No such option .*--layer.*--layers"),
    "no layers": (even(layers=None), "No layers were named"),
    "one argument too many": ([*even(), "more"], "unexpected extra argument"),
    "a command that there is not": (["inspekt", "even.onnx"], "inspekt.*did you mean inspect"),
    "a report folder that is not there": (even(report="nothing/below"), "nothing/below, does not exist"),
    "a file as the report folder": (even(report="notes.txt"), "notes.txt, does not exist"),
    "a JUnit folder that is not there": (even(junit="nothing/j.xml"), "nothing, does not exist"),
    "a folder as the JUnit file": (even(junit="out"), "out is a folder"),
    "a device as the JUnit file": (even(junit="/dev/null"), "/dev/null is a folder or a device"),
    "a device as the output": ([*even(output="/dev/null"), "--force"], "/dev/null is a folder or a device"),
    "the model as the JUnit file": (even(junit="even.pt"), "JUnit file even.pt is the model itself"),
    "the output as the JUnit file": (even(junit="out/new.onnx"), "JUnit file out/new.onnx is the output itself"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_EXPORT)
def test_export_refuses(case, workshop):
    arguments, expected = BAD_EXPORT[case]
    before = contents(workshop)
    assert re.search(expected, complaint(call(*arguments)))
    assert contents(workshop) == before


@pytest.mark.parametrize("case", [name for name in BAD_EXPORT if "report" in name or "JUnit" in name])
def test_where_the_reports_go_is_checked_before_the_work(case, workshop):
    assert "loading" not in call(*BAD_EXPORT[case][0]).err


@NO_GPU
@pytest.mark.parametrize("option", ["provider", "device"])
def test_a_gpu_that_is_not_there_is_refused_before_the_export(option, workshop):
    before = contents(workshop)
    answer = call(*even(**{option: "cuda"}))
    assert "cuda" in complaint(answer) and "exporting" not in answer.err
    assert contents(workshop) == before


def test_a_link_to_the_model_is_the_model(workshop, tmp_path):
    weights = (workshop / "even.pt").read_bytes()
    (tmp_path / "soft.onnx").symlink_to(workshop / "even.pt")
    assert "is the model itself" in complaint(call(*even(output=str(tmp_path / "soft.onnx")), "--force"))
    (tmp_path / "hard.onnx").hardlink_to(workshop / "even.pt")
    assert "is the model itself" in complaint(call(*even(output=str(tmp_path / "hard.onnx")), "--force"))
    assert (workshop / "even.pt").read_bytes() == weights


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Within the block not even root may write where a file's mode forbids it (Linux)."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = _Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(ctypes.byref(header), words) == 0
    effective = words[0]
    words[0] = effective & ~(1 << 1)  # CAP_DAC_OVERRIDE
    assert libc.capset(ctypes.byref(header), words) == 0
    try:
        yield
    finally:
        words[0] = effective
        assert libc.capset(ctypes.byref(header), words) == 0


@pytest.mark.parametrize("option", ["output", "report", "junit"])
def test_a_folder_where_one_may_not_write_is_refused_before_the_work(option, workshop, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    target = {"output": locked / "new.onnx", "report": locked, "junit": locked / "j.xml"}[option]
    with ordinary_user():
        answer = call(*even(**{option: str(target)}))
    assert "cannot be written (Permission denied)" in complaint(answer) and "loading" not in answer.err
    assert not list(locked.iterdir()) and not (workshop / "out/new.onnx").exists()


CHECK_EVEN = ["check", "even.pt", "--arch=nets.py:Even", "--images=pictures"]
CHECK_ONNX = ["check", "same.onnx", "--images=pictures"]

BAD_OTHERS = {
    "check: no protected file": ([*CHECK_EVEN, "nothing.onnx"], "nothing.onnx does not exist"),
    "check: a folder": ([*CHECK_EVEN, "pictures"], "pictures is not a file"),
    "check: text": ([*CHECK_EVEN, "text.onnx"], "does not load text.onnx"),
    "check: an empty file": ([*CHECK_EVEN, "empty.onnx"], "empty.onnx is empty"),
    "check: other channels": ([*CHECK_EVEN, "grey.onnx"], "3 channels were expected, channels first"),
    "check: another rank": ([*CHECK_EVEN, "rank3.onnx"], r"takes x0 tensor\(float\) 3xhxw; 1 input\(s\), the image \[N, C, H, W\]"),
    "check: two inputs": ([*CHECK_EVEN, "two.onnx"], "were all inputs given"),
    "check: no input": ([*CHECK_EVEN, "none.onnx"], "takes nothing; 1 input"),
    "check: garbled metadata": ([*CHECK_EVEN, "garbled.onnx"], "metadata cannot be read"),
    "check: another size": ([*CHECK_EVEN, "fixed.onnx", "--size=32x32"], "32x32 .* takes 48x64 only"),
    "check: another scale": ([*CHECK_EVEN, "double.onnx"], "not the same model"),
    "check: no original": (["check", "nothing.onnx", "even.onnx", "--images=pictures"], "nothing.onnx is not there"),
    "check: original of other channels": (["check", "grey.onnx", "even.onnx", "--images=pictures"], "1 channels were expected"),
    "check: original of another rank": (["check", "rank3.onnx", "even.onnx", "--images=pictures"], "takes x0 float 3xhxw; a float image batch"),
    "check: original that is not an image model": (["check", "flat.onnx", "same.onnx", "--images=pictures"], "output is not an image batch: 1x"),
    "check: a file that is not an image model": ([*CHECK_ONNX, "flat.onnx"], "not the same model"),
    "run: another output": (["run", "flat.onnx", "pixel/one.png", "-oout/a.png"], r"shape \(1, 3\) .* RGB image"),
    "check: original of two inputs": (["check", "two.onnx", "even.onnx", "--images=pictures"], "takes 2 inputs"),
    "check: original that is text": (["check", "text.onnx", "even.onnx", "--images=pictures"], "text.onnx is damaged, or no ONNX model"),
    "check: ONNX files of two scales": (["check", "even.onnx", "double.onnx", "--images=pictures"], "not the same model"),
    "check: no image": ([*CHECK_EVEN[:-1], "even.onnx", "--images=no_pictures"], "no image in no_pictures"),
    "check: a PSNR of nan": ([*CHECK_ONNX, "same.onnx", "--min-psnr=nan"], "PSNR asked for is nan"),
    "check: no report folder": ([*CHECK_ONNX, "same.onnx", "--report=nothing/below"], "nothing/below, does not exist"),
    "check: JUnit over the file": ([*CHECK_ONNX, "even.onnx", "--junit=even.onnx"], "is the protected file itself"),
    "inspect: no file": (["inspect", "nothing.onnx"], "nothing.onnx does not exist"),
    "inspect: a folder": (["inspect", "pictures"], "is a folder"),
    "inspect: text": (["inspect", "text.onnx"], "text.onnx is not an ONNX model"),
    "inspect: an empty file": (["inspect", "empty.onnx"], "empty.onnx is not an ONNX model"),
    "inspect: weights": (["inspect", "even.safetensors"], "even.safetensors is not an ONNX model"),
    "inspect: garbled metadata": (["inspect", "garbled.onnx"], "metadata cannot be read"),
    "layers: no file": (["layers", "nothing.pt"], "nothing.pt is not there"),
    "layers: no architecture": (["layers", "even.pt"], "--arch"),
    "run: no model": (["run", "nothing.onnx", "pixel/one.png", "-oout/a.png"], "nothing.onnx does not exist"),
    "run: text as the model": (["run", "text.onnx", "pixel/one.png", "-oout/a.png"], "does not load text.onnx"),
    "run: no picture": (["run", "even.onnx", "nothing.png", "-oout/a.png"], "nothing.png does not exist"),
    "run: no picture but text": (["run", "even.onnx", "damaged/broken.png", "-oout/a.png"], "broken.png is not a picture"),
    "run: a folder of pictures": (["run", "even.onnx", "pictures", "-oout/a.png"], "pictures is not a file"),
    "run: another format": (["run", "even.onnx", "pixel/one.png", "-oout/a.gif"], "ends in .gif"),
    "run: no format": (["run", "even.onnx", "pixel/one.png", "-oout/a"], "has no suffix"),
    "run: no folder": (["run", "even.onnx", "pixel/one.png", "-onothing/a.png"], "folder nothing does not exist"),
    "run: the picture itself": (["run", "even.onnx", "pixel/one.png", "-opixel/one.png"], "one.png exists; give --force"),
    "run: the picture, forced": (["run", "even.onnx", "pixel/one.png", "-opixel/one.png", "--force"], "is the image itself"),
    "run: another rank": (["run", "rank3.onnx", "pixel/one.png", "-oout/a.png"], "3xhxw; one image batch"),
    "run: no input": (["run", "none.onnx", "pixel/one.png", "-oout/a.png"], "one image batch"),
    "run: two inputs": (["run", "two.onnx", "pixel/one.png", "-oout/a.png"], "one image batch"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_OTHERS)
def test_the_other_commands_refuse(case, workshop):
    arguments, expected = BAD_OTHERS[case]
    before = contents(workshop)
    assert re.search(expected, complaint(call(*arguments)))
    assert contents(workshop) == before


def test_an_error_that_was_not_foreseen_does_not_look_like_a_failed_gate(workshop, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("key")

    monkeypatch.setattr("asvp_export.workflows.publication.to_onnx", broken)
    answer = call(*even())
    assert answer.code == 3 and "Traceback" not in answer.err
    assert "KeyError: 'key'" in answer.err and "--debug" in answer.err
    answer = call(*even(), "--debug")
    assert answer.code == 3 and "Traceback" in answer.err


def test_debug_shows_the_traceback_and_keeps_the_exit_code(workshop):
    answer = call("inspect", "nothing.onnx", "--debug")
    assert answer.code == 2 and "Traceback" in answer.err and answer.err.splitlines()[-1].startswith("Error: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_result_that_cannot_be_printed_exits_3(workshop):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "asvp_export", "inspect", "even.onnx", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_export_spelled_out_is_the_default_command_and_the_output_has_a_default(workshop):
    answer = call("export", *even(output=None))
    assert answer.code == 0 and "passed  even.protected.onnx" in answer.out
    assert Path("even.protected.onnx").read_bytes() == Path("even.onnx").read_bytes()
    for written in ("even.protected.onnx", "even.protected.report.json", "even.protected.manifest.json"):
        Path(written).unlink()


def test_the_report_has_every_field(workshop):
    report = json.loads(Path("even.report.json").read_text())
    assert {"passed", "tool_version", "model", "source_sha256", "output", "output_sha256", "layers", "fidelity",
            "preservation", "latency", "environment"} <= set(report)  # fmt: skip
    assert report["passed"] is True and report["model"] == "even.pt" and report["output"] == "even.onnx"
    for kind, file in (("source", "even.pt"), ("output", "even.onnx")):
        assert report[f"{kind}_sha256"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    (layer,) = report["layers"]
    attributes = {"rank": 1, "gain": 1.01, "energy": 1.0, "axis": 1, "residual": 1.0}
    assert {"name": "head", **attributes}.items() <= layer.items()
    assert layer["relative_feature_change"] > 0 and layer["strength"] > 0
    for gate, threshold in (("fidelity", 80), ("preservation", 48)):
        found = report[gate]
        assert found["passed"] and found["threshold"] == threshold
        assert threshold <= found["min_psnr"] <= found["mean_psnr"] and 0 < found["min_ssim"] <= 1
        assert found["min_psnr"] == min(one["psnr"] for one in found["per_image"])
    assert report["latency"]["original"] > 0 and report["latency"]["protected"] > 0


def test_a_module_that_prints_does_not_disturb_the_json(workshop):
    for debug in ([], ["--debug"]):
        answer = call("layers", "chatty.pt", "--arch=nets.py:Chatty", "--json", *debug)
        found = json.loads(answer.out)["layers"]
        assert [layer["name"] for layer in found] == ["head", "body.0", "body.1", "body", "tail"]
        assert ("forward" in answer.err) == bool(debug)


def test_a_failed_gate_exits_1_and_leaves_the_reports_but_no_file(workshop, tmp_path):
    junit = tmp_path / "j.xml"
    failing = even(gain="30", residual="gain", output=str(tmp_path / "p.onnx"), junit=str(junit))
    answer = call(*failing, f"--report={workshop / 'out'}")
    assert answer.code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["j.xml"]
    report = Path("out/p.report.json")
    assert json.loads(report.read_text())["passed"] is False and json.loads(report.read_text())["output"] is None
    assert "Failed" in Path("out/report.html").read_text()
    for written in (report, Path("out/report.html")):
        written.unlink()
    assert "failed" in answer.out and "passed  " not in answer.out
    assert re.search(r"preservation: \d+ of 10 comparisons do not reach 48 dB", answer.err)
    assert all(path.name in answer.err for path in Path("pictures").iterdir())
    suites = {suite.get("name"): suite for suite in ElementTree.parse(junit).getroot()}
    assert suites["fidelity"].get("failures") == "0" and int(suites["preservation"].get("failures", 0)) > 0
    assert (
        len(suites["fidelity"].findall("testcase")) == len(suites["preservation"].findall("testcase")) == 10
    )  # two ways


def test_a_failed_file_is_kept_where_one_asks_for_it_and_one_is_told(workshop, tmp_path):
    answer = call(*even(gain="30", residual="gain", output=str(tmp_path / "p.onnx")), "--keep-failed", "--model-card")
    assert answer.code == 1 and "p.failed.onnx" in answer.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.failed.onnx", "p.report.json"], (
        "no card, no manifest"
    )


@pytest.mark.parametrize("original, protected, gates", [("even.pt", "even.onnx", 2), ("same.onnx", "same.onnx", 1)])
def test_check_gives_the_verdict(original, protected, gates, workshop, tmp_path):
    junit = tmp_path / "j.xml"
    command = ["check", original, protected, "--images=pictures", f"--junit={junit}"]
    command += ["--arch=nets.py:Even"] if gates == 2 else []
    before = contents(workshop)
    answer = call(*command)
    assert answer.code == 0 and f"passed  {protected}" in answer.out
    suites = list(ElementTree.parse(junit).getroot())
    assert [suite.get("name") for suite in suites] == ["fidelity", "preservation"][-gates:]
    assert all(len(suite.findall("testcase")) == 10 and suite.get("failures") == "0" for suite in suites)
    assert contents(workshop) == before


def test_check_fails_under_the_threshold(workshop, tmp_path):
    junit = tmp_path / "j.xml"
    answer = call(*CHECK_EVEN, "even.onnx", "--min-psnr=200", f"--junit={junit}")
    assert answer.code == 1
    assert "failed  even.onnx" in answer.out and "passed  even.onnx" not in answer.out
    assert "preservation: 10 of 10 comparisons do not reach 200 dB" in answer.err
    assert ElementTree.parse(junit).getroot().get("failures") == "10"


def test_check_of_an_onnx_original_fails_where_the_files_differ(workshop):
    answer = call("check", "same.onnx", "even.onnx", "--images=pictures", "--min-psnr=150", "--json")
    assert answer.code == 1 and not json.loads(answer.out)["passed"]
    assert json.loads(answer.out)["fidelity"] is None


def test_check_notices_another_teacher(workshop):
    answer = call("check", "even.safetensors", "even.onnx", "--arch=nets.py:Even", "--images=pictures")
    assert answer.code == 0, "the same weights in another file pass"
    assert "even.safetensors (its sha256 differs)" in " ".join(answer.out.split())


def test_check_of_a_file_without_metadata_measures_preservation(workshop, tmp_path):
    model = onnx.load("even.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    answer = call("check", "even.pt", tmp_path / "bare.onnx", "--arch=nets.py:Even", "--images=pictures", "--json")
    report = json.loads(answer.out)
    assert answer.code == 0 and report["passed"] and report["fidelity"] is None
    assert any("metadata" in note for note in report["notes"])


def test_check_writes_a_report_only_where_it_is_told_to(workshop, tmp_path):
    assert call("check", "same.onnx", "same.onnx", "--images=pictures", f"--report={tmp_path}", "--quiet") == (
        0,
        "",
        "",
    )
    assert json.loads((tmp_path / "same.report.json").read_text())["passed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "same.report.json"]


def test_inspect_shows_nodes_and_provenance(workshop):
    found = json.loads(call("inspect", "even.onnx", "--json").out)
    assert found["inputs"] == {"input": ["batch", 3, "height", "width"]}
    assert [node["name"] for node in found["nodes"]] == ["asvp/head"]
    assert found["provenance"]["source_sha256"] == hashlib.sha256(Path("even.pt").read_bytes()).hexdigest()
    assert (found["provenance"]["size"]["multiple"], found["provenance"]["scale"]) == (2, 1)
    shown = call("inspect", "even.onnx")
    assert shown.code == 0 and not shown.err
    for text in (
        "asvp/head",
        "1.01",
        "batch x 3 x height x width",
        "multiples of 2",
        found["provenance"]["source_sha256"],
    ):
        assert text in shown.out
    assert "no ASVP node" in call("inspect", "same.onnx").out


def test_inspect_says_which_data_file_was_left_behind(workshop, tmp_path):
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], np.ones(1, np.float32).tobytes(), raw=True)
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([], "weights", [], [output], [weights]), ir_version=8)
    onnx.save(model, tmp_path / "p.onnx", save_as_external_data=True, location="p.data", size_threshold=0)
    assert call("inspect", tmp_path / "p.onnx").code == 0
    (tmp_path / "p.data").unlink()
    assert "p.data, which is not beside it" in complaint(call("inspect", tmp_path / "p.onnx"))


def test_layers_lists_what_can_carry_the_node(workshop):
    found = json.loads(call("layers", "even.pt", "--arch=nets.py:Even", "--json").out)
    assert [layer["name"] for layer in found["layers"]] == ["head", "body.0", "body.1", "body", "tail"]
    assert found["layers"][0]["shape"] == [1, 8, 32, 48] and found["layers"][0]["axis"] == 1
    shown = call("layers", "even.pt", "--arch=nets.py:Even")
    assert shown.code == 0 and all(layer["name"] in shown.out for layer in found["layers"])


def odd_picture(path: Path) -> np.ndarray:
    """Write an odd part of a photograph; returns what a reader sees, [H, W, 3]."""
    (source, *_) = sorted(Path("pictures").iterdir())
    Image.open(source).crop((0, 0, 79, 61)).save(path)
    return read_image(path)


@pytest.mark.parametrize("net, scale, multiple", [("Even", 1, 2), ("Double", 2, 1)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_run_restores_an_odd_picture_as_pytorch_does(net, scale, multiple, suffix, workshop, tmp_path):
    picture = odd_picture(tmp_path / f"in{suffix}")
    file = f"{net.lower()}.onnx"
    answer = call("run", file, tmp_path / f"in{suffix}", "-o", tmp_path / "out.png", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == {"written": "out.png", "input": [61, 79], "output": [61 * scale, 79 * scale]}
    restored = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    teacher = asvp_export.load(f"{net.lower()}.pt", arch=f"nets.py:{net}")
    padded = pad_to(picture.transpose(2, 0, 1)[None], SizeRule(1, multiple))
    expected = asvp_export.protect(teacher, "head", gain=1.01)(torch.from_numpy(padded))[0].permute(1, 2, 0).numpy()
    expected = np.rint(np.clip(expected[: 61 * scale, : 79 * scale], 0, 1) * 255)
    assert restored.shape == expected.shape and np.abs(restored - expected).max() <= 1
    assert np.mean(restored != expected) < 0.01, "only ties of the rounding may fall otherwise"


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_run_writes_other_formats(suffix, workshop, tmp_path):
    assert call("run", "even.onnx", "pixel/one.png", "-o", tmp_path / f"a{suffix}").code == 0
    assert Image.open(tmp_path / f"a{suffix}").size == (1, 1)


def test_run_replaces_a_picture_only_when_forced(workshop, tmp_path):
    (tmp_path / "a.png").write_bytes(b"older")
    command = ["run", "even.onnx", "pixel/one.png", "-o", tmp_path / "a.png", "--quiet"]
    assert "--force" in complaint(call(*command)) and (tmp_path / "a.png").read_bytes() == b"older"
    assert call(*command, "--force") == (0, "", "")
    assert Image.open(tmp_path / "a.png").size == (1, 1)


def test_quiet_is_quiet(workshop, tmp_path):
    assert call(*even(output=str(tmp_path / "p.onnx")), "--quiet") == (0, "", "")
    for command in (["layers", "even.pt", "--arch=nets.py:Even"], ["inspect", "even.onnx"]):
        assert call(*command, "--quiet") == (0, "", "")


def test_names_may_hold_spaces_and_any_letters(workshop, tmp_path, monkeypatch):
    folder = tmp_path / "två [bold] ordner 模型"
    folder.mkdir()
    (folder / "mein modell.pt").write_bytes(Path("even.pt").read_bytes())
    (folder / "nets.py").write_text(NETS)
    (folder / "bilder").symlink_to(workshop / "pictures")
    monkeypatch.chdir(folder)
    answer = call(*even(model="mein modell.pt", images="bilder", output="[red]ausgabe é.onnx"))
    assert answer.code == 0, answer.err
    assert "[red]ausgabe é.onnx" in answer.out and "[red]ausgabe é.report.json" in answer.out
    assert "mein modell.pt" in answer.err
    assert "[red]ausgabe é.onnx" in call("inspect", "[red]ausgabe é.onnx").out
    (folder / "a b.png").write_bytes((workshop / "pixel/one.png").read_bytes())
    assert call("run", "[red]ausgabe é.onnx", "a b.png", "-o", "ü.png").code == 0


HEAVY = "torch", "onnx", "onnxruntime", "numpy", "skimage", "PIL", "rich"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["export", "--help"], ["check", "--help"]])
def test_help_answers_at_once(arguments, tmp_path):
    code = (
        "import sys; from asvp_export.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "[]\n"
    assert "asvp-export" in done.stdout


def test_every_command_is_in_the_help():
    shown = call("--help").out
    assert all(command in shown for command in ("export", "layers", "check", "inspect", "run"))


def test_no_arguments_show_the_help():
    answer = call()
    assert answer.code == 2 and "Usage: asvp-export" in answer.err


def test_the_package_runs_as_a_module(workshop):
    done = subprocess.run(
        [sys.executable, "-m", "asvp_export", "inspect", workshop / "even.onnx", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr
    assert json.loads(done.stdout)["file"] == "even.onnx"
