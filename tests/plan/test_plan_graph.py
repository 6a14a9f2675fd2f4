"""Compensation on ONNX input: who reads a protected tensor of a graph, runs in stages, and weights in the file."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper, parser
from torch import nn

import asvp_export
from asvp_export.errors import InputError
from asvp_export.images import list_images, photographs, read_image
from asvp_export.insertion.protected import insert, to_onnx
from asvp_export.onnx_graph.contents import named_tensors, stored_weights
from asvp_export.onnx_graph.surgery import with_weights
from asvp_export.operator import Perturbation
from asvp_export.plan.consumers_onnx import onnx_consumers
from asvp_export.plan.open_runner import open_runner
from asvp_export.plan.runner_onnx import OnnxRunner
from asvp_export.plan.solve import solve
from tests.helpers.linear import as_rows
from tests.helpers.teachers import Flow, example, save_pictures


def graph(text: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A model from the text of its nodes, on an image x of 4 channels, with random weights of these shapes."""
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 4, h, w] x) => (float y) {' + text + "}"
    )
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


LINEAR = {
    "grouped": ("y = Conv <pads = [1, 1, 1, 1], group = 2> (h, k, b)", {"k": (6, 2, 3, 3), "b": (6,)}),
    "depth-wise": ("y = Conv <pads = [0, 1, 0, 1], group = 4> (h, k, b)", {"k": (4, 1, 1, 3), "b": (4,)}),
    "strided": ('y = Conv <strides = [2, 3], auto_pad = "VALID"> (h, k)', {"k": (5, 4, 3, 2)}),
    "dilated": ("y = Conv <dilations = [2, 1], pads = [2, 1, 2, 1]> (h, k, b)", {"k": (5, 4, 3, 3), "b": (5,)}),
    "same": ('y = Conv <auto_pad = "SAME_UPPER"> (h, k, b)', {"k": (5, 4, 3, 1), "b": (5,)}),
    "transposed": (
        "y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1], group = 2> (h, k, b)",
        {"k": (4, 3, 3, 3), "b": (6,)},
    ),
    "Gemm": ("r = Flatten <axis = 3> (h) y = Gemm (r, k, b)", {"k": (9, 5), "b": (5,)}),
    "Gemm, turned": ("r = Flatten <axis = 3> (h) y = Gemm <transB = 1> (r, k, b)", {"k": (5, 9), "b": (5,)}),
    "MatMul": ("p = MatMul (h, k) y = Add (b, p)", {"k": (9, 5), "b": (5,)}),
    "MatMul, turned": ("t = Transpose (k) p = MatMul (h, t) y = Add (p, b)", {"k": (5, 9), "b": (5,)}),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_rows_times_unknowns_is_the_node(kind):
    """In onnxruntime's float32: some 50 terms of about 1, each rounded by 6e-8."""
    text, weights = LINEAR[kind]
    model = graph(f"h = Neg (x) {text}", **weights)
    found = onnx_consumers(model, {"layer": "h"})
    assert not found.reasons and not found.behind
    (consumer,) = found.by_layer["layer"]
    assert (consumer.weight, consumer.bias) == ("k", "b" if "b" in weights else None)
    stored = {name: torch.from_numpy(numpy_helper.to_array(one).copy()) for name, one in stored_weights(model).items()}
    packed = consumer.pack(stored["k"], stored.get("b"))
    assert torch.equal(consumer.unpack(packed)[0], stored["k"].double())
    weight, bias = consumer.unpack(packed.roll(1, 2))  # the channels of each group in another order
    changed = with_weights(model, {"k": weight, "b": bias} if bias is not None else {"k": weight})
    (data,) = found.data["k"]
    x = np.random.default_rng(1).standard_normal((2, 4, 7, 9)).astype(np.float32)
    for one, unknowns in ((model, packed), (changed, packed.roll(1, 2))):
        one.graph.output.append(onnx.ValueInfoProto(name=data))
        y, h = map(torch.from_numpy, ort.InferenceSession(one.SerializeToString()).run(["y", data], {"x": x}))
        torch.testing.assert_close(consumer.rows(h) @ unknowns, as_rows(y.double(), consumer), rtol=0, atol=5e-5)


class Net(nn.Module):
    """What a protected map may pass before a layer reads it, and what it may not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in ("added", "joined", "shuffled", "padded", "rectified", "normed", "shared", "wide"):
            setattr(self, name, nn.Conv2d(3, 8, 3, padding=1))
        self.behind = nn.ModuleList(nn.Conv2d(inputs, 8, 3) for inputs in (8, 11, 2, 8, 8, 8))
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        maps = [
            self.behind[0](self.added(x) + x.mean(1, keepdim=True)),
            self.behind[1](torch.cat([x, self.joined(x)], 1)),
            self.behind[2](nn.functional.pixel_shuffle(self.shuffled(x), 2)),
            self.behind[3](nn.functional.pad(self.padded(x), (2, 2, 2, 2), mode="reflect")),
            self.behind[4](self.rectified(x).relu()),
            self.behind[5](self.shared(x)) * self.behind[5](x.repeat(1, 3, 1, 1)[:, 1:]),
            self.norm(self.normed(x).movedim(1, 3)).movedim(3, 1),
            self.linear(self.wide(x).movedim(1, 3)).movedim(3, 1),
        ]
        return x + sum(one.mean((2, 3), keepdim=True) for one in maps)[:, :3]


def test_readers_of_a_graph_that_was_exported_from_pytorch():
    model = to_onnx(insert(asvp_export.load(Net()), {}))
    layers, _ = named_tensors(model)
    asked = [layer for layer in layers if layer.endswith("/Conv") and "behind" not in layer]
    found = onnx_consumers(model, {layer: layers[layer] for layer in asked})
    (product,) = (node.input[1] for node in model.graph.node if node.op_type == "MatMul")  # a name that PyTorch made up
    passing = ("added", "joined", "shuffled", "padded")
    assert {layer: [(one.weight, one.bias) for one in those] for layer, those in found.by_layer.items()} == {
        **{f"/{name}/Conv": [(f"behind.{i}.weight", f"behind.{i}.bias")] for i, name in enumerate(passing)},
        "/wide/Conv": [(product, "linear.bias")],
    }
    assert found.reasons == {
        "/rectified/Conv": "Relu reads it, which is not linear",
        "/normed/Conv": "LayerNormalization reads it, which is not linear",
        "/shared/Conv": "behind.5.weight also reads maps that are not protected",
    }


PASSED = [
    "t = Mul (h, c)",
    "t = Div (h, c)",
    "z = Shape (h) t = Reshape (h, z)",
    "t = Cast <to = 1> (h)",
    "t = Sum (x, h)",
    "u, v = Split <axis = 2, num_outputs = 2> (h) t = Concat <axis = 3> (v, u)",
    "t = Sub (x, h)",
    "t = BatchNormalization (h, d, d, d, d)",
    "t = Dropout (h)",
]
SAME_LOWER = 'y = Conv <strides = [2, 2], auto_pad = "SAME_LOWER"> (h, k)'
IF = "y = If (o) <then_branch = a () => (float p) { p = Neg (h) }, else_branch = b () => (float r) { r = Neg (x) }>"
REFUSED = {
    "q = Conv <pads = [1, 1, 0, 1]> (h, l) y = Conv <pads = [1, 1, 1, 1]> (h, k)": "Conv reads it, with uneven padding",
    SAME_LOWER: "Conv reads it, with padding that its input's size decides",
    "y = Div (c, h)": "Div reads it, which is not linear",
    "y = Cast <to = 7> (h)": "Cast reads it, which is not linear",
    "y = MaxPool <kernel_shape = [2, 2]> (h)": "MaxPool reads it, which is not linear",
    "y = Conv (x, h)": "Conv reads it, which is not linear",
    "y = Identity (h)": "it reaches the output without a layer to re-solve",
    "q = ReduceSum (k) y = Conv (h, k)": "k also reads maps that are not protected",
    "y = Conv (h, k) q = Conv (x, k)": "k also reads maps that are not protected",
    "m = DequantizeLinear (i, s) y = Conv (h, m)": "Conv reads it, whose weight is quantised",
    "m = Tanh (k) y = Conv (h, m)": "Conv reads it, whose weight is computed",
    IF: "a body of If reads it",
    "y = Shape (h)": "nothing reads it",
}


def test_what_a_tensor_may_pass_and_what_not():
    weights = {"c": (), "d": (4,), "k": (3, 4, 3, 3), "l": (3, 4, 3, 3), "s": ()}
    for text in PASSED:
        found = onnx_consumers(graph(f"h = Neg (x) {text} y = Conv (t, k)", **weights), {"layer": "h"})
        assert [one.weight for one in found.of(["layer"])] == ["k"] and not found.reasons, text
    for text, reason in REFUSED.items():
        model = graph(f"h = Neg (x) {text}", **weights)
        for name, values in (("i", np.ones((3, 4, 3, 3), np.int8)), ("o", np.array(True))):
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        found = onnx_consumers(model, {"layer": "h"})
        assert found.reasons == {"layer": reason} and not found.by_layer, text
    model = graph("h = Neg (x) g = Conv (h, k) y = Conv (g, l)", k=(4, 4, 3, 3), l=(3, 4, 3, 3))
    first, second = onnx_consumers(model, {"first": "h", "second": "g"}).of(["first", "second"])
    assert (first.weight, first.level, second.weight, second.level) == ("k", 0, "l", 1)
    between = graph("h = Neg (x) g = Neg (h) y = Conv (g, k)", k=(3, 4, 3, 3))
    assert onnx_consumers(between, {"a": "h", "b": "g"}).reasons == {
        "a": "it reaches the node behind b without a layer to re-solve"
    }
    biased = graph(
        "h = Neg (x) g = Conv (h, k, b) p = Conv (x, l, b) y = Add (g, p)", k=(4, 4, 1, 1), l=(4, 4, 1, 1), b=(4,)
    )
    (consumer,) = onnx_consumers(biased, {"layer": "h"}).of(["layer"])
    assert consumer.bias is None, "a bias that others share stays as it is"


# The PyTorch teacher and the file that was made of it

LAYER, TENSOR = "after_body", "/after_body/Conv"
NODE = Perturbation(1, 10.0)
CROPS, HELD = range(12), range(12, 16)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The super-resolver, and itself as an ONNX file whose weights lie in a file of their own."""
    path = tmp_path_factory.mktemp("pair") / "sr.onnx"
    teacher = example("sr_x2")
    onnx.save(to_onnx(insert(teacher, {})), path, save_as_external_data=True, location="sr.data", size_threshold=64)
    return teacher, asvp_export.load(path)


@pytest.fixture(scope="module")
def inputs():
    """Twelve crops to solve on and four that are held out, of other photographs."""
    found = []
    for number, path in enumerate(list_images(photographs("train"))[:16]):
        height, width = (64, 96) if number % 2 else (88, 72)
        pixels = read_image(path)[20 : 20 + height, 30 : 30 + width]
        found.append((torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])),))
    return found


@pytest.fixture(scope="module")
def solved(pair, inputs):
    found = []
    for teacher, layer in zip(pair, (LAYER, TENSOR), strict=True):
        runner = open_runner(teacher, [layer], inputs)
        found.append((runner, *solve(runner, {layer: NODE}, runner.consumers.of([layer]), CROPS, HELD)))
    return found


def worst(runner, nodes, weights) -> float:
    """The dB of the worst input that was held out; values lie in 0..1."""
    pairs = [(runner.outputs(i)[0], runner.outputs(i, nodes, weights)[0]) for i in HELD]
    return min(-10 * float(torch.log10((clean - got).double().square().mean())) for clean, got in pairs)


def test_the_file_is_compensated_as_the_module_is(solved):
    """Both solve one problem, and see its inputs to within float32 (1e-6); the ridge bounds what becomes of that."""
    (_, torchs, ridges), (runner, weights, others) = solved
    assert set(weights) == set(torchs) == {"tail.0.weight", "tail.0.bias"} and ridges == others
    for name, value in weights.items():
        assert float((value - torchs[name]).norm() / torchs[name].norm()) < 1e-3
    assert worst(runner, {TENSOR: NODE}, {}) < 35
    assert worst(runner, {TENSOR: NODE}, weights) > 45


def test_what_lies_before_the_node_is_run_once_an_input(pair, inputs, monkeypatch):
    runner = open_runner(pair[1], [TENSOR], inputs[:2])
    assert isinstance(runner, OnnxRunner)
    run, stages = runner._stage, []
    monkeypatch.setattr(runner, "_stage", lambda stage, *rest: stages.append(stage) or run(stage, *rest))
    consumers = runner.consumers.of([TENSOR])
    for i in (0, 1):
        runner.outputs(i)
        runner.outputs(i, {TENSOR: NODE}, {"tail.0.bias": torch.zeros(128)})
        runner.inputs_of(i, consumers, {TENSOR: NODE})
        runner.maps(i)
    assert stages == 2 * [0, 1, 1, 1] and runner.passes == 8  # the map itself needs no stage but the first
    assert "input" not in {one.name for one in runner._opened[1, ("output",), True].get_inputs()}, (
        "run again from the start"
    )


def test_an_export_carries_the_solved_weights(pair, solved, tmp_path):
    _, weights, _ = solved[1]
    pictures = save_pictures(tmp_path / "pictures", 2, 64, 80)
    protected = insert(pair[1], {TENSOR: NODE}, weights)
    result = asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, min_psnr=40)
    assert result.passed and result.fidelity
    shipped = {one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / "p.onnx").graph.initializer}
    for name, value in pair[0].module.named_parameters():
        assert np.array_equal(shipped[name], weights.get(name, value))
    image = pair[1].example()
    assert torch.equal(insert(pair[1], {})(image), pair[1].module(image)), "the teacher was changed"
    with pytest.raises(
        InputError, match=r"tail.0.bias of shape 3 was to be replaced, and the graph has no such weight"
    ):
        insert(pair[1], {TENSOR: NODE}, {"tail.0.bias": torch.zeros(3)})


@pytest.fixture(scope="module")
def scripted():
    """A loop and a branch behind the layers, as a graph that was made from TorchScript."""
    torch.manual_seed(0)
    return asvp_export.load(torch.jit.script(Flow().eval()))


def test_stages_are_the_whole_graph(pair, scripted, solved):
    """Nodes one behind the other, skipped by other paths; loops, branches; changed weights. In float32 twice."""
    relus = [f"/body/{i}/branch/1/Relu" for i in (1, 4)]
    for teacher, layers, weights in ((pair[1], [*relus, TENSOR], solved[1][1]), (scripted, ["/head/Conv"], {})):
        given = [teacher.inputs(teacher.example(48, 56)), teacher.inputs(teacher.example(64, 40, batch=2))]
        runner, nodes = open_runner(teacher, layers, given), {layer: Perturbation(1, 3.0) for layer in layers}
        whole, plain = insert(teacher, nodes, weights), insert(teacher, {})
        for i, one in enumerate(given):
            for _ in range(2):  # the second time from what was kept
                torch.testing.assert_close(runner.outputs(i, nodes, weights)[0], whole(*one), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(runner.outputs(i)[0], plain(*one), rtol=1e-4, atol=1e-5)
    assert runner.consumers.reasons == {"/head/Conv": "Loop reads it, which is not linear"}


HALF = """<ir_version: 10, opset_import: ["" : 18]> g (float[n, 3, h, w] x) => (float[n, 3, h, w] y) {
    z = Cast <to = 10> (x)
    a = Conv <pads = [1, 1, 1, 1]> (z, k)
    b = Conv <pads = [1, 1, 1, 1]> (a, l)
    y = Cast <to = 1> (b)
}"""


def test_weights_in_half_precision_and_in_constant_nodes_are_solved_and_stored_as_such(inputs, tmp_path):
    """What the runner runs is what is stored, up to the rounding of float16 in values under 1."""
    model = parser.parse_model(HALF)
    rng = np.random.default_rng(0)
    first, last = ((0.1 * rng.standard_normal(shape)).astype(np.float16) for shape in ((8, 3, 3, 3), (3, 8, 3, 3)))
    model.graph.initializer.append(numpy_helper.from_array(first, "k"))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["l"], value=numpy_helper.from_array(last)))
    onnx.save(model, tmp_path / "half.onnx")
    teacher, nodes = asvp_export.load(tmp_path / "half.onnx"), {"a": Perturbation(1, 3.0)}
    runner = open_runner(teacher, ["a"], inputs)
    weights, _ = solve(runner, nodes, runner.consumers.of(["a"]), CROPS, HELD)
    assert worst(runner, nodes, weights) > worst(runner, nodes, {}) + 10
    protected = insert(teacher, nodes, weights)
    stored = stored_weights(to_onnx(protected))["l"]
    assert np.array_equal(numpy_helper.to_array(stored), weights["l"].numpy().astype(np.float16))
    torch.testing.assert_close(protected(*inputs[0]), runner.outputs(0, nodes, weights)[0], rtol=0, atol=1e-3)
