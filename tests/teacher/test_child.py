"""What a model's file does to the process that tries it out does not happen to us, and what it prints is not ours."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from asvp_export.errors import AsvpError, InputError, MachineError
from asvp_export.signature import SizeRule
from asvp_export.teacher import child
from asvp_export.teacher.child import Limits, StoppedError, child_process
from asvp_export.teacher.load import load
from asvp_export.teacher.model import named_outputs
from asvp_export.teacher.onnx_model import read_onnx
from tests.helpers.commands import ENVIRONMENT, run_apart

divides = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors take a division by zero"
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell of memory")


def saved(
    path: Path, nodes: list[onnx.NodeProto], *constants: onnx.TensorProto, outputs: tuple[str, ...] = ("y",)
) -> Path:
    """A graph from x, float N,3,H,W."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in outputs]
    graph = helper.make_graph(nodes, "g", [x], made, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def constant(name: str, value: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def crashing(folder: Path) -> Path:
    """Attention by a pooled map that is empty below 11 pixels: onnxruntime divides by zero, which ends the process."""
    rng = np.random.default_rng(0)
    shapes = {"a": (16, 3, 3, 3), "d": (16, 16, 3, 3), "e": (16, 16, 3, 3), "o": (3, 16, 3, 3)}
    same = {"pads": [1, 1, 1, 1]}
    return saved(
        folder / "crashing.onnx",
        [
            helper.make_node("Conv", ["x", "a"], ["f"], name="first", **same),
            helper.make_node("Conv", ["f", "d"], ["less"], strides=[2, 2]),
            helper.make_node("MaxPool", ["less"], ["pooled"], kernel_shape=[7, 7], strides=[3, 3]),
            helper.make_node("Conv", ["pooled", "e"], ["c"], **same),
            helper.make_node("Shape", ["f"], ["whole"]),
            helper.make_node("Resize", ["c", "", "", "whole"], ["large"], mode="linear"),
            helper.make_node("Sigmoid", ["large"], ["s"]),
            helper.make_node("Mul", ["f", "s"], ["m"]),
            helper.make_node("Conv", ["m", "o"], ["r"], **same),
            helper.make_node("Add", ["x", "r"], ["y"]),
        ],
        *(constant(name, rng.normal(0, 0.1, shape).astype(np.float32)) for name, shape in shapes.items()),
    )


class Dividing(nn.Module):
    """Divides whole numbers by how many tiles there are, none below 16 pixels; TorchScript does not look what by."""

    def __init__(self, tile: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tile = tile
        self.a = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.a(x) / (10 + x.size(2) % (x.size(2) // self.tile))


def endless(folder: Path) -> Path:
    """Adds 1 to the image as often as an int64 can say."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["n", 3, "h", "w"]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, ["n", 3, "h", "w"]),
        ],
    )
    return saved(
        folder / "endless.onnx",
        [helper.make_node("Loop", ["often", "", "x"], ["y"], body=step)],
        constant("often", 2**62),
        constant("one", np.float32(1)),
    )


def greedy(folder: Path) -> Path:
    """Fills 1.2 million numbers for each row of the image, many GiB in a second or two, and returns the image."""
    return saved(
        folder / "greedy.onnx",
        [
            helper.make_node("Shape", ["x"], ["sides"], start=2),
            helper.make_node("Concat", ["sides", "many"], ["shape"], axis=0),
            helper.make_node("ConstantOfShape", ["shape"], ["filled"], value=helper.make_tensor("v", 1, [1], [1.0])),
            helper.make_node("Sigmoid", ["filled"], ["half"]),
            helper.make_node("ReduceMax", ["half"], ["most"], keepdims=0),
            helper.make_node("Mul", ["x", "most"], ["y"]),
        ],
        constant("many", [1_200_000]),
    )


class Mapping(nn.Module):
    """Returns pictures by name, a sequence and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"restored": x + 0.1 * self.a(x), "mask": self.a(x) > 0, "mean": x.mean().half()}


class Endless(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.numel() > 0):
            x = x + 1
        return x


class Opening(nn.Module):
    """Counts without end while it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.a, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        counted = state[0]
        while bool(counted.numel() > 0):
            counted = counted + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.a.sum()


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module.eval()).save(str(path))
    return path


def children(pid: int) -> list[int]:
    """The processes that a process has started and not buried."""
    return [int(one) for task in Path(f"/proc/{pid}/task").glob("*/children") for one in task.read_text().split()]


@pytest.fixture
def left() -> object:
    """No process is left by the test."""
    before = set(children(os.getpid()))
    yield
    assert set(children(os.getpid())) <= before


# Crashes


@divides
@pytest.mark.parametrize(("kind", "least", "runner"), [("onnx", 11, "onnxruntime"), ("torchscript", 16, "PyTorch")])
def test_a_crash_below_some_size_is_a_size_that_does_not_work(kind, least, runner, tmp_path: Path, left):
    path = crashing(tmp_path) if kind == "onnx" else scripted(Dividing(), tmp_path / "dividing.pt")
    teacher = load(path)
    assert (teacher.size, teacher.scale, teacher.static_shape[2:]) == (SizeRule(least, 1), 1, (None, None))
    (told,) = [one for one in teacher.assumptions if "SIGFPE" in one.because]
    assert (told.about, told.concluded, told.certain) == ("sizes", f"at least {least}", False)
    assert told.because == f"{runner} is ended by SIGFPE at {least - 1}x{least - 1}"


@divides
def test_every_command_takes_a_model_that_crashes_on_small_images(tmp_path: Path):
    crashing(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name, height, width in (
        ("pictures/a", 33, 40),
        ("pictures/b", 32, 48),
        ("pictures/c", 40, 40),
        ("small", 9, 12),
    ):
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    found = json.loads(run_apart("layers", "crashing.onnx", "--json", cwd=tmp_path).stdout)
    assert "first" in [layer["name"] for layer in found["layers"]]
    few = "--images=pictures"  # which spares those of the project
    done = run_apart("crashing.onnx", "--layers=auto:1", few, "--output=p.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run_apart("check", "crashing.onnx", "p.onnx", few, cwd=tmp_path).returncode == 0
    assert run_apart("run", "p.onnx", "small.png", "--output=small_out.png", cwd=tmp_path).returncode == 0
    assert Image.open(tmp_path / "small_out.png").size == (12, 9)


@divides
def test_a_model_that_crashes_on_every_image_is_refused(tmp_path: Path, left, monkeypatch):
    monkeypatch.setattr(child, "_CRASHES", 3)
    with pytest.raises(
        AsvpError, match=r"crashes at each size that was tried: the process that ran it was ended by SIGFPE on 1x3x"
    ):
        load(scripted(Dividing(4096), tmp_path / "dividing.pt"))


def test_a_file_whose_opening_ends_the_process_is_refused(tmp_path: Path, left, monkeypatch):
    ending = tmp_path / "ending.py"
    ending.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(child.child_main, "__file__", str(ending))
    with pytest.raises(
        AsvpError, match=r"crashing.onnx cannot be opened: the process that ran it was ended by SIGSEGV"
    ):
        load(crashing(tmp_path))


def test_what_cannot_be_opened_apart_runs_here(tmp_path: Path, left, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    assert load(scripted(Mapping(), tmp_path / "m.pt")).signature.outputs[0] == "restored"


# Limits


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_run_without_end_is_one_sentence_with_the_size(kind, tmp_path: Path, left):
    path = endless(tmp_path) if kind == "onnx" else scripted(Endless(), tmp_path / "endless.pt")
    with pytest.raises(
        StoppedError, match=rf"^{path.name} did not finish within 2 s on 1x3x49x51; .*--probe-timeout SECONDS\.$"
    ) as error:
        load(path, probe_timeout=2)
    assert error.value.exit_code == 2


def test_opening_without_end_is_one_sentence(tmp_path: Path, left):
    path = scripted(Opening(), tmp_path / "opening.pt")
    with pytest.raises(StoppedError, match=r"^opening.pt did not finish within 2 s while it was opened; "):
        load(path, probe_timeout=0.2)


def test_what_onnxruntime_does_not_open_is_refused_at_once(tmp_path: Path, left):
    path = saved(tmp_path / "odd.onnx", [helper.make_node("Odd", ["x"], ["y"], domain="com.example")])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, path)
    with pytest.raises(
        InputError,
        match=r"^onnxruntime cannot open .*odd.onnx: Fatal error: com.example:Odd\(-1\) is not a registered .*\.$",
    ):
        load(path)


def test_the_limit_is_an_option_of_the_commands(tmp_path: Path):
    endless(tmp_path)
    done = run_apart("layers", "endless.onnx", "--probe-timeout=1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"Error: endless.onnx did not finish within 1 s on 1x3x49x51; [^\n]*\n", done.stderr)


@needs_proc
def test_memory_without_end_is_one_sentence_with_the_size(tmp_path: Path, left, monkeypatch):
    path = greedy(tmp_path)
    monkeypatch.setattr(child, "_free_memory", lambda: 2**29)
    with pytest.raises(MachineError, match=r"^greedy.onnx took more than 0.4 GiB of memory on 1x3x49x51, [^\n]*$"):
        load(path)


@needs_proc
def test_the_limit_of_memory_is_an_option_of_the_commands(tmp_path: Path):
    greedy(tmp_path)
    done = run_apart("layers", "greedy.onnx", "--probe-memory=400", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"Error: greedy.onnx took more than 400 MiB of memory on 1x3x49x51; [^\n]*--probe-memory MIB\.\n", done.stderr
    )


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_ours_is_ended(number, tmp_path: Path):
    endless(tmp_path)
    command = [sys.executable, "-m", "asvp_export", "layers", "endless.onnx"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ours:
        while not (
            theirs := [pid for pid in children(ours.pid) if b"child_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        ):
            assert ours.poll() is None
            time.sleep(0.05)
        time.sleep(1)  # it is in the midst of the run
        ours.send_signal(number)
        ours.wait()
    for _ in range(200):
        if not any(Path(f"/proc/{pid}/cmdline").exists() for pid in theirs):
            break
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in theirs)
    assert ours.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]


# Results


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_what_comes_back_is_what_the_module_returns(kind, tmp_path: Path, left):
    if kind == "onnx":
        path = crashing(tmp_path)
        module: nn.Module = read_onnx(path)
    else:
        path = scripted(Mapping(), tmp_path / "m.pt")
        module = torch.jit.load(path).float().eval()
    x = torch.rand(2, 3, 20, 24)
    with torch.no_grad(), child_process(path, "cpu", Limits(60)) as child:
        child.start(kind)
        assert child.open()
        runs = child.stand_for(module)
        expected, got = named_outputs(module(x)), named_outputs(runs(x))
        with pytest.raises(RuntimeError):
            runs(torch.rand(1, 4, 20, 24))
        again = named_outputs(runs(x))
    assert list(expected) == list(got) == list(again)
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
        torch.testing.assert_close(got[name], tensor)


def test_external_data_is_found(tmp_path: Path, left):
    model = onnx.load(crashing(tmp_path))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "data" / "m.data").exists()
    with child_process(path, "cpu", Limits(60)) as child:
        child.start("onnx")
        runs = child.stand_for(read_onnx(path, child))
        assert named_outputs(runs(torch.rand(1, 3, 20, 24)))["output"].shape == (1, 3, 20, 24)
        assert not child._in_this_process


def test_a_module_in_memory_stays_here():
    module = nn.Conv2d(3, 3, 1)
    with child_process(None, "cpu", Limits()) as child:
        assert child.stand_for(module) is module


# Words


def test_the_exporters_dump_of_a_graph_is_not_seen(tmp_path: Path):
    scripted(Mapping(), tmp_path / "m.pt")
    done = run_apart("layers", "m.pt", "--json", cwd=tmp_path)
    if done.returncode:
        assert done.stdout == ""
        assert re.fullmatch(r"Error: [^\n]*\n", done.stderr)
    else:
        json.loads(done.stdout)
