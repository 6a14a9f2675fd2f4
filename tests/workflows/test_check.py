"""The parity gate alone: what it holds a shipped file against, and what it does not let pass."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import asvp_export
from asvp_export.onnx_graph.passes import without_nodes
from asvp_export.operator import native
from tests.helpers.teachers import recurrent, save_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def teacher() -> asvp_export.Teacher:
    return asvp_export.load(recurrent())


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, teacher, pictures) -> Path:
    path = tmp_path_factory.mktemp("shipped") / "p.onnx"
    assert asvp_export.export(asvp_export.protect(teacher, "head", gain=1.01), path, images=pictures).passed
    return path


def edited(shipped: Path, folder: Path, **properties: str) -> Path:
    """A copy with other metadata."""
    model = onnx.load(shipped)
    old = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, old | {f"asvp.{key}": value for key, value in properties.items()})
    onnx.save(model, folder / "edited.onnx")
    return folder / "edited.onnx"


def test_a_shipped_file_passes_both_gates_again(teacher, shipped, pictures, kernels):
    result = asvp_export.check(teacher, shipped, images=pictures)
    assert result.passed and result.fidelity
    ways = {score.execution_path for gate in result.gates.values() for score in gate.per_image}
    if kernels == "library":
        assert ways == {"function", "library"} and not result.notes
    else:
        assert ways == {"function"} and any("function body alone" in note for note in result.notes)


def test_a_library_that_computes_something_else_fails_the_gate(teacher, shipped, pictures, reduced, monkeypatch):
    monkeypatch.setattr(native, "library_path", lambda: reduced("cpu"))
    result = asvp_export.check(teacher, shipped, images=pictures)
    assert result.fidelity and not result.fidelity.passed and not result.passed
    for score in result.fidelity.per_image:
        assert (score.psnr >= result.fidelity.threshold) == (score.execution_path == "function")


def test_a_file_whose_nodes_were_taken_out_does_not_pass(teacher, shipped, pictures, tmp_path):
    onnx.save(without_nodes(onnx.load(shipped)), tmp_path / "bare.onnx")
    with pytest.raises(asvp_export.InputError, match="does not carry"):
        asvp_export.check(teacher, tmp_path / "bare.onnx", images=pictures)


def test_a_file_that_says_other_attributes_than_it_has_does_not_pass(teacher, shipped, pictures, tmp_path):
    layers = '[{"name":"head","rank":1,"gain":3.0,"energy":1.0,"axis":1}]'
    with pytest.raises(asvp_export.InputError, match="does not carry"):
        asvp_export.check(teacher, edited(shipped, tmp_path, layers=layers), images=pictures)


def test_a_file_without_nodes_and_metadata_is_said_to_have_none(teacher, shipped, pictures, tmp_path):
    bare = without_nodes(onnx.load(shipped))
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    result = asvp_export.check(teacher, tmp_path / "bare.onnx", images=pictures)
    assert any("no ASVP node" in note for note in result.notes)


@pytest.mark.parametrize(
    "properties",
    [
        {"size": '{"minimum":0,"multiple":0}'},
        {"size": '{"minimum":1,"multiple":-4}'},
        {"scale": "0"},
        {"gates": "[]"},
        {"size": '{"minimum":100000,"multiple":1}'},
        {"gates": "3"},
        {"gates": '{"fidelity":{}}'},
        {"data_range": "-1"},
        {"data_range": "NaN"},
        {"layers": "{}"},
        {"layers": '[{"name":"head","rank":0}]'},
        {"scale": "1e999"},
    ],
)
def test_metadata_that_was_edited_to_nonsense_is_refused(properties, shipped, tmp_path):
    with pytest.raises(asvp_export.InputError, match="metadata"):
        asvp_export.inspect(edited(shipped, tmp_path, **properties))


@pytest.mark.parametrize("shape", [["n", "h", "w", 3], [1, 64, 80, 3], ["n", 1, "h", "w"]])
def test_a_file_whose_inputs_do_not_fit_is_refused(shape, teacher, pictures, tmp_path):
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("input", "output")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["input"], ["output"])], "g", value[:1], value[1:]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(asvp_export.InputError, match="expected"):
        asvp_export.check(teacher, tmp_path / "other.onnx", images=pictures)
