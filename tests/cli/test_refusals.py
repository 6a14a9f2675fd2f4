"""What the commands say to what they cannot use: one line, exit code 2, and nothing changed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator

import pytest
import torch

from tests.helpers.commands import call, complaint
from tests.helpers.workshop import CHECK_EVEN, CHECK_ONNX, contents, even

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

BAD_EXPORT = {
    "a model that is not there": (even(model="nothing.pt"), "nothing.pt does not exist"),
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
    "an architecture's file that is not there": (even(arch="nowhere.py:Even"), "nowhere.py does not exist"),
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
}


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


RUN_EVEN = ["run", "even.onnx"]


def check(original: str, protected: str) -> list[str]:
    return ["check", original, protected, "--images=pictures"]


BAD_OTHERS = {
    "check: no protected file": ([*CHECK_EVEN, "nothing.onnx"], "nothing.onnx does not exist"),
    "check: a folder": ([*CHECK_EVEN, "pictures"], "pictures is not a file"),
    "check: text": ([*CHECK_EVEN, "text.onnx"], "cannot load text.onnx"),
    "check: an empty file": ([*CHECK_EVEN, "empty.onnx"], "empty.onnx is empty"),
    "check: other channels": ([*CHECK_EVEN, "grey.onnx"], "3 channels were expected, channels first"),
    "check: another rank": (
        [*CHECK_EVEN, "rank3.onnx"],
        r"takes x0 tensor\(float\) 3xhxw; 1 input\(s\), the image \[N, C, H, W\]",
    ),
    "check: two inputs": ([*CHECK_EVEN, "two.onnx"], "that all inputs were given"),
    "check: no input": ([*CHECK_EVEN, "none.onnx"], "takes nothing; 1 input"),
    "check: garbled metadata": ([*CHECK_EVEN, "garbled.onnx"], "metadata cannot be read"),
    "check: another size": ([*CHECK_EVEN, "fixed.onnx", "--size=32x32"], "32x32 .* takes 48x64 only"),
    "check: another scale": ([*CHECK_EVEN, "double.onnx"], "not the same model"),
    "check: no original": (check("nothing.onnx", "even.onnx"), "nothing.onnx does not exist"),
    "check: original of other channels": (check("grey.onnx", "even.onnx"), "1 channels were expected"),
    "check: original of another rank": (check("rank3.onnx", "even.onnx"), "takes x0 float 3xhxw; a float image batch"),
    "check: original that is not an image model": (check("flat.onnx", "same.onnx"), "which is not an image batch"),
    "check: a file that is not an image model": ([*CHECK_ONNX, "flat.onnx"], "not the same model"),
    "run: no output": (["run", "even.onnx", "pixel/one.png"], "Missing option '-o' / '--output'"),
    "run: an overlap of no tiles": (
        ["run", "even.onnx", "pixel/one.png", "-oout/a.png", "--overlap=8"],
        "give --tile PIXELS too, or leave it out",
    ),
    "run: another output": (["run", "flat.onnx", "pixel/one.png", "-oout/a.png"], r"shape \(1, 3\) .* RGB image"),
    "check: original of two inputs": (check("two.onnx", "even.onnx"), "takes 2 inputs"),
    "check: original that is text": (check("text.onnx", "even.onnx"), "text.onnx is damaged, or not an ONNX model"),
    "check: ONNX files of two scales": (check("even.onnx", "double.onnx"), "not the same model"),
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
    "layers: no file": (["layers", "nothing.pt"], "nothing.pt does not exist"),
    "layers: no architecture": (["layers", "even.pt"], "--arch"),
    "run: no model": (["run", "nothing.onnx", "pixel/one.png", "-oout/a.png"], "nothing.onnx does not exist"),
    "run: text as the model": (["run", "text.onnx", "pixel/one.png", "-oout/a.png"], "cannot load text.onnx"),
    "run: no picture": ([*RUN_EVEN, "nothing.png", "-oout/a.png"], "nothing.png does not exist"),
    "run: no picture but text": ([*RUN_EVEN, "damaged/broken.png", "-oout/a.png"], "broken.png is not a picture"),
    "run: a folder of pictures": ([*RUN_EVEN, "pictures", "-oout/a.png"], "pictures is not a file"),
    "run: another format": ([*RUN_EVEN, "pixel/one.png", "-oout/a.gif"], "ends in .gif"),
    "run: no format": ([*RUN_EVEN, "pixel/one.png", "-oout/a"], "has no suffix"),
    "run: no folder": ([*RUN_EVEN, "pixel/one.png", "-onothing/a.png"], "folder nothing does not exist"),
    "run: the picture itself": ([*RUN_EVEN, "pixel/one.png", "-opixel/one.png"], "one.png exists; give --force"),
    "run: the picture, forced": ([*RUN_EVEN, "pixel/one.png", "-opixel/one.png", "--force"], "is the image itself"),
    "run: another rank": (["run", "rank3.onnx", "pixel/one.png", "-oout/a.png"], "3xhxw; one image batch"),
    "run: no input": (["run", "none.onnx", "pixel/one.png", "-oout/a.png"], "one image batch"),
    "run: two inputs": (["run", "two.onnx", "pixel/one.png", "-oout/a.png"], "one image batch"),
}


@pytest.mark.parametrize("case", BAD_OTHERS)
def test_the_other_commands_refuse(case, workshop):
    arguments, expected = BAD_OTHERS[case]
    before = contents(workshop)
    assert re.search(expected, complaint(call(*arguments)))
    assert contents(workshop) == before
