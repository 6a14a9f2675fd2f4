"""Reading graphs: orders that do not exist."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

import asvp_export
from asvp_export.onnx_graph.contents import sort_nodes

CIRCLES = {
    "itself": [("first", ["x", "a"], ["a"])],
    "each other": [("first", ["x", "b"], ["a"]), ("second", ["a", "x"], ["b"])],
    "behind nodes in order": [
        *[("early", ["x", "x"], ["e"]), ("last", ["e", "d"], ["y"])],
        *[("one", ["e", "f"], ["d"]), ("two", ["d", "x"], ["f"])],
    ],
}


def circular(name: str) -> onnx.ModelProto:
    picture = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
    nodes = [helper.make_node("Add", inputs, outputs, name) for name, inputs, outputs in CIRCLES[name]]
    result = helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
    graph = helper.make_graph(nodes, "circle", [picture], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("name", CIRCLES)
def test_nodes_that_need_their_own_results_are_refused_and_not_sorted_for_ever(name, tmp_path):
    with pytest.raises(asvp_export.InputError, match="depends on its own result"):
        sort_nodes(circular(name).graph)
    onnx.save(circular(name), tmp_path / "m.onnx")
    with pytest.raises(asvp_export.InputError, match="depends on its own result"):
        asvp_export.load(tmp_path / "m.onnx")
