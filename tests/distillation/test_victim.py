"""What attackers can see: the taps of a model and of a file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

import asvp_export
from asvp_export.distillation import data
from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.attacks.base import UnavailableError
from asvp_export.distillation.victim import TAPS, Victim
from asvp_export.errors import InputError
from asvp_export.insertion.protected import insert
from asvp_export.onnx_graph.contents import next_weighted
from asvp_export.operator import Perturbation
from tests.helpers.audits import GAIN, LAYER, TASK, exported, near
from tests.helpers.teachers import example, recurrent


def test_the_taps_of_the_shipped_model_are_its_own(victim, patches):
    clean, seen = victim.original(patches.inputs), victim.shipped(patches.inputs)
    assert torch.equal(seen["before"][0], clean["exposed"][0])
    exact = asvp_export.reference(clean["exposed"][0].double(), 1, GAIN)
    assert near(seen["exposed"][0].double(), exact) < 1e-5
    assert not torch.allclose(seen["next"][0], clean["next"][0])
    assert seen["next"][0].shape == clean["next"][0].shape
    assert torch.equal(clean.outputs, victim.teacher.module(patches.inputs))


def test_a_shipped_file_shows_what_the_model_in_pytorch_shows(victim, file, patches):
    """Float32 against float32: 1e-4 is what the function body promises of the operator."""
    other = Victim.of_file(victim.teacher, file)
    assert list(other.nodes) == [LAYER]
    ours, theirs = victim.shipped(patches.inputs[:4]), other.shipped(patches.inputs[:4])
    for tap in TAPS:
        assert near(theirs[tap][0], ours[tap][0]) < 1e-4, tap
    assert near(theirs.outputs, ours.outputs) < 1e-4
    theirs, ours = (one.without_nodes(patches.inputs[:4], {}).outputs for one in (other, victim))
    assert near(theirs, ours) < 1e-4
    assert not other.notes and "(the sha256 differs)" in Victim.of_file(example("lowlight"), file).notes[0]
    with pytest.raises(UnavailableError, match="ONNX"):
        attacks()["finetune"].prepare(other, patches.inputs)


def test_an_onnx_teacher_is_audited_as_it_is(bare, clean):
    teacher = asvp_export.load(bare)
    layer = next(name for name in asvp_export.layers(teacher).layers if "body/3" in name.name and "Relu" in name.name)
    victim = Victim(insert(teacher, {layer.name: Perturbation(1, GAIN)}))
    patches = data.cut_patches(teacher, data.from_folder(clean, TASK).train, 2, 0)
    seen, bare = victim.shipped(patches.inputs), victim.original(patches.inputs)
    assert near(seen["before"][0], bare["exposed"][0]) < 1e-6 and "next" in bare.features
    assert near(seen["exposed"][0], bare["exposed"][0]) > 1


def test_a_file_without_nodes_and_a_teacher_of_another_kind_are_refused(file, bare, protected):
    with pytest.raises(InputError, match="carries no ASVP node"):
        Victim.of_file(protected.teacher, bare)
    with pytest.raises(InputError, match="no layer of that name"):
        Victim.of_file(asvp_export.load(torch.nn.Conv2d(3, 3, 3, padding=1)), file)


def test_a_file_of_frozen_sizes_shows_the_same_and_another_model_is_refused(victim, file, patches, tmp_path):
    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "frozen.onnx")
    other = Victim.of_file(victim.teacher, tmp_path / "frozen.onnx")
    assert other.teacher.static_shape[0] == 3
    ours, theirs = victim.shipped(patches.inputs[:4]), other.shipped(patches.inputs[:4])
    assert near(theirs.outputs, ours.outputs) < 1e-4 and near(theirs["exposed"][0], ours["exposed"][0]) < 1e-4
    grey = asvp_export.load(torch.nn.Conv2d(1, 1, 3, padding=1))
    with pytest.raises(InputError, match=r"takes images of .*x3x"):
        Victim.of_file(grey, file)


def test_a_layer_that_is_called_again_has_a_node_at_each_call(tmp_path, patches):
    here = Victim(insert(asvp_export.load(recurrent()), {"block": Perturbation(1, GAIN)}))
    there = Victim.of_file(here.teacher, exported(here.protected, tmp_path / "recurrent.onnx"))
    assert list(there.nodes) == ["block"]
    for ours, theirs in (
        (here.shipped(patches.inputs[:2]), there.shipped(patches.inputs[:2])),
        (
            here.without_nodes(patches.inputs[:2], {"block": lambda x: 2 * x}),
            there.without_nodes(patches.inputs[:2], {"block": lambda x: 2 * x}),
        ),
    ):
        assert near(theirs.outputs, ours.outputs) < 1e-4
        assert near(theirs["exposed"][0], ours["exposed"][0]) < 1e-4


def test_the_next_layer_of_a_graph_reads_the_tensor_and_has_weights_however_they_are_stored():
    make = onnx.helper.make_node
    nodes = [
        make("Relu", ["x"], ["a"]),
        make("Cast", ["half"], ["w"], to=1),
        make("Conv", ["x", "w"], ["beside"]),
        make("Add", ["a", "a"], ["b"]),
        make("MatMul", ["b", "x"], ["product"]),
        make("Conv", ["product", "w"], ["next"]),
    ]
    half = onnx.numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float16), "half")
    given = onnx.helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])
    graph = onnx.helper.make_graph(nodes, "g", [given], [onnx.helper.make_tensor_value_info("next", 1, None)], [half])
    assert next_weighted(onnx.helper.make_model(graph), "a") == "next"
    assert next_weighted(onnx.helper.make_model(graph), "next") is None
