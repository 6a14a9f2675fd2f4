"""Loading a teacher: every format, every refusal, and what is found out by running it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter
from torch.nn import functional

from asvp_export.errors import InputError
from asvp_export.signature import SizeRule
from asvp_export.teacher.architecture import build
from asvp_export.teacher.load import load
from asvp_export.teacher.model import Teacher, natural_images

NETS = '''
import torch
from torch import nn
from blocks import Block

class Net(nn.Module):
    """A residual network that the tests write to disk."""
    def __init__(self, width: int = 8):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(Block(width), nn.BatchNorm2d(width))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    class Half:
        pass

    def forward(self, x):
        return x + self.tail(self.body(self.head(x)))

def make(width):
    print("made")
    return Net(width)

def half():
    return Net().half()

def fails():
    raise RuntimeError("no luck today")

def quits():
    raise SystemExit(3)

def wrong():
    return {"a": 1}

number = 3
'''
BLOCKS = """
import dataclasses
from torch import nn

@dataclasses.dataclass
class Options:
    width: int

class Block(nn.Sequential):
    def __init__(self, width):
        o = Options(width)
        super().__init__(nn.Conv2d(o.width, o.width, 3, padding=1), nn.ReLU(inplace=True))
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Many tiny models: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with an architecture in nets.py and blocks.py."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "blocks.py").write_text(BLOCKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights that fit `nets.py:Net`."""
    torch.manual_seed(0)
    return build("nets.py:Net", {}).state_dict()


class Residual(nn.Module):
    """The smallest image-to-image network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class Returns(nn.Module):
    """A convolution whose output goes through a given function."""

    def __init__(self, function: Any, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.conv(x), x)


class Unet(nn.Module):
    """A strided encoder and decoder with a skip: the input must be a multiple of 2**depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(depth))
        self.up = nn.ModuleList(nn.ConvTranspose2d(3, 3, 2, stride=2) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in [*self.down, *self.up]:
            y = layer(y)
        return x + y


class Shuffle(nn.Module):
    """PixelUnshuffle by 2, then PixelShuffle by 2 * scale."""

    def __init__(self, scale: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12 * scale**2, 3, padding=1)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(self.conv(functional.pixel_unshuffle(x, 2)), 2 * self.scale)


class Touch:
    """Unpickling this creates a file: an attack in the least harmful form."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def refused(match: str, model: Any, **options: Any) -> None:
    """Loading fails with an InputError (exit 2) of at most two lines that matches."""
    with pytest.raises(InputError, match=f"(?i){match}") as caught:
        load(model, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def exported(path: Path, module: nn.Module | None = None, shape: tuple[int, ...] = (1, 3, 24, 40), **free: Any) -> Path:
    """A .pt2 archive of a module; `free` names the dynamic dimensions n, h, w."""
    dims = {place: free[name] for place, name in ((0, "n"), (2, "h"), (3, "w")) if name in free}
    program = torch.export.export((module or Residual()).eval(), (torch.rand(shape),), dynamic_shapes=(dims,))
    torch.export.save(program, path)
    return path


AUTO = torch.export.Dim.AUTO


# State dicts


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


# Architectures


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
        ("absent.py:Net", {}, "absent.py is not there"),
        ("sub/absent.py:Net", {}, "is not there"),
        ("./nets.txt:Net", {}, r"nets\.txt is no \.py file"),
        ("dir.py:Net", {}, "is a folder"),
        ("absent:Net", {}, "module absent cannot be found"),
        ("nets.absent:Net", {}, "cannot be found"),
        ("needy.py:Net", {}, "No module named 'not_installed_anywhere'. Install what it needs"),
        ("broken.py:Net", {}, "SyntaxError"),
        ("leaving.py:Net", {}, "importing the architecture leaving.py failed: SystemExit"),
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
    refused("arch_args were given without arch", Residual(), arch_args={"width": 3})
    refused("leave --arch nets.py:Net out, it is not needed", Residual(), arch="nets.py:Net")
    refused(
        r"torch\.export archive, holds its architecture.* not needed", exported(folder / "m.pt2"), arch="nets.py:Net"
    )
    torch.save(Residual(), folder / "m.pt")
    refused("a saved module, holds its", folder / "m.pt", arch="nets.py:Net", trust_pickle=True)


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


# Attacks: nothing in a file runs unless its author is trusted


def attacks(marker: Path, folder: Path) -> dict[str, Path]:
    """Files whose full unpickling creates the marker."""
    paths = {name: folder / name for name in ("zip.pt", "old.pt", "dict.pt", "plain.pkl", "module.pt", "tensors.bin")}
    module = Residual()
    module.extra = Touch(marker)
    torch.save(Touch(marker), paths["zip.pt"])
    torch.save(Touch(marker), paths["old.pt"], _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": Touch(marker)}, paths["dict.pt"])
    paths["plain.pkl"].write_bytes(pickle.dumps(Touch(marker)))
    torch.save(module, paths["module.pt"])
    torch.save({"conv.weight": torch.ones(3), "z": Touch(marker)}, paths["tensors.bin"])
    return paths


@pytest.mark.parametrize("name", ["zip.pt", "old.pt", "dict.pt", "plain.pkl", "module.pt", "tensors.bin"])
def test_a_malicious_pickle_is_refused_before_it_runs(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    path = attacks(marker, tmp_path)[name]
    for arch in (None, "torch.nn:Identity"):
        refused(r"pickled Python object.*torch\.save\(model\.state_dict\(\).*--arch.*--trust-pickle", path, arch=arch)
    assert not marker.exists()
    with path.open("rb") as file:  # the attack does work on a reader that unpickles
        pickle.load(file) if name == "plain.pkl" else torch.load(file, weights_only=False)
    assert marker.exists()


def test_the_environment_cannot_turn_the_refusal_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    refused("pickled Python object", attacks(marker, tmp_path)["zip.pt"])
    assert not marker.exists()


def rewritten(path: Path, change: Any) -> None:
    """Write an archive anew with its records changed: change(name, bytes) gives the new bytes."""
    reader = PT2ArchiveReader(str(path))
    skip = (".data/", "byteorder")
    records = {name: reader.read_bytes(name) for name in reader.get_file_names() if not name.startswith(skip)}
    with PT2ArchiveWriter(str(path)) as writer:
        for name, content in records.items():
            writer.write_bytes(name, change(name, content))


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


# Saved modules


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}, lambda m: {"ema": m, "model": None}])
@pytest.mark.parametrize("modern", [True, False])
def test_a_saved_module_needs_trust(tmp_path: Path, wrap: Any, modern: bool) -> None:
    module = Residual().train()
    torch.save(wrap(module), tmp_path / "m.pt", _use_new_zipfile_serialization=modern)
    refused(r"it names [\w.]*Residual.*--trust-pickle", tmp_path / "m.pt")
    teacher = load(tmp_path / "m.pt", trust_pickle=True)
    image = teacher.example()
    assert (teacher.format, teacher.source, teacher.module.training) == ("pickle", "m.pt", False)
    assert torch.equal(teacher.module(image), module(image))


def test_a_trusted_state_dict_with_other_objects_in_it_is_read(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"params": state, "options": Path("x")}, folder / "w.pt")
    refused("pickled Python object", folder / "w.pt", arch="nets.py:Net")
    assert load(folder / "w.pt", arch="nets.py:Net", trust_pickle=True).format == "state-dict"


def test_a_saved_module_whose_code_is_not_here_is_refused(folder: Path) -> None:
    (folder / "passing.py").write_text("from torch import nn\nclass Net(nn.Conv2d):\n    pass\n")
    torch.save(build("passing:Net", {"in_channels": 3, "out_channels": 3, "kernel_size": 1}), folder / "m.pt")
    assert load(folder / "m.pt", trust_pickle=True).scale == 1  # found in the current folder
    del sys.modules["passing"]
    (folder / "passing.py").unlink()
    refused(
        "needs Python code that is not here: ModuleNotFoundError: No module named 'passing'",
        folder / "m.pt",
        trust_pickle=True,
    )


def test_a_module_in_memory_is_copied_and_left_alone() -> None:
    module = Residual().train()
    teacher = load(module)
    assert (teacher.format, teacher.source) == ("module", "Residual")
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())
    assert teacher.module is not module
    again = Residual()
    again.load_state_dict(module.state_dict())
    assert load(again).sha256 == teacher.sha256
    assert load(Residual().bfloat16()).sha256 != teacher.sha256
    assert load(Residual().half()).module.conv.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Identity(), "Identity has no weights"),
        (nn.LazyConv2d(3, 1), "weights without values"),
        (nn.Conv2d(3, 3, 1, device="meta"), "weights without values"),
    ],
)
def test_a_module_without_weights_is_refused(module: nn.Module, match: str) -> None:
    refused(match, module)


# Other files


def test_files_that_are_no_teacher_are_refused(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    refused("absent.pt is not there", tmp_path / "absent.pt")
    refused("is a directory", tmp_path)
    refused("is empty", file("a.pt", b""))
    refused(r"unknown format \(it begins with 3c 68 74", file("b.pt", b"<html>Not found</html>"))
    refused("Git LFS pointer", file("c.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))
    refused("damaged or no safetensors", file("d.safetensors", b"\xff" * 100))
    refused("damaged, or no ONNX model", file("e.onnx", b"anything"))
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("a/b.txt", "text")
    refused("not one that PyTorch wrote", tmp_path / "f.zip")
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere")
    refused("is not there", tmp_path / "link.pt")


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
        onnx.save(helper.make_model(graph, producer_name=producer), str(path))
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
    refused("truncated or damaged|damaged or no safetensors|unknown format", path, arch="nets.py:Net")
    refused("truncated or damaged|damaged or no safetensors|unknown format", path, trust_pickle=True)


def test_bytes_changed_inside_an_archive_are_refused_or_harmless(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.pt2")
    rewritten(path, lambda name, content: b"{}" if name == "models/model.json" else content)
    refused("cannot be loaded|is damaged", path)
    exported(path)
    rewritten(path, lambda name, content: b"?" if name == "archive_version" else content)
    refused("cannot be loaded|is damaged", path)


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


# What running the model shows


def at_least_81(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    assert min(x.shape[2:]) >= 81
    return y


@pytest.mark.parametrize(
    ("module", "scale", "size"),
    [
        (Residual(), 1, SizeRule(1, 1)),
        (Shuffle(), 1, SizeRule(2, 2)),
        (Shuffle(2), 2, SizeRule(2, 2)),
        (Unet(1), 1, SizeRule(2, 2)),
        (Unet(3), 1, SizeRule(8, 8)),
        (Unet(5), 1, SizeRule(32, 32)),
        (nn.Sequential(nn.Conv2d(3, 27, 3, padding=1), nn.PixelShuffle(3)), 3, SizeRule(1, 1)),
        (nn.Sequential(nn.ReflectionPad2d(7), nn.Conv2d(3, 3, 15)), 1, SizeRule(8, 1)),
        (nn.Sequential(nn.ReflectionPad2d(40), nn.Conv2d(3, 3, 81)), 1, SizeRule(41, 1)),
        (Returns(at_least_81), 1, SizeRule(81, 1)),
        (
            nn.Sequential(nn.PixelUnshuffle(4), nn.ReflectionPad2d(3), nn.Conv2d(48, 48, 7), nn.PixelShuffle(4)),
            1,
            SizeRule(16, 4),
        ),
        (nn.Sequential(nn.PixelUnshuffle(7), nn.Conv2d(147, 147, 1), nn.PixelShuffle(7)), 1, SizeRule(7, 7)),
        (nn.Sequential(nn.PixelUnshuffle(6), nn.Conv2d(108, 108, 1), nn.PixelShuffle(6)), 1, SizeRule(6, 6)),
        (nn.Sequential(nn.Conv2d(3, 3, 2, stride=2), nn.Upsample(scale_factor=2)), 1, SizeRule(2, 2)),  # crops
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ConvTranspose2d(3, 1, 3)), 1, SizeRule(3, 1)),  # one channel comes out
    ],
)
def test_size_rule_and_scale_are_found(module: nn.Module, scale: int, size: SizeRule) -> None:
    teacher = load(module)
    assert (teacher.scale, teacher.size) == (scale, size)
    for height, width in [(size.fit(size.minimum), size.fit(size.minimum + 1)), (size.fit(70), size.fit(97))]:
        image = teacher.example(height, width, batch=2)
        assert teacher.module(image).shape[2:] == (scale * height, scale * width)


def fits_only_one(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.reshape(1, 3, *x.shape[2:])


@pytest.mark.parametrize("function", [fits_only_one, lambda y, x: y.mean(0, keepdim=True)])
def test_a_model_for_one_image_at_a_time_has_its_batch_frozen(function: Any) -> None:
    teacher = load(Returns(function))
    assert teacher.static_shape == (1, None, None, None)
    assert teacher.example(batch=2).shape[0] == 1


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda y, x: None, "output is not an image batch: no tensor came for 1x3x49x51"),
        (lambda y, x: {"mean": y.mean(), "text": "a"}, "output is not an image batch: no dimensions float32"),
        (lambda y, x: y.mean(), "output is not an image batch: no dimensions float32"),
        (lambda y, x: y.mean((2, 3)), "output is not an image batch: 1x3 float32"),
        (lambda y, x: (255 * y).byte(), "output is not an image batch: 1x3x49x51 uint8"),
        (lambda y, x: y.argmax(1, keepdim=True), "output is not an image batch: 1x1x49x51 int64"),
        (lambda y, x: torch.cat([y, y]), "output is not an image batch: 2x3x49x51 float32"),
        (lambda y, x: y[:, :, :7], "takes none of the sizes.*no whole scale"),
        (lambda y, x: y / 0, "NaN or Inf comes out for an ordinary image"),
    ],
)
def test_an_output_that_is_no_image_batch_is_refused(function: Any, match: str) -> None:
    torch.manual_seed(0)
    module = Returns(function)
    module.__deepcopy__ = lambda memo: module  # lambdas copy, but keep the same one
    refused(match, module)


def test_a_model_that_always_fails_is_refused_with_its_own_error() -> None:
    def fail(_y: torch.Tensor, _x: torch.Tensor) -> None:
        raise KeyError("mask\nand more")

    refused("takes none of the sizes.*KeyError", Returns(fail))
    refused("expected input.* to have 5 channels, but got 3", Returns(lambda y, x: y, channels=5))
    refused("takes none of the sizes.*TypeError", Returns(lambda y, x: y + "mask"))


def test_a_static_archive_that_fails_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Upsample(size=(12, 40)))
    refused("own size 24x40: 12x40 pixels come out", exported(tmp_path / "m.pt2", module))
    assert load(exported(tmp_path / "half.pt2", nn.Conv2d(3, 3, 3, 2, 1))).scale == Fraction(1, 2)


# The example


def test_the_example_is_deterministic_and_touches_no_global_state() -> None:
    teacher = load(Unet(3), data_range=255.0)
    before = torch.get_rng_state()
    first, second = teacher.example(50, 61, batch=2), teacher.example(50, 61, batch=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second)
    assert first.shape == (2, 3, 56, 64)  # rounded up to the multiple
    assert first.dtype == torch.float32
    assert not torch.equal(first[0], first[1])
    assert teacher.example().shape == (1, 3, 64, 96)
    assert 0 <= first.min() < 40
    assert 215 < first.max() <= 255


def test_the_example_has_the_statistics_of_a_photograph() -> None:
    image = natural_images(1, 3, 96, 128)
    assert 0.3 < image.mean() < 0.7
    assert image.std() > 0.1
    neighbours = torch.corrcoef(torch.stack([image[..., 1:].flatten(), image[..., :-1].flatten()]))[0, 1]
    assert neighbours > 0.9
    channels = torch.corrcoef(image[0].flatten(1))
    assert channels.min() > 0.6
    for height, width in [(1, 1), (1, 9), (2, 2), (7, 3)]:
        assert torch.isfinite(natural_images(2, 3, height, width)).all()


def test_a_size_rule_rounds_up() -> None:
    rule = SizeRule(minimum=24, multiple=8)
    assert [rule.fit(size) for size in (1, 24, 25, 32)] == [24, 24, 32, 32]
    assert rule.fit_both(20, 30) == (24, 32) and SizeRule(8, 8, square=True).fit_both(20, 30) == (32, 32)
    assert rule.stricter(SizeRule(10, 3)) == SizeRule(24, 24)


def test_a_teacher_is_a_frozen_value() -> None:
    assert dataclasses.is_dataclass(Teacher)
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(Residual()).scale = 3
