"""A folder with teachers, pictures, exported files and much that is none of these, and what it holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save_file

from asvp_export.teacher.architecture import build
from tests.helpers.commands import call
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
    names = [value.name for value in inputs]
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


def fill_the_workshop() -> None:
    Path("nets.py").write_text(NETS)
    for name in ("Even", "Double", "Pair", "Large", "Chatty"):
        torch.save(build(f"nets.py:{name}", {}).state_dict(), f"{name.lower()}.pt")
    save_file(build("nets.py:Even", {}).state_dict(), "even.safetensors")
    Path("empty.pt").touch()
    for name in ("even.pt", "even.safetensors"):
        Path(f"cut_{name}").write_bytes(Path(name).read_bytes()[:-300])
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
        answer = call(*even(model=f"{net.lower()}.pt", arch=f"nets.py:{net}", output=file), "--json")
        assert answer.code == 0, answer.err
        assert answer.out == Path(file).with_suffix(".report.json").read_text()


CHECK_EVEN = ["check", "even.pt", "--arch=nets.py:Even", "--images=pictures"]
CHECK_ONNX = ["check", "same.onnx", "--images=pictures"]
