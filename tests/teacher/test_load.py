"""Loading a teacher: state dicts, files that are none, truncated files, and the options."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from asvp_export.signature import SizeRule
from asvp_export.teacher.architecture import build
from asvp_export.teacher.load import load
from tests.helpers.loading import Residual, exported, refused

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_a_state_dict_with_its_architecture_computes_what_the_original_did(
    folder: Path, state: dict[str, torch.Tensor], suffix: str
) -> None:
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    teacher = load(path, arch="nets.py:Net")
    original = build("nets.py:Net", {})
    original.load_state_dict(state)
    image = teacher.example()
    assert torch.equal(teacher.module(image), original.eval()(image))
    assert (teacher.source, teacher.format) == (path.name, "state-dict")
    assert teacher.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (teacher.channels, teacher.scale, teacher.size, teacher.static_shape) == (3, 1, SizeRule(1, 1), (None,) * 4)
    assert not teacher.module.training
    assert not any(weight.requires_grad for weight in teacher.module.parameters())


def test_a_path_may_be_a_string(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / "w.pt")
    assert load("w.pt", arch="nets.py:Net").source == "w.pt"


def test_an_old_plain_pickle_of_tensors_is_read(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / "w.pt", _use_new_zipfile_serialization=False)
    assert load(folder / "w.pt", arch="nets.py:Net").format == "state-dict"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"params": s},
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        lambda s: {"model": s, "iteration": torch.tensor(5)},
        lambda s: {"model_state_dict": s, "loss": 0.5},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"strange": s, "epoch": 1},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {k.replace("body.", "body._orig_mod."): v for k, v in s.items()},
        lambda s: {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}},
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
        lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
        lambda s: {**s, "epoch": 4},
    ],
)
def test_nesting_prefixes_and_half_precision_are_undone(
    folder: Path, state: dict[str, torch.Tensor], wrap: Any
) -> None:
    torch.save(wrap(state), folder / "w.pth")
    teacher = load(folder / "w.pth", arch="nets.py:Net")
    weights = teacher.module.state_dict()
    assert all(torch.allclose(weights[key], state[key], rtol=1e-2, atol=1e-2) for key in state)
    assert {weight.dtype for weight in teacher.module.parameters()} == {torch.float32}


def test_averaged_weights_are_preferred(folder: Path, state: dict[str, torch.Tensor]) -> None:
    averaged = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"params": state, "params_ema": averaged}, folder / "w.pth")
    assert not load(folder / "w.pth", arch="nets.py:Net").module.head.weight.any()


def test_a_half_precision_architecture_becomes_float32(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / "w.pt")
    teacher = load(folder / "w.pt", arch="nets.py:half")
    assert {weight.dtype for weight in teacher.module.parameters()} == {torch.float32}


def test_an_attribute_named_module_is_not_taken_for_a_prefix(folder: Path) -> None:
    (folder / "outer.py").write_text(
        "from torch import nn\nclass Outer(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.module = nn.Conv2d(3, 3, 1)\n    def forward(self, x):\n        return self.module(x)\n"
    )
    torch.save(build("outer:Outer", {}).state_dict(), folder / "w.pt")
    assert load(folder / "w.pt", arch="outer:Outer").scale == 1


def test_a_state_dict_without_its_architecture_is_refused(
    folder: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)  # as where it is not installed
    torch.save(state, folder / "w.pt")
    refused(r"state dict .* install asvp-export\[spandrel\].* or give --arch package\.module:factory", folder / "w.pt")


def test_what_does_not_fit_is_counted_and_named(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({f"x{key}": value for key, value in state.items()}, folder / "w.pt")
    refused(
        r"11 missing keys \(head\.weight, head\.bias, body\.0\.0\.weight, \.\.\.\); 11 unexpected keys \(xhead\.",
        folder / "w.pt",
        arch="nets.py:Net",
    )
    torch.save(state, folder / "w.pt")
    refused(
        r"ill-shaped keys \(head\.weight \(8x3x3x3 in the file, 6x3x3x3 in the architecture\)",
        folder / "w.pt",
        arch="nets.py:Net",
        arch_args={"width": 6},
    )
    del state["tail.bias"]
    torch.save(state, folder / "w.pt")
    refused(r"1 missing key \(tail\.bias\)\. Check --arch", folder / "w.pt", arch="nets.py:Net")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, r"no tensors \(it holds nothing\)"),
        ({"epoch": 3, "lr": 0.1}, r"no tensors \(it holds epoch, lr\)"),
        ([torch.ones(3)], "holds list; expected a state dict"),
        (torch.ones(3), "holds Tensor; expected a state dict"),
        ({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}, r"several state dicts \(a, b\)"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(folder: Path, content: Any, match: str) -> None:
    torch.save(content, folder / "w.pt")
    refused(match, folder / "w.pt", arch="nets.py:Net")


# Other files


def test_files_that_are_no_teacher_are_refused(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    refused("absent.pt does not exist", tmp_path / "absent.pt")
    refused("is a directory", tmp_path)
    refused("is empty", file("a.pt", b""))
    refused(r"unknown format \(it begins with 3c 68 74", file("b.pt", b"<html>Not found</html>"))
    refused("Git LFS pointer", file("c.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))
    refused("damaged, or not a safetensors", file("d.safetensors", b"\xff" * 100))
    refused("damaged, or not an ONNX model", file("e.onnx", b"anything"))
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("a/b.txt", "text")
    refused("not one that PyTorch wrote", tmp_path / "f.zip")
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere")
    refused("does not exist", tmp_path / "link.pt")


def test_a_real_onnx_file_is_known_without_its_suffix(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    for number, producer in enumerate(("pytorch", "")):
        path = tmp_path / f"model{number}.bin"
        opsets = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, producer_name=producer, ir_version=8, opset_imports=opsets), str(path))
        refused("takes x float 1; a float image batch", path)


@pytest.mark.parametrize("kind", ["w.safetensors", "w.pt", "old.pt", "m.pt2", "module.pt"])
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9])
def test_a_truncated_file_is_refused(folder: Path, state: dict[str, torch.Tensor], kind: str, keep: float) -> None:
    path = folder / kind
    if kind == "w.safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "m.pt2":
        exported(path)
    else:
        torch.save(state if kind != "module.pt" else Residual(), path, _use_new_zipfile_serialization=kind != "old.pt")
    path.write_bytes(path.read_bytes()[: max(2, int(keep * path.stat().st_size))])
    refused("truncated or damaged|damaged, or not a safetensors|unknown format", path, arch="nets.py:Net")
    refused("truncated or damaged|damaged, or not a safetensors|unknown format", path, trust_pickle=True)


# Options


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "mps", ""])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    refused("the device", Residual(), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_refused() -> None:
    refused("PyTorch sees 0 CUDA devices; use --device cpu", Residual(), device="cuda")


@pytest.mark.parametrize("data_range", [0, -1.0, float("nan"), float("inf"), "white", "1..0", (0, 1, 2), True])
def test_a_data_range_that_is_none_is_refused(data_range: Any) -> None:
    refused("data range", Residual(), data_range=data_range)
