"""Two gains in an exported file: names of nodes and tensors, runs without the library, what metadata and check say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import asvp_export
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import to_onnx
from asvp_export.onnx_graph.inline import fold, inline
from asvp_export.onnx_graph.metadata import read_provenance
from asvp_export.onnx_graph.pairs import differing
from asvp_export.onnx_graph.passes import attach_functions, perturbation_nodes, without_nodes
from asvp_export.operator import Perturbation
from tests.helpers.teachers import recurrent, save_pictures
from tests.helpers.two_gains import decibels, maps_of, stock, tokens

GAIN = 100.0
NODE = {"rank": 1, "gain": GAIN, "energy": 1.0, "axis": 1, "residual": 1.0}


@pytest.fixture(scope="module")
def teacher() -> asvp_export.Teacher:
    return asvp_export.load(recurrent())


@pytest.fixture(scope="module")
def protected(teacher) -> asvp_export.Protected:
    return asvp_export.protect(teacher, "head,block", gain=GAIN)


@pytest.fixture(scope="module")
def model(protected) -> onnx.ModelProto:
    return to_onnx(protected)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 1)


@pytest.fixture(scope="module")
def shipped(protected, pictures, tmp_path_factory) -> dict[str, tuple[Path, asvp_export.ParityResult]]:
    """A file with function bodies, and one with inlined bodies, each with its verdict."""
    folder, made = tmp_path_factory.mktemp("shipped"), {}
    for kind, portable in (("function", ""), ("inline", "inline")):
        path = folder / f"{kind}.onnx"
        made[kind] = (path, asvp_export.export(protected, path, images=pictures, portable=portable))
    return made


KINDS = pytest.mark.parametrize("kind", ["function", "inline"])


# Names


def test_every_call_has_a_node_and_an_inverse_behind_it(model):
    pair = ["asvp/{}", "asvp/{}/inverse"]
    layers = ["head", "block", "block#2", "block#3"]
    nodes = perturbation_nodes(model)
    assert [node.name for node in nodes] == [name.format(layer) for layer in layers for name in pair]
    for exposing, inverse in zip(nodes[::2], nodes[1::2], strict=True):
        assert list(inverse.input) == list(exposing.output)


def test_the_exposed_tensor_has_the_layers_name_and_readers_another(model):
    made = {node.name: node.output[0] for node in perturbation_nodes(model)}
    assert made["asvp/head"] == "head" and made["asvp/head/inverse"] == "head/residual"
    assert made["asvp/block#2"] == "block#2" and made["asvp/block#2/inverse"] == "block#2/residual"


def test_nobody_but_the_inverse_reads_an_exposed_tensor(model):
    for exposing in perturbation_nodes(model)[::2]:
        readers = [node for node in model.graph.node if exposing.output[0] in node.input]
        assert [node.name for node in readers] == [f"{exposing.name}/inverse"]


def test_both_maps_of_the_file_are_those_of_pytorch(model, protected):
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    seen = {"block#2": maps_of(protected, image)[2]}
    got = stock(model, image, "block#2", "block#2/residual")
    for ours, theirs in zip(got, seen["block#2"][2:], strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    assert got[0].norm() > 10 * got[1].norm()


# Runs


@pytest.mark.parametrize(
    "make, layers, opset",
    [
        (recurrent, "head,block", 18),
        (recurrent, "head,block", 26),
        (tokens, "embed,tokens,grid", 18),
        (tokens, "embed,tokens,grid", 26),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_stock_runtime_gives_the_originals_outputs_at_any_size_by_function_and_inlined(make, layers, opset):
    protected = asvp_export.protect(asvp_export.load(make()), layers, rank=2, gain=GAIN)
    model = to_onnx(protected, opset=opset)
    written_out = onnx.ModelProto()
    written_out.CopyFrom(model)
    inline(written_out)
    assert model.functions and not written_out.functions
    for size in ((1, 3, 33, 47), (3, 3, 64, 40)):
        image = torch.rand(size, generator=torch.Generator().manual_seed(0))
        for one in (model, written_out):
            assert decibels(stock(one, image)[0], protected.teacher.module(image).detach()) >= 100


@KINDS
def test_a_file_passes_its_gates_and_leaves_the_outputs_alone(kind, shipped, teacher):
    path, result = shipped[kind]
    assert result.passed and result.fidelity and result.fidelity.min_psnr >= 100 <= result.preservation.min_psnr
    image = teacher.example(batch=2)
    assert decibels(stock(path, image)[0], teacher.module(image).detach()) >= 100


def test_taking_the_nodes_out_gives_the_original(model, teacher):
    image = teacher.example()
    bare = without_nodes(model)
    assert not perturbation_nodes(bare)
    torch.testing.assert_close(stock(bare, image)[0], teacher.module(image).detach(), rtol=1e-5, atol=1e-6)


# What is said of a file


@KINDS
def test_metadata_report_and_description_name_gain_and_residual(kind, shipped):
    path, result = shipped[kind]
    provenance = read_provenance({p.key: p.value for p in onnx.load(path).metadata_props})
    assert provenance and provenance.layers == {name: Perturbation(**NODE) for name in ("head", "block")}
    for layer in result.as_dict()["layers"]:
        assert {key: layer[key] for key in NODE} == NODE
        assert layer["strength"] > 0.1 and layer["relative_feature_change"] > 10, "those of the exposed map"
    names = ["asvp/head", *(f"asvp/block{call}" for call in ("", "#2", "#3"))]
    assert asvp_export.inspect(path)["nodes"] == [{"name": name, **NODE} for name in names]


def test_a_file_of_before_is_read_as_one_without_inverses(shipped, teacher):
    before = to_onnx(asvp_export.protect(teacher, "head", gain=3.0, residual="gain"))
    assert [node.name for node in perturbation_nodes(before)] == ["asvp/head"]
    entries = {p.key: p.value for p in onnx.load(shipped["function"][0]).metadata_props}
    entries["asvp.layers"] = '[{"name":"head","rank":1,"gain":3.0,"energy":1.0,"axis":1}]'
    provenance = read_provenance(entries)
    assert provenance and provenance.layers["head"].residual_gain == 3.0 and provenance.layers["head"].inverse is None
    assert differing(before, provenance.layers) == []


@pytest.fixture(scope="module")
def planned(teacher, pictures) -> asvp_export.Protected:
    return asvp_export.protect(teacher, "head,block", residual=2.0, images=pictures)


def test_a_plan_keeps_gain_and_residual_from_file_to_file(planned, teacher, tmp_path):
    planned.plan.save(tmp_path / "p.plan.json")
    layers = json.loads((tmp_path / "p.plan.json").read_text())["layers"]
    assert [(one["node"]["gain"], one["node"]["residual"]) for one in layers] == [(100.0, 2.0)] * 2
    again = apply(teacher, Plan.load(tmp_path / "p.plan.json"))
    assert again.nodes == planned.nodes
    assert to_onnx(again).SerializeToString() == to_onnx(planned).SerializeToString()


def test_a_plan_of_before_leaves_the_gain_to_the_readers(planned, tmp_path):
    planned.plan.save(tmp_path / "p.plan.json")
    data = json.loads((tmp_path / "p.plan.json").read_text())
    for layer in data["layers"]:
        del layer["node"]["residual"]
    (tmp_path / "p.plan.json").write_text(json.dumps(data))
    nodes = Plan.load(tmp_path / "p.plan.json").nodes
    assert [(node.gain, node.residual_gain, node.inverse) for node in nodes.values()] == [(100.0, 100.0, None)] * 2


# The gate


@KINDS
def test_check_passes_what_was_shipped(kind, shipped, teacher, pictures):
    result = asvp_export.check(teacher, shipped[kind][0], images=pictures)
    assert result.passed and result.fidelity and result.nodes["head"] == Perturbation(**NODE)


def the(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (node,) = (node for node in model.graph.node if node.name == name)
    return node


def take_out(name: str) -> Callable[[onnx.ModelProto], None]:
    def harm(model: onnx.ModelProto) -> None:
        node = the(model, name)
        model.graph.node.remove(node)
        for other in model.graph.node:
            other.input[:] = [node.input[0] if one == node.output[0] else one for one in other.input]

    return harm


def set_gain(name: str, gain: float) -> Callable[[onnx.ModelProto], None]:
    def harm(model: onnx.ModelProto) -> None:
        next(one for one in the(model, name).attribute if one.name == "gain").f = gain

    return harm


def both_gains(model: onnx.ModelProto) -> None:
    """Their product stays, and so do the outputs."""
    set_gain("asvp/head", 2.0)(model)
    set_gain("asvp/head/inverse", 0.5)(model)


def pass_by(model: onnx.ModelProto) -> None:
    """Node and inverse stay in the file, and nobody reads what they make."""
    clean, left = the(model, "asvp/head").input[0], the(model, "asvp/head/inverse").output[0]
    for node in model.graph.node:
        node.input[:] = [clean if one == left else one for one in node.input]


def other_subspace(model: onnx.ModelProto) -> None:
    next(one for one in the(model, "asvp/block/inverse").attribute if one.name == "rank").i = 2
    the(model, "asvp/block/inverse").overload = "rank2"


HARMS = {
    "an inverse removed": take_out("asvp/head/inverse"),
    "the inverse of a second call removed": take_out("asvp/block#2/inverse"),
    "a node removed, its inverse left": take_out("asvp/block"),
    "the inverse's gain edited": set_gain("asvp/head/inverse", 0.02),
    "the node's gain edited": set_gain("asvp/head", 50.0),
    "both gains edited": both_gains,
    "the inverse's rank edited": other_subspace,
    "readers moved to the tensor before": pass_by,
}


def harmed(kind: str, path: Path, harm: Callable[[onnx.ModelProto], None], target: Path) -> Path:
    """A copy that was changed, its metadata as it was; it still runs."""
    model = onnx.load(path)
    fold(model)
    harm(model)
    del model.functions[:]
    attach_functions(model)
    if kind == "inline":
        inline(model)
    onnx.save(model, target)
    assert ort.InferenceSession(target, providers=["CPUExecutionProvider"])
    return target


@KINDS
@pytest.mark.parametrize("name", HARMS)
def test_check_refuses_a_file_whose_pairs_were_changed(name, kind, shipped, teacher, pictures, tmp_path):
    file = harmed(kind, shipped[kind][0], HARMS[name], tmp_path / "p.onnx")
    with pytest.raises(
        asvp_export.InputError, match=r"names ASVP nodes that its graph does not carry \((head|block)\)"
    ):
        asvp_export.check(teacher, file, images=pictures)


@KINDS
def test_a_file_that_was_folded_and_written_out_again_still_passes(kind, shipped, teacher, pictures, tmp_path):
    """What the harmed copies go through besides the harm is no harm."""
    file = harmed(kind, shipped[kind][0], lambda model: None, tmp_path / "p.onnx")
    assert asvp_export.check(teacher, file, images=pictures).passed


def test_a_plan_does_not_excuse_a_file_that_lost_its_inverse(shipped, teacher, protected, pictures, tmp_path):
    file = harmed("function", shipped["function"][0], HARMS["an inverse removed"], tmp_path / "p.onnx")
    plan = asvp_export.protect(teacher, "head,block", images=pictures).plan
    assert plan and plan.nodes == protected.nodes
    with pytest.raises(asvp_export.InputError, match=r"does not carry \(head\).*Export it again"):
        asvp_export.check(teacher, file, images=pictures, plan=plan)


@KINDS
def test_the_graph_without_its_pairs_is_worth_the_original(kind, shipped, teacher):
    model = onnx.load(shipped[kind][0])
    fold(model)
    image = teacher.example()
    (got,) = stock(without_nodes(model), image)
    np.testing.assert_allclose(got, teacher.module(image).detach(), rtol=1e-5, atol=1e-6)


def test_a_plan_that_says_another_residual_than_the_file_is_refused(shipped, teacher, pictures):
    plan = asvp_export.protect(teacher, "head,block", residual=2.0, images=pictures).plan
    with pytest.raises(
        asvp_export.InputError, match=r"disagree on head \(gain 100, residual 2 in the plan, gain 100, res"
    ):
        asvp_export.check(teacher, shipped["function"][0], images=pictures, plan=plan)


def test_a_gain_that_rounding_does_not_allow_fails_and_one_that_fits_is_named(teacher, pictures, tmp_path):
    protected = asvp_export.protect(teacher, "head", gain=1e6)
    failed = asvp_export.export(protected, tmp_path / "p.onnx", images=pictures)
    assert not failed.passed and failed.fitting_gain and 1 < failed.fitting_gain < 1e6
    fitting = asvp_export.protect(teacher, "head", gain=failed.fitting_gain)
    assert asvp_export.export(fitting, tmp_path / "p.onnx", images=pictures).passed
