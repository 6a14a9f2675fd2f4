"""Two gains in graphs that somebody else wrote: who is rewired, which names stay, and that nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch

import asvp_export
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import to_onnx
from asvp_export.onnx_graph.contents import reads
from asvp_export.onnx_graph.inline import fold
from asvp_export.onnx_graph.pairs import differing, pairs
from asvp_export.onnx_graph.passes import perturbation_nodes
from asvp_export.onnx_graph.surgery import InsertedNode, insert_nodes
from asvp_export.operator import Perturbation, reference
from tests.helpers.graphs import legacy, their_graph
from tests.helpers.teachers import recurrent, save_pictures
from tests.helpers.two_gains import decibels, stock

GAIN = 100.0
NODE = Perturbation(1, GAIN, residual=1.0)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    model = their_graph()
    for node in model.graph.node:  # without names: the layers are called after their tensors
        node.doc_string = "their node"
    path = tmp_path_factory.mktemp("theirs") / "theirs.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def both(theirs) -> onnx.ModelProto:
    return to_onnx(asvp_export.protect(asvp_export.load(theirs), "few,features", gain=GAIN))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for opset in (11, 17):
        legacy(folder / f"{opset}.onnx", recurrent(), opset)
    torch.jit.script(recurrent().eval()).save(folder / "scripted.pt")
    return folder


IMAGES = {
    "dark": torch.rand(2, 3, 33, 41, generator=torch.Generator().manual_seed(0)) * 0.5,
    "bright": torch.rand(1, 3, 48, 40, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("file", ["11.onnx", "17.onnx", "scripted.pt"])
@pytest.mark.parametrize("image", IMAGES)
def test_a_protected_graph_gives_the_originals_outputs_in_a_stock_runtime(file, image, files):
    teacher = asvp_export.load(files / file)
    protected = asvp_export.protect(teacher, "/head/Conv,/block/**/Relu*", gain=GAIN)
    assert len(protected.nodes) == 4
    model = to_onnx(protected)
    x = IMAGES[image]
    assert decibels(stock(model, x)[0], recurrent()(x).detach()) >= 100
    assert decibels(protected(x), teacher.module(x)) >= 100


@pytest.mark.parametrize("file", ["11.onnx", "17.onnx", "scripted.pt"])
def test_the_name_of_a_tensor_stays_with_the_exposed_map(file, files):
    teacher = asvp_export.load(files / file)
    model = to_onnx(asvp_export.protect(teacher, "/head/Conv", gain=GAIN))
    exposing, inverse = perturbation_nodes(model)
    assert (exposing.name, inverse.name) == ("asvp//head/Conv", "asvp//head/Conv/inverse")
    name = exposing.output[0]
    assert inverse.input[0] == name and inverse.output[0] == f"{name}/residual"
    assert exposing.input[0] == f"{name}/clean"
    image = IMAGES["bright"]
    clean, exposed, left = stock(model, image, f"{name}/clean", name, f"{name}/residual")
    torch.testing.assert_close(exposed, reference(clean, 1, GAIN), rtol=1e-4, atol=1e-4)
    assert (left - clean).norm() <= 1e-4 * clean.norm() and exposed.norm() > 10 * clean.norm()


def test_the_tensor_of_an_onnx_file_keeps_its_very_name(files):
    original = onnx.load(files / "17.onnx")
    made = next(node.output[0] for node in original.graph.node if node.name == "/head/Conv")
    model = to_onnx(asvp_export.protect(asvp_export.load(files / "17.onnx"), "/head/Conv", gain=GAIN))
    assert perturbation_nodes(model)[0].output[0] == made


@pytest.mark.parametrize("image", IMAGES)
def test_readers_in_the_bodies_of_loop_and_if_are_rewired(image, both, theirs):
    """The bright image takes the branch that reads `features`, the dark one that which reads `few`."""
    x = IMAGES[image]
    for ours, original in zip(stock(both, x, "y", "features"), stock(theirs, x, "y", "features"), strict=True):
        assert decibels(ours, original) >= 100
    (inside,) = (node for node in both.graph.node if node.op_type == "If")
    assert reads(inside) >= {"few/residual", "features"} and "few" not in reads(inside)


def test_an_output_of_the_graph_keeps_its_name_and_is_the_residual_map(both, theirs):
    wires = {node.name: (*node.input, *node.output) for node in perturbation_nodes(both)}
    assert wires["asvp/features"] == ("features/clean", "features/exposed")
    assert wires["asvp/features/inverse"] == ("features/exposed", "features")
    assert [value.name for value in both.graph.output] == ["y", "features"]
    image = IMAGES["bright"]
    (original,) = stock(theirs, image, "features")
    exposed, shown = stock(both, image, "features/exposed", "features")
    assert decibels(shown, original) >= 100 and exposed.norm() > 10 * original.norm()


def test_with_a_residual_of_gain_an_output_of_the_graph_is_the_exposed_map(theirs):
    model = to_onnx(asvp_export.protect(asvp_export.load(theirs), "features", gain=3.0, residual="gain"))
    (node,) = perturbation_nodes(model)
    assert (*node.input, *node.output) == ("features/clean", "features")


@pytest.mark.parametrize("taken", ["few/residual", "few/clean"])
def test_names_that_are_taken_are_left_to_those_who_have_them(taken, theirs):
    model = onnx.load(theirs)
    for node in model.graph.node:
        node.output[:] = [taken if name == "many" else name for name in node.output]
        node.input[:] = [taken if name == "many" else name for name in node.input]
    done = insert_nodes(model, [InsertedNode("few", "few", NODE)])
    exposing, inverse = perturbation_nodes(done)
    assert f"{taken}2" in (exposing.input[0], inverse.output[0]) and exposing.output[0] == "few"
    image = IMAGES["dark"]
    assert decibels(stock(done, image)[0], stock(theirs, image)[0]) >= 100


def undone(model: onnx.ModelProto) -> onnx.ModelProto:
    """By the names alone: nodes dropped, tensors renamed back, what the surgery added at the ends cut off."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    kept = [node for node in bare.graph.node if node.domain != "asvp"]

    def rename(nodes) -> None:
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [name.removesuffix("/residual").removesuffix("/clean") for name in names]
            for attribute in node.attribute:
                rename(attribute.g.node)

    rename(kept)
    del bare.graph.node[:]
    bare.graph.node.extend(kept)
    for entries in (bare.functions, bare.opset_import):
        ours = [one for one in entries if one.domain == "asvp"]
        assert len(ours) == 1
        entries.remove(ours[0])
    return bare


def test_without_its_pairs_the_graph_is_the_original_byte_for_byte(both, theirs):
    original, bare = onnx.load(theirs), undone(both)
    assert bare.ir_version == 10, "the first with overloads of functions"
    bare.ir_version = original.ir_version
    assert bare.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)


def test_initializers_are_untouched(both, theirs):
    ours, theirs_ = (one.graph.initializer for one in (both, onnx.load(theirs)))
    assert [one.SerializeToString() for one in ours] == [one.SerializeToString() for one in theirs_]


def test_the_model_that_is_handed_in_stays_as_it_is(theirs):
    model = onnx.load(theirs)
    before = copy.deepcopy(model)
    insert_nodes(model, [InsertedNode("few", "few", NODE), InsertedNode("features", "features", NODE)])
    assert model == before


def test_a_file_with_pairs_is_valid_in_every_graph(both, files):
    onnx.checker.check_model(both, full_check=True)
    for opset in (11, 17):
        made = to_onnx(asvp_export.protect(asvp_export.load(files / f"{opset}.onnx"), "/head/Conv", gain=GAIN))
        onnx.checker.check_model(made, full_check=True)
        assert made.opset_import[0].version == opset


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 1)


@pytest.mark.parametrize("portable", ["", "inline"])
def test_the_whole_road_from_an_onnx_file_by_function_and_inlined(portable, files, pictures, tmp_path):
    protected = asvp_export.protect(asvp_export.load(files / "17.onnx"), "/head/Conv,/block/block.1/Relu", gain=GAIN)
    result = asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, portable=portable)
    assert result.passed and result.preservation.min_psnr >= 100
    again = asvp_export.check(files / "17.onnx", tmp_path / "p.onnx", images=pictures)
    assert again.passed and again.fidelity and len(again.nodes) == 2
    model = onnx.load(tmp_path / "p.onnx")
    fold(model)
    assert [pair.perturbation() for pair in pairs(model)] == [NODE] * 2


def test_a_lost_inverse_is_seen_in_a_graph_that_was_not_shipped_too(both):
    model = onnx.ModelProto()
    model.CopyFrom(both)
    lost = next(node for node in model.graph.node if node.name == "asvp/few/inverse")
    model.graph.node.remove(lost)
    for node in model.graph.node:
        node.input[:] = ["few" if name == "few/residual" else name for name in node.input]
    layers = {"few": NODE, "features": NODE}
    assert differing(both, layers) == [] and differing(model, layers) == ["few"]


def test_a_plan_applied_to_a_graph_gives_the_same_bytes_twice(files, pictures, tmp_path):
    teacher = asvp_export.load(files / "17.onnx")
    made = asvp_export.protect(teacher, "/head/Conv", residual=1.5, images=pictures)
    assert made.plan
    made.plan.save(tmp_path / "p.plan.json")
    first, second = (
        to_onnx(apply(asvp_export.load(files / "17.onnx"), Plan.load(tmp_path / "p.plan.json"))) for _ in range(2)
    )
    assert first.SerializeToString() == second.SerializeToString() == to_onnx(made).SerializeToString()
    assert [pair.perturbation() for pair in pairs(first)] == [Perturbation(1, 100.0, residual=1.5)]
