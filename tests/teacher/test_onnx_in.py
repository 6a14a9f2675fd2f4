"""ONNX files and TorchScript archives as teachers: the nodes go into a graph that somebody else wrote."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

import asvp_export
import asvp_export.images
from asvp_export.insertion.protected import to_onnx
from asvp_export.onnx_graph import publish
from asvp_export.onnx_graph.passes import perturbation_nodes, without_nodes
from asvp_export.onnx_graph.surgery import remove_author
from asvp_export.teacher import onnx_model
from asvp_export.teacher.onnx_model import OnnxModule, read_onnx
from tests.helpers.graphs import legacy, their_graph
from tests.helpers.teachers import ROOT, Flow, example, save_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 1)


class Photographs(CalibrationDataReader):
    def __init__(self) -> None:
        found = asvp_export.images.list_images(asvp_export.images.photographs("calibrate"))[:2]
        pixels = [asvp_export.images.read_image(path)[:96, :128] for path in found]
        self.batches = iter([{"x": np.ascontiguousarray(p.transpose(2, 0, 1)[None])} for p in pixels])

    def get_next(self):
        return next(self.batches, None)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The deraining teacher as people have it, and a small net with control flow."""
    folder = tmp_path_factory.mktemp("files")
    teacher = example("derain")
    plain = legacy(folder / "plain.onnx", teacher.module, 17)
    legacy(folder / "old.onnx", teacher.module, 11)
    torch.onnx.export(
        teacher.module,
        (teacher.example(batch=2),),
        dynamo=True,
        opset_version=18,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: "n", 2: "h", 3: "w"},),
        verbose=False,
    ).save(folder / "dynamo.onnx")
    quantize_static(plain, folder / "qdq.onnx", Photographs(), quant_format=QuantFormat.QDQ, per_channel=True)
    onnx.save(convert_float_to_float16(onnx.load(plain), keep_io_types=True), folder / "half.onnx")
    onnx.save(
        onnx.load(plain), folder / "outside.onnx", save_as_external_data=True, location="t.data", size_threshold=64
    )
    torch.jit.trace(teacher.module, teacher.example()).save(folder / "traced.pt")
    torch.manual_seed(0)
    torch.jit.script(Flow().eval()).save(folder / "scripted.pt")
    return folder


class Padded(nn.Module):
    """A transformer's tokens of an image that is padded to a multiple of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = nn.Linear(8, 8)
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2], x.shape[-1]
        padded = nn.functional.pad(x, (0, -width % 64, 0, -height % 64), "constant")
        y = self.head(padded)
        tokens = self.mix(y.flatten(2).transpose(1, 2))  # N,L,C, of as many positions at 128 x 64 as at 64 x 96
        y = y + tokens.transpose(1, 2).reshape(y.shape)
        return x + self.tail(y)[:, :, :height, :width]


def test_tokens_of_a_padded_image_have_the_same_axis_in_a_module_and_in_its_graph(tmp_path):
    torch.manual_seed(0)
    module = Padded().eval()
    layers = asvp_export.layers(asvp_export.load(module)).layers
    assert {layer.name: layer.axis for layer in layers} == {"head": 1, "mix": -1, "tail": 1}
    graph = asvp_export.load(legacy(tmp_path / "padded.onnx", module, 17))
    survey = asvp_export.layers(graph)
    layers, refused = survey.layers, survey.refused
    axes = {layer.name: layer.axis for layer in layers}
    assert (axes["/head/Conv"], axes["/mix/Add"], axes["/tail/Conv"]) == (1, -1, 1), refused


@pytest.mark.parametrize(
    "file, layers, count",
    [
        ("plain.onnx", "/body/body.[0-4]/branch/*/Relu,/after_body/Conv_output_0", 6),
        ("old.onnx", "/body/body.3/**/Relu", 1),
        ("dynamo.onnx", "node_relu_1,conv2d_16", 2),
        ("qdq.onnx", "/body/body.3/branch/branch.0/Conv", 1),
        ("half.onnx", "/body/body.3/Add", 1),
        ("outside.onnx", "/body/body.3/Add", 1),
        ("traced.pt", "/body/3/**/Relu", 1),
        ("scripted.pt", "/head/Conv", 1),
    ],
)
def test_every_kind_of_graph_passes_both_gates(file, layers, count, files, pictures, tmp_path):
    teacher = asvp_export.load(files / file)
    protected = asvp_export.protect(teacher, layers, gain=5.0)
    result = asvp_export.export(protected, tmp_path / "p.onnx", images=pictures)
    assert result.passed and result.fidelity and len(result.nodes) == count
    assert all(effect.relative_feature_change > 1e-3 for effect in result.effects.values())
    shipped = onnx.load(tmp_path / "p.onnx")
    wanted = {f"asvp/{name}{end}" for name in result.nodes for end in ("", "/inverse")}
    assert {node.name for node in perturbation_nodes(shipped)} == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"p.onnx", "p.report.json", "p.manifest.json"}
    assert b"pkg.torch" not in (tmp_path / "p.onnx").read_bytes()
    assert str(ROOT).encode() not in (tmp_path / "p.onnx").read_bytes()
    image = teacher.example(batch=2)
    bare = ort.InferenceSession(without_nodes(shipped).SerializeToString())
    (out,) = bare.run(None, {bare.get_inputs()[0].name: image.numpy()})
    plain = asvp_export.protect(teacher, layers, gain=1.0)(image)
    torch.testing.assert_close(torch.from_numpy(out).float(), plain.float(), rtol=1e-3, atol=1e-3)


def test_the_gate_sees_a_graph_whose_node_went_elsewhere(files, pictures, tmp_path):
    teacher = asvp_export.load(files / "plain.onnx")
    protected = asvp_export.protect(teacher, "/body/body.3/Add", gain=1.05, residual="gain")
    asvp_export.export(protected, tmp_path / "p.onnx", images=pictures)
    model = onnx.load(tmp_path / "p.onnx")
    result = asvp_export.check(files / "plain.onnx", tmp_path / "p.onnx", images=pictures)
    assert result.passed and result.fidelity and not any("Fidelity" in note for note in result.notes)
    (node,) = perturbation_nodes(model)
    readers = [n for n in model.graph.node if node.output[0] in n.input]
    readers[-1].input[:] = [node.input[0] if name == node.output[0] else name for name in readers[-1].input]
    onnx.save(model, tmp_path / "p.onnx")
    result = asvp_export.check(files / "plain.onnx", tmp_path / "p.onnx", images=pictures)
    assert result.fidelity and not result.fidelity.passed


# Everything that graphs can hold

TRACE = "/home/them/net.py(12): forward\\n/home/them/train.py(3): <module>\\n"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A file with a bit of everything: Loop and If that capture, a function, metadata, doc strings, annotations."""
    model = their_graph()
    helper.set_model_props(model, {"author": "them", "pkg.torch.onnx.original_node_mapping": "/home/them/net.py"})
    model.graph.doc_string = "their graph"
    model.graph.value_info.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 8, "h", "w"]))
    model.graph.quantization_annotation.append(onnx.TensorAnnotation(tensor_name="features"))
    for place, node in enumerate(model.graph.node):
        node.name = f"n{place}/{node.op_type}"
        node.doc_string = "their node" if place % 2 else TRACE
        helper.set_model_props(node, {"note": "keep", "pkg.torch.onnx.stack_trace": "/home/them/net.py"})
    (branches,) = (node for node in model.graph.node if node.op_type == "If")
    branches.attribute[0].g.node[0].doc_string = TRACE
    path = tmp_path_factory.mktemp("theirs") / "theirs.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("residual", ["gain", 1.0])
def test_nothing_else_in_the_file_changes(residual, theirs):
    teacher = asvp_export.load(theirs)
    made = to_onnx(asvp_export.protect(teacher, "features,few", gain=1.1, residual=residual))
    onnx.checker.check_model(made, full_check=True)
    expected = onnx.load(theirs)
    remove_author(expected)
    ours = {node.name: node for node in perturbation_nodes(made)}
    layers = {"asvp/n3/Soft": "features", "asvp/few": "few"}
    last = {layer if residual == "gain" else f"{layer}/inverse": tensor for layer, tensor in layers.items()}
    assert set(ours) == {*layers, *last}
    clean = {ours[layer].input[0]: tensor for layer, tensor in layers.items()}
    read = {ours[layer].output[0]: tensor for layer, tensor in last.items()}
    assert "features" in read, "an output of the graph keeps its name"
    kept = [node for node in made.graph.node if node.domain != "asvp"]
    inside = [one for node in kept for attribute in node.attribute for one in attribute.g.node]
    for node in (*kept, *inside):
        node.output[:] = [clean.get(name, name) for name in node.output]
        node.input[:] = [read.get(name, name) for name in node.input]
    del made.graph.node[:], made.functions[1:], made.opset_import[2:]
    made.graph.node.extend(kept)
    made.ir_version = expected.ir_version
    assert made == expected
    assert expected.doc_string == "a model of theirs" and expected.functions[0].doc_string == "a function of theirs"
    assert [(p.key, p.value) for p in expected.metadata_props] == [("author", "them")]
    assert {node.doc_string for node in expected.graph.node} == {"", "their node"}
    assert {p.key for node in expected.graph.node for p in node.metadata_props} == {"note"}
    assert b"/home/them" not in expected.SerializeToString()


@pytest.mark.parametrize("residual", [3.0, 2.0, 1.0])
def test_bodies_that_capture_a_tensor_read_the_perturbed_one(residual, theirs):
    """Loop and If take `features` by name: three loops add 0.1 of it, the branch adds it once more."""
    teacher = asvp_export.load(theirs)
    image = teacher.example()
    plain = ort.InferenceSession(theirs).run(["features"], {"x": image.numpy()})[0]
    made = to_onnx(asvp_export.protect(teacher, "features", gain=3.0, residual=residual))
    out, features = ort.InferenceSession(made.SerializeToString()).run(["y", "features"], {"x": image.numpy()})
    perturbed = asvp_export.reference(torch.from_numpy(plain), 1, residual)
    torch.testing.assert_close(torch.from_numpy(features), perturbed, rtol=1e-4, atol=1e-5)
    weights = numpy_helper.to_array(next(t for t in made.graph.initializer if t.name == "last"))
    expected = image + nn.functional.conv2d(2.3 * perturbed, torch.from_numpy(weights.copy()), padding=1)
    torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-4, atol=1e-4)


def test_stages_compute_what_the_whole_graph_computes(theirs, monkeypatch):
    """Cuts behind one another and beside one another, one of two outputs of a node, and an output of the graph."""
    whole = read_onnx(theirs)
    image = asvp_export.load(theirs).example(batch=2)
    cut = copy.deepcopy(whole.with_cuts(["few", "head", "features", "turned", "y"]))
    passed = []
    for name, site in zip(cut.cuts, cut.sites, strict=True):
        site.register_forward_hook(lambda module, inputs, output, name=name: passed.append(name))
    for got, expected in zip(cut(image), whole(image), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert passed == ["head", "few", "features", "turned", "y"]
    monkeypatch.setattr(onnx_model, "_ROOM", 0)  # sessions of a large graph make room for one another
    large = read_onnx(theirs)
    large(image)
    assert len(large._opened) == 1
    large = large.with_cuts(cut.cuts)
    for got, expected in zip(large(image), whole(image), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert len(large._opened) < 6 and len(cut._opened) == 6, "one for each of five stages, and for the whole"
    cut.sites[2].register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    image_alone, features = cut(image)
    assert torch.equal(image_alone, image) and not features.any(), "y and features depend on the cut at features alone"


BAD_LAYERS = {
    "part": "part cannot carry the node: it lies inside the Loop",
    "a": "lies inside the If",
    "x": "is an input of the graph",
    "first": "is a weight",
    "n5/Shape": "returns int64 numbers",
    "mean": r"returns a 2-D tensor \(1x8\)",
    "unread": "no output of the graph depends on",
    "featurs": "There is no layer 'featurs'; the nearest are features",
    "m*/*": "No layer matches",
}


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_what_cannot_carry_the_node_is_refused(name, theirs):
    with pytest.raises(asvp_export.InputError, match=BAD_LAYERS[name]):
        asvp_export.protect(asvp_export.load(theirs), name, gain=1.1)


def test_names_of_nodes_and_tensors_and_globs_select(files):
    teacher = asvp_export.load(files / "plain.onnx")
    relus = [f"/body/body.{i}/branch/branch.1/Relu" for i in range(8)]
    chosen = lambda *names: list(asvp_export.protect(teacher, names, gain=1.1).nodes)  # noqa: E731
    assert chosen("/body/**/Relu") == chosen("/body/body.*/branch/branch.?/Relu") == relus
    assert chosen(f"{relus[3]}_output_0,{relus[1]}") == [relus[1], relus[3]]
    assert chosen("y") == ["/Add_1"] or chosen("y") == ["/Add"]
    with pytest.raises(asvp_export.InputError, match="No layer matches"):
        chosen("/body/*/Relu")
    survey = asvp_export.layers(teacher)
    found, refused = survey.layers, survey.refused
    kinds = {layer.name: layer for layer in found}
    assert kinds[relus[0]].type == "Relu" and kinds[relus[0]].layer_ms > 0 and kinds[relus[0]].effective_rank > 1
    assert any("int64" in reason for reason in refused.values())


def changed(source: Path, target: Path, change) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def test_files_that_cannot_be_teachers_are_refused(files, theirs, pictures, tmp_path):
    def refused(match: str, path: Path, layers: str = "**", **options) -> None:
        with pytest.raises(asvp_export.InputError, match=match):
            asvp_export.export(
                asvp_export.protect(asvp_export.load(path), layers, gain=1.1), tmp_path / "p.onnx", **options
            )

    (tmp_path / "outside.onnx").write_bytes((files / "outside.onnx").read_bytes())
    refused("are kept in t.data, which is not beside it; put it there", tmp_path / "outside.onnx")
    cut = changed(theirs, tmp_path / "cut.onnx", lambda model: model.graph.node[0].input.append("nothing"))
    refused("is not a valid ONNX model", cut)
    bytes_in = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (uint8[n, 3, h, w] x) => (float[n, 3, h, w] y)'
        "{ y = Cast <to = 1> (x) }"
    )
    onnx.save(bytes_in, tmp_path / "bytes.onnx")
    refused("takes x uint8 nx3xhxw; a float image batch", tmp_path / "bytes.onnx")
    old = parser.parse_model(
        '<ir_version: 5, opset_import: ["" : 10]> g (float[n, 3, h, w] x) => (float[n, 3, h, w] y){ y = Relu (x) }'
    )
    onnx.save(old, tmp_path / "old.onnx")
    refused("has opset 10; opsets 11 to 26 can carry the node", tmp_path / "old.onnx")
    half = parser.parse_model(
        '<ir_version: 7, opset_import: ["" : 13]> g (float16[n, 3, h, w] x) => (float16[n, 3, h, w] y)'
        "{ r = Relu (x) y = Neg (r) }"
    )
    onnx.save(half, tmp_path / "half.onnx")
    refused("has opset 13, and the tensor . is not float32; from opset 15", tmp_path / "half.onnx")
    refused("holds float16 weights already", files / "half.onnx", dtype="fp16", layers="/body/body.3/Add")
    refused("has opset 11; the node takes float16 from opset 15 on", files / "old.onnx", dtype="fp16", layers="/Add_1")
    refused("opset 18 was asked for; an ONNX file keeps its own, and theirs.onnx is of opset 17", theirs, opset=18)
    refused("--static was given", theirs, static=True, sizes=[(32, 48)], images=pictures)


def test_a_file_that_carries_nodes_is_not_protected_again(files, pictures, tmp_path):
    onnx.save(
        to_onnx(asvp_export.protect(asvp_export.load(files / "plain.onnx"), "/body/body.3/Add", gain=1.1)),
        tmp_path / "p.onnx",
    )
    with pytest.raises(asvp_export.InputError, match=r"carries 2 ASVP node.* already; give the unprotected original"):
        asvp_export.protect(asvp_export.load(tmp_path / "p.onnx"), "/body/body.4/Add", gain=1.1)


@pytest.mark.parametrize("inside", [True, False])
def test_data_outside_the_file_is_carried_over(inside, files, pictures, tmp_path, monkeypatch):
    """Over the limit, lowered here, the tensors go from file to file; under it they come into the model."""
    monkeypatch.setattr(publish, "EXTERNAL_LIMIT", 2**31 if inside else 2**16)
    protected = asvp_export.protect(asvp_export.load(files / "outside.onnx"), "/body/body.3/Add", gain=1.02)
    assert asvp_export.export(protected, tmp_path / "p.onnx", images=pictures).passed
    assert len(list(tmp_path.glob("p.*.data"))) == (0 if inside else 1)
    (got,) = ort.InferenceSession(tmp_path / "p.onnx").run(None, {"x": (image := protected.teacher.example()).numpy()})
    torch.testing.assert_close(torch.from_numpy(got), protected(image), rtol=1e-4, atol=1e-5)


def test_a_graph_is_run_in_the_types_that_it_wants(files):
    graph = read_onnx(files / "half.onnx")
    assert isinstance(graph, OnnxModule)
    assert graph(torch.rand(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float32
    with pytest.raises(TypeError, match="takes 1 inputs, and 2 were given"):
        graph(torch.rand(1, 3, 32, 32), torch.rand(1))
