"""float16 files: right within the type's rounding, and what would overflow is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import asvp_export
from asvp_export.onnx_graph import publish
from asvp_export.onnx_graph.contents import is_external, sort_nodes
from asvp_export.onnx_graph.float16 import to_half
from tests.helpers.teachers import example, save_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), height=48, width=64)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, pictures) -> tuple[asvp_export.ParityResult, Path]:
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    protected = asvp_export.protect(example("sr_x2"), "after_body", gain=1.1)
    return asvp_export.export(protected, path, images=pictures, dtype="fp16", min_psnr=45), path


def test_a_teacher_ships_in_half_precision(shipped):
    result, path = shipped
    assert result.passed and result.fidelity.threshold == 50 and 50 < result.fidelity.min_psnr < 100
    model = onnx.load(path)
    kinds = {t.data_type for t in model.graph.initializer if t.data_type not in (TensorProto.INT64, TensorProto.INT32)}
    assert kinds <= {TensorProto.FLOAT16, TensorProto.FLOAT}  # scales of a Resize stay float32
    large = [t for t in model.graph.initializer if len(t.dims) == 4]
    assert large and {t.data_type for t in large} == {TensorProto.FLOAT16}
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [
        TensorProto.FLOAT16
    ] * 2
    assert result.execution_paths == ("function", "library")


def test_check_knows_the_type_and_run_feeds_it(shipped, pictures):
    _, path = shipped
    result = asvp_export.check(example("sr_x2"), path, images=pictures, min_psnr=45)
    assert result.passed and result.fidelity.threshold == 50
    assert asvp_export.run(path, min(pictures.iterdir())).pixels.dtype == np.float32


class Loud(nn.Module):
    """The second layer's feature map leaves float16's range, the output does not."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.head, self.body, self.tail = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
        for layer, weight in ((self.head, 1.0), (self.body, factor), (self.tail, 1 / factor)):
            layer.weight.data = weight * torch.eye(3)[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(torch.relu(self.body(torch.relu(self.head(x)))))


def test_the_first_layer_that_overflows_is_named_and_nothing_is_written(tmp_path, pictures):
    teacher = asvp_export.load(Loud(2e5))
    result = asvp_export.export(
        asvp_export.protect(teacher, "none"), tmp_path / "loud.onnx", images=pictures, dtype="fp16"
    )
    assert not result.passed and not (tmp_path / "loud.onnx").exists()
    (note,) = [note for note in result.notes if "overflows" in note]
    assert "/body/Conv" in note and "65504" in note and "--dtype fp32" in note
    quiet = asvp_export.load(Loud(2e3))
    assert asvp_export.export(
        asvp_export.protect(quiet, "none"), tmp_path / "quiet.onnx", images=pictures, dtype="fp16"
    ).passed


@pytest.mark.parametrize("original", ["module", "onnx"])
def test_over_two_gibibytes_weights_are_converted_a_tensor_at_a_time(
    original, shipped, tmp_path, pictures, monkeypatch
):
    monkeypatch.setattr(publish, "EXTERNAL_LIMIT", 1_000)  # the real limit is 2 GiB
    teacher = example("sr_x2")
    if original == "onnx":
        asvp_export.export(asvp_export.protect(teacher, "none"), tmp_path / "original.onnx", images=pictures)
        teacher = asvp_export.load(tmp_path / "original.onnx")
    node = asvp_export.protect(teacher, "after_body" if original == "module" else "/after_body/Conv", gain=1.1)
    result = asvp_export.export(node, tmp_path / "half.onnx", images=pictures, dtype="fp16", min_psnr=45)
    assert result.passed
    files = [tmp_path / "half.onnx", shipped[1]]
    weights = [{t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer} for file in files]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        np.testing.assert_array_equal(weight, weights[1][name])
    slim = onnx.load(files[0], load_external_data=False)
    assert [value.name for value in slim.graph.input] == ["input"] and any(map(is_external, slim.graph.initializer))


def test_another_type_is_refused(tmp_path, pictures):
    with pytest.raises(asvp_export.InputError, match="'int8' was asked for; fp32 or fp16"):
        asvp_export.export(
            asvp_export.protect(example("sr_x2"), "none"), tmp_path / "x.onnx", images=pictures, dtype="int8"
        )


def test_nodes_are_sorted_with_what_their_subgraphs_read():
    value = helper.make_tensor_value_info
    inner = helper.make_graph([helper.make_node("Identity", ["late"], ["r"])], "then", [], [value("r", 1, [2])])
    nodes = [
        helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Relu", ["x"], ["late"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 1, [2]), value("flag", 9, [])], [value("y", 1, [2])])
    sort_nodes(graph)
    assert [node.op_type for node in graph.node] == ["Relu", "If"]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    half = to_half(model)
    session = onnxruntime.InferenceSession(half.SerializeToString())
    found = session.run(None, {"x": np.array([-1, 2], np.float16), "flag": np.array(True)})[0]
    assert found.dtype == np.float16 and found.tolist() == [0, 2]
