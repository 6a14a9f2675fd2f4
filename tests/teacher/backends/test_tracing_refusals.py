"""What stood in the way of a file: the tool finds the way round it, or names the option that gets a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn
from torch.nn import functional

import asvp_export
from asvp_export.errors import AsvpError, InputError
from asvp_export.insertion.protected import insert, to_onnx
from asvp_export.onnx_graph.contents import is_half
from asvp_export.parity.result import ParityResult
from asvp_export.selection.select import select
from asvp_export.signature import SizeRule
from asvp_export.teacher.backends import refusal
from asvp_export.teacher.backends.translations import OneTypeOfBounds
from asvp_export.teacher.onnx_model import OnnxModule
from tests.helpers.teachers import save_pictures


class Net(nn.Module):
    """A residual net; `inside` is what a case does to its features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return x + 0.1 * self.b(self.inside(torch.relu(self.a(x))))

    def inside(self, y: torch.Tensor) -> torch.Tensor:
        return y


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), count=1)


def exported(model: nn.Module | Path, output: Path, pictures: Path, layer: str, **options) -> ParityResult:
    return asvp_export.export(
        asvp_export.protect(asvp_export.load(model), layer, gain=1.1), output, images=pictures, **options
    )


def legacy(path: Path, module: nn.Module) -> Path:
    """The module as an ONNX file whose nodes have names."""
    axes = {name: {0: "n", 2: "h", 3: "w"} for name in ("input", "output")}
    names = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": axes}
    torch.onnx.export(module.eval(), (torch.rand(1, 3, 16, 24),), str(path), dynamo=False, opset_version=17, **names)
    return path


@pytest.mark.parametrize(
    "clamp",
    [
        lambda y: torch.clamp(y, 0.0001, 1),
        lambda y: y.clamp_(max=1, min=0.5),
        lambda y: y.clip(0, 0.9),
        lambda y: y * torch.clamp(torch.arange(8)[:, None, None], 0.5, 2),
        lambda y: y.clamp(0.25, y.shape[-1]),
    ],
    ids=["clamp", "in place, by name", "clip", "of whole numbers", "up to a size"],
)
def test_a_clamp_between_a_float_and_a_whole_number_is_exported(clamp: Callable[[torch.Tensor], torch.Tensor]):
    class Clamped(Net):
        def inside(self, y):
            return clamp(1.5 * y)

    protected = insert(asvp_export.load(Clamped()), {})
    image = protected.teacher.example(40, 56)
    torch.testing.assert_close(OnnxModule(to_onnx(protected))(image), protected(image), atol=1e-5, rtol=0)


def test_whole_bounds_of_whole_numbers_stay_whole():
    with OneTypeOfBounds():
        assert torch.arange(5).clamp(1, 3).dtype == torch.int64
        assert torch.arange(5).clamp(torch.tensor(1), torch.tensor(3)).tolist() == [1, 1, 2, 3, 3]


class PadsByNumbers(Net):
    """Pads to multiples of 4 by Python arithmetic."""

    def forward(self, x):
        height, width = x.shape[-2:]
        down, right = (int(np.ceil(side / 4) * 4 - side) for side in (height, width))
        y = functional.pixel_unshuffle(super().forward(functional.pad(x, (0, right, 0, down), mode="replicate")), 4)
        return functional.pixel_shuffle(y, 4)[..., :height, :width]


def test_padding_that_the_trace_freezes_gets_a_file_for_the_multiples_it_pads_to(tmp_path, pictures):
    teacher = asvp_export.load(PadsByNumbers())
    assert teacher.size == SizeRule(1, 1)
    path = tmp_path / "p.onnx"
    result = asvp_export.export(
        asvp_export.protect(teacher, "a", gain=1.1), path, images=pictures
    )  # 61x80 and an odd crop
    assert result.passed and any("multiples of 4" in note and "--static --size HxW" in note for note in result.notes)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((20, 36), (64, 28)):
        image = teacher.example(*size, batch=2)
        (got,) = session.run(None, {"input": image.numpy()})
        np.testing.assert_allclose(np.asarray(got), teacher.module(image).numpy(), atol=1e-5)
    checked = asvp_export.check(teacher, path, images=pictures)
    assert checked.passed, "the file's own sizes count"


class TwoSizes(Net):
    """Scales by a Python number that no multiple settles."""

    def inside(self, y):
        return y * (int(np.ceil(y.shape[-1] * 0.37)) * 0.01)


def test_a_number_that_no_multiple_settles_is_told_with_the_option(tmp_path, pictures):
    with pytest.raises(InputError, match=r"right at the size that was traced.*Export it with --static --size HxW"):
        exported(TwoSizes(), tmp_path / "p.onnx", pictures, "a")
    assert not list(tmp_path.iterdir())
    assert exported(TwoSizes(), tmp_path / "p.onnx", pictures, "a", static=True, sizes=[(40, 56)]).passed


class OneByOne(Net):
    def inside(self, y):
        return torch.cat([y[i : i + 1].softmax(1) for i in range(y.shape[0])])


def test_a_frozen_batch_gets_a_file_of_free_height_and_width(tmp_path, pictures):
    with pytest.raises(
        InputError, match=r"fixes batch \(2\) while it is traced; .* It exports with --static-batch; or"
    ):
        exported(OneByOne(), tmp_path / "p.onnx", pictures, "a")
    result = exported(OneByOne(), tmp_path / "p.onnx", pictures, "a", static_batch=True)
    assert result.passed and any("one image at a time" in note for note in result.notes)
    assert asvp_export.inspect(tmp_path / "p.onnx")["inputs"] == {"input": [1, 3, "height", "width"]}


def test_a_frozen_batch_of_a_graph_is_the_graphs_own(tmp_path, pictures):
    with pytest.raises(InputError, match=r"--static-batch was given; the batch of plain\.onnx is left free"):
        exported(legacy(tmp_path / "plain.onnx", Net()), tmp_path / "p.onnx", pictures, "/a/Conv", static_batch=True)
    torch.jit.script(Net()).save(tmp_path / "plain.pt")
    assert exported(tmp_path / "plain.pt", tmp_path / "p.onnx", pictures, "/a/Conv", static_batch=True).passed
    assert asvp_export.inspect(tmp_path / "p.onnx")["inputs"] == {"input": [1, 3, "height", "width"]}


class Ramp(Net):
    def inside(self, y):
        return y * torch.linspace(0.5, 1, y.shape[-1])


def test_a_frozen_width_names_the_option_that_freezes_sizes(tmp_path, pictures):
    with pytest.raises(
        InputError, match=r"fixes width \(91\) .* It exports with --static --size HxW \(tried at 61x91\)"
    ):
        exported(Ramp(), tmp_path / "p.onnx", pictures, "a")


class Branch(Net):
    def inside(self, y):
        if y.mean() > 0:
            y = y * 1.1
        return y


class Unknown(Net):
    def inside(self, y):
        return torch.special.bessel_j0(y)


def test_a_refusal_names_the_users_line_and_what_gets_a_file(monkeypatch):
    protected = insert(asvp_export.load(Branch()), {})
    found = r"at test_tracing_refusals\.py:\d+ in inside \(if y\.mean\(\) > 0:\)\. It exports with a TorchScript file"
    with pytest.raises(AsvpError, match=found):
        to_onnx(protected)
    with pytest.raises(
        AsvpError, match=r"bessel_j0.* Neither --static-batch nor --static --size HxW nor .* makes it exportable"
    ):
        to_onnx(insert(asvp_export.load(Unknown()), {}))
    monkeypatch.setattr(refusal, "_FEW_MODULES", 1)  # of a large model nothing is tried, and nothing claimed
    with pytest.raises(AsvpError, match=r"Try --static-batch, then --static --size HxW, then a TorchScript file"):
        to_onnx(protected)


class Pair(NamedTuple):
    picture: torch.Tensor
    maps: list[torch.Tensor]


class Mapping(Net):
    def forward(self, x):
        f = torch.relu(self.a(x))
        return {"restored": x + 0.1 * self.b(f), "features": f}


class Nested(Net):
    def forward(self, x):
        f = torch.relu(self.a(x))
        return {"best": Pair(x + 0.1 * self.b(f), [f, 2.0 * f]), "other": Pair(x, [])}


class Listed(Net):
    def forward(self, x):
        f = torch.relu(self.a(x))
        return [x + 0.1 * self.b(f), f]


@pytest.mark.parametrize(
    "module, names",
    [
        (torch.jit.script(Mapping().eval()), ["restored", "features"]),
        (torch.jit.trace(Mapping().eval(), torch.rand(1, 3, 16, 24), strict=False), ["restored", "features"]),
        (torch.jit.script(Nested().eval()), ["best.picture", "best.maps.0", "best.maps.1", "other.picture"]),
        (torch.jit.script(Listed().eval()), ["output.0", "output.1"]),
    ],
    ids=["mapping", "traced mapping", "nested", "list"],
)
def test_torchscript_that_returns_a_mapping_goes_the_whole_road(module, names, tmp_path, pictures):
    module.save(tmp_path / "m.pt")
    teacher = asvp_export.load(tmp_path / "m.pt")
    path = tmp_path / "p.onnx"
    assert "/a/Conv" in [layer.name for layer in asvp_export.layers(teacher).layers]
    assert asvp_export.export(asvp_export.protect(teacher, "/a/Conv", gain=1.1), path, images=pictures).passed
    assert [output.name for output in onnx.load(path).graph.output] == names
    assert asvp_export.check(teacher, path, images=pictures).passed


@pytest.fixture
def commas(tmp_path) -> asvp_export.Teacher:
    model = onnx.load(legacy(tmp_path / "plain.onnx", Net()))
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    for node, name in zip(nodes, ("first, a", "first", "a", "last,b"), strict=False):
        node.name = name
    onnx.save(model, tmp_path / "commas.onnx")
    return asvp_export.load(tmp_path / "commas.onnx")


@pytest.mark.parametrize(
    "spec, names",
    [
        ("first, a", ["first, a"]),  # a name as it stands, though its parts are names too
        ("first,a", ["first", "a"]),
        ("last,b, first", ["first", "last,b"]),
        ("firs*, last,b", ["first, a", "first", "last,b"]),
        ("first, a, last,b", ["first", "a", "last,b"]),  # inside a list the parts that are names win
    ],
)
def test_a_layers_name_may_hold_commas(spec, names, commas):
    graph = commas.module
    assert isinstance(graph, OnnxModule)
    assert list(select(commas, [spec])) == names


def test_a_pattern_that_matches_nothing_says_what_there_is(commas):
    with pytest.raises(
        InputError, match=r"5 layers can carry the node \(2 Conv, .*asvp-export layers MODEL lists them"
    ):
        select(commas, ["nope*"])


def stored(model: onnx.ModelProto, constants: bool) -> onnx.ModelProto:
    """The weights as Constant nodes, where asked for."""
    weights = list(model.graph.initializer) if constants else []
    for place, weight in enumerate(weights):
        model.graph.initializer.remove(weight)
        model.graph.node.insert(place, helper.make_node("Constant", [], [weight.name], value=weight))
    return model


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("interface", [False, True], ids=["float16 interface", "float32 interface"])
def test_float16_is_seen_wherever_the_weights_are(constants, interface, tmp_path):
    plain = onnx.load(legacy(tmp_path / "plain.onnx", Net()))
    assert not is_half(stored(plain, constants))
    half = convert_float_to_float16(onnx.load(tmp_path / "plain.onnx"), keep_io_types=interface)
    assert is_half(stored(half, constants))


def test_one_float16_number_does_not_make_a_float32_model_float16(tmp_path):
    model = onnx.load(legacy(tmp_path / "plain.onnx", Net()))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float16), "epsilon"))
    assert not is_half(model)


def test_a_float16_file_of_constants_is_held_to_float16s_rounding(tmp_path, pictures):
    half = convert_float_to_float16(onnx.load(legacy(tmp_path / "plain.onnx", Net())))
    onnx.save(stored(half, True), tmp_path / "half.onnx")
    result = exported(tmp_path / "half.onnx", tmp_path / "p.onnx", pictures, "/a/Conv")
    assert result.passed and result.fidelity and result.fidelity.threshold == 50
