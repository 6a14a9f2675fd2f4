"""What is refused of a stranger's ONNX file before anything computes, and that it is said what it is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import asvp_export
from asvp_export.errors import InputError
from asvp_export.onnx_graph.opening import DEPTH, NODES, check_strange, read_model
from asvp_export.runtime.session import session

_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
_BYTES = 3 * 3 * 3 * 3 * 4  # of the tensor w


def saved(path: Path, nodes: list[onnx.NodeProto], tensors=(), functions=()) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = helper.make_model(graph, functions=list(functions), opset_imports=_OPSETS, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def function(name: str, *called: str) -> onnx.FunctionProto:
    """A function that calls others, one after the other, and Relu."""
    nodes = [helper.make_node("Relu", ["a0"], ["a"])] if not called else []
    for index, one in enumerate(called):
        made = "a" if index == len(called) - 1 else f"a{index + 1}"
        nodes.append(helper.make_node(one, [f"a{index}"], [made], domain="local"))
    return helper.make_function("local", name, ["a0"], ["a"], nodes, _OPSETS)


def doubling(path: Path, count: int) -> Path:
    """So many functions, each of which calls the one before it twice."""
    functions = [function("f0"), *(function(f"f{i}", f"f{i - 1}", f"f{i - 1}") for i in range(1, count))]
    return saved(path, [helper.make_node(f"f{count - 1}", ["x"], ["y"], domain="local")], functions=functions)


def external(folder: Path, **entries: object) -> Path:
    """A graph x -> w * x whose w lies where the entries say; beside it lie a file of data and one that is too short."""
    folder.mkdir(exist_ok=True)
    (folder / "w.data").write_bytes(np.ones(100, np.float32).tobytes())
    (folder / "short.data").write_bytes(bytes(_BYTES - 1))
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(3, 3, 3, 3), data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        w.external_data.add(key=key, value=str(value))
    return saved(folder / "m.onnx", [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], [w])


COMMANDS: dict[str, Callable[[Path], object]] = {
    "load": asvp_export.load,
    "session": session,
    "inspect": asvp_export.inspect,
    "run": lambda path: asvp_export.run(path, np.zeros((8, 8, 3), np.float32)),
}


# Graphs


@pytest.mark.parametrize("command", COMMANDS)
def test_functions_that_double_each_other_are_counted_and_refused(command: str, tmp_path: Path):
    path = doubling(tmp_path / "m.onnx", 26)
    with pytest.raises(InputError, match=f"has over {NODES:,} nodes once its functions are inlined"):
        COMMANDS[command](path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_function_that_calls_itself_by_way_of_another_is_refused(command: str, tmp_path: Path):
    node = helper.make_node("f", ["x"], ["y"], domain="local")
    path = saved(tmp_path / "m.onnx", [node], functions=[function("f", "g"), function("g", "f")])
    with pytest.raises(InputError, match=r"The function [fg] of .*m.onnx calls itself, so its graph has no end"):
        COMMANDS[command](path)


def test_nodes_count_where_they_lie_in_bodies(tmp_path: Path):
    inside = helper.make_graph(
        [helper.make_node("f14", ["x"], ["b"], domain="local")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    model = onnx.load(doubling(tmp_path / "m.onnx", 15))
    branches = [helper.make_node("If", ["yes"], [f"z{i}"], then_branch=inside, else_branch=inside) for i in range(3)]
    model.graph.node.extend(branches[:2])
    check_strange(model, tmp_path / "m.onnx")  # 5 times f14, of some 49,000 nodes
    with pytest.raises(InputError, match="nodes once its functions are inlined"):
        model.graph.node.extend(branches[2:])
        check_strange(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("count", [DEPTH + 1, 9999])
@pytest.mark.parametrize("backwards", [False, True])
def test_functions_inside_functions_are_refused_before_they_overflow_a_stack(count, backwards, tmp_path: Path):
    functions = [function("f0"), *(function(f"f{i}", f"f{i - 1}") for i in range(1, count))]
    node = helper.make_node("f9", ["x"], ["y"], domain="local")
    path = saved(tmp_path / "m.onnx", [node], functions=functions[:: -1 if backwards else 1])
    for command in COMMANDS.values():
        with pytest.raises(InputError, match=f"are nested more than {DEPTH} deep"):
            command(path)


def test_functions_inside_functions_are_taken_as_deep_as_the_checker_takes_them(tmp_path: Path):
    functions = [function("f0"), *(function(f"f{i}", f"f{i - 1}") for i in range(1, DEPTH))]
    node = helper.make_node(f"f{DEPTH - 1}", ["x"], ["y"], domain="local")
    path = saved(tmp_path / "m.onnx", [node], functions=functions)
    onnx.checker.check_model(str(path), full_check=True)
    assert session(path).get_inputs()[0].name == "x"


def test_functions_that_are_called_often_and_end_are_taken(tmp_path: Path):
    path = doubling(tmp_path / "m.onnx", 8)
    opened = session(path)
    np.testing.assert_array_equal(
        opened.run(["y"], {"x": np.full((1, 3, 8, 8), -1, np.float32)})[0], np.zeros((1, 3, 8, 8))
    )


# External data


TAKEN = {
    "offset and length": {"location": "w.data", "offset": 4, "length": _BYTES},
    "neither": {"location": "w.data"},
    "a length of 0, which stands for none": {"location": "w.data", "length": 0},
    "a folder in the folder": {"location": "./inside/../w.data", "length": _BYTES},
}


@pytest.mark.parametrize("entries", TAKEN.values(), ids=TAKEN)
def test_what_onnxruntime_reads_is_read(entries: dict[str, object], tmp_path: Path):
    path = external(tmp_path / "m", **entries)
    (path.parent / "inside").mkdir()
    ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    read_model(path)
    assert session(path).get_inputs()[0].name == "x"


REFUSED = {
    "above": ({"location": "../w.data"}, r"lies in \.\./w\.data, outside of the model's folder; it has to lie beside"),
    "above by way of a folder": ({"location": "a/../../w.data"}, "outside of the model's folder"),
    "absolute": ({"location": "/etc/hostname"}, "lies in /etc/hostname, outside of the model's folder"),
    "link": ({"location": "link"}, r"lies in link, a link to .*w.data outside of the model's folder"),
    "missing": ({"location": "no.data"}, "are kept in no.data, which is not beside it; put it there"),
    "folder": ({"location": "inside"}, "lies in inside, which is a folder, a pipe or a device"),
    "pipe": ({"location": "pipe"}, "lies in pipe, which is a folder, a pipe or a device"),
    "device": ({"location": "zero"}, "lies in zero, a link to /dev/zero outside of the model's folder"),
    "model": ({"location": "m.onnx"}, "lies in m.onnx, which is the model itself"),
    "nowhere": ({"offset": 0}, "is listed in a file with the name ''"),
    "control characters": ({"location": "a\x1b[2J\n"}, r"name 'a\\x1b\[2J\\n'"),
    "zero byte": ({"location": "w.data\0"}, r"name 'w\.data\\x00'"),
    "long name": ({"location": "a" * 5000}, "which cannot be read"),
    "short": (
        {"location": "short.data"},
        f"bytes 0 to {_BYTES} of short.data, which has {_BYTES - 1}. That file is cut off",
    ),
    "behind the end": ({"location": "w.data", "offset": 300}, f"bytes 300 to {_BYTES + 300} of w.data, which has 400"),
    "far behind": ({"location": "w.data", "offset": 2**62}, "of w.data, which has 400"),
    "negative offset": ({"location": "w.data", "offset": -4}, "is listed with the offset '-4'; a whole number"),
    "negative length": ({"location": "w.data", "length": -_BYTES}, f"is listed with the length '-{_BYTES}'"),
    "text": ({"location": "w.data", "offset": "four"}, "is listed with the offset 'four'"),
    "very many digits": ({"location": "w.data", "length": "1" * 9999}, "is listed with the length '1111"),
    "another length": ({"location": "w.data", "length": 400}, f"with 400 bytes; its shape and type need {_BYTES}"),
}


@pytest.mark.parametrize(("entries", "said"), REFUSED.values(), ids=REFUSED)
def test_data_that_cannot_be_read_is_said_to_be_so_in_one_or_two_sentences(entries, said: str, tmp_path: Path):
    path = external(tmp_path / "m", **entries)
    (tmp_path / "w.data").write_bytes(bytes(400))
    (path.parent / "link").symlink_to(tmp_path / "w.data")
    (path.parent / "zero").symlink_to("/dev/zero")
    (path.parent / "inside").mkdir()
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(InputError, match=said) as error:
        read_model(path)
    assert 1 <= len(re.findall(r"[.?!](?= [A-Z]|$)", str(error.value))) <= 2
    assert "'w'" in str(error.value) or "are kept in" in str(error.value)
    for command in COMMANDS.values():
        with pytest.raises(InputError, match=said):
            command(path)


def test_a_model_that_is_a_link_finds_its_data_beside_what_it_links_to(tmp_path: Path):
    path = external(tmp_path / "stored", location="w.data")
    (tmp_path / "shown").mkdir()
    for name in ("m.onnx", "w.data"):
        (tmp_path / "shown" / name).symlink_to(path.parent / name)
    assert session(tmp_path / "shown" / "m.onnx").get_inputs()[0].name == "x"


@pytest.mark.parametrize("name", [b"middle", b"a_node", b"the_w"])
def test_a_name_that_is_no_text_is_refused_in_every_command(name, tmp_path):
    w = helper.make_tensor("the_w", TensorProto.FLOAT, [3, 3, 1, 1], np.ones(9))
    nodes = [
        helper.make_node("Relu", ["x"], ["middle"], "a_node"),
        helper.make_node("Conv", ["middle", "the_w"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, [w])
    content = path.read_bytes()
    assert name in content
    path.write_bytes(content.replace(name, b"\xff" + name[1:]))
    for command in COMMANDS.values():
        with pytest.raises(InputError, match=r"is damaged: a \w+ in it is b'.xff.*, which is not UTF-8 text"):
            command(path)
