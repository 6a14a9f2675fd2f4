"""The metadata of a file can come from anyone: what no export wrote is refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

import onnx
import pytest

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError
from asvp_export.onnx_graph.describe import describe
from asvp_export.onnx_graph.inline import inline
from asvp_export.onnx_graph.metadata import INLINE, Provenance, read_provenance, write_provenance
from asvp_export.onnx_graph.names import NodeName
from asvp_export.onnx_graph.passes import write_node
from asvp_export.operator import Perturbation
from asvp_export.parity.inlined import misbehaving
from asvp_export.signature import SizeRule, ValueRange
from tests.helpers import bodies

NODE = Perturbation(2, 3.0, residual=1.5)
MADE = Provenance(
    version="0.1.0",
    layers={"body.0": NODE, "body.1": Perturbation(1, 1.5, 0.9)},
    source_sha256="0" * 64,
    data_range=ValueRange(-1, 1),
    scale=2,
    size=SizeRule(8, 4, True),
    gates={"fidelity": {"threshold": 60.0, "min_psnr": 91.2}, "preservation": {"threshold": 48, "min_psnr": None}},
    tiling="supported",
    compensated="solve",
    assumptions=(Assumption("value range", "-1..1", "its output follows a picture", False, "--data-range"),),
)


def entries(provenance: Provenance = MADE) -> dict[str, str]:
    model = onnx.ModelProto()
    write_provenance(model, provenance)
    return {entry.key: entry.value for entry in model.metadata_props}


def test_what_was_written_reads_back():
    assert read_provenance(entries()) == MADE
    assert read_provenance({"other": "entry"}) is None


def test_files_from_before_residuals_and_those_of_newer_versions_read():
    found = entries()
    layers = json.loads(found["asvp.layers"])
    for layer in layers:
        del layer["residual"]
    for key in ("tiling", "compensated", "assumptions"):
        del found[f"asvp.{key}"]
    found |= {"asvp.layers": json.dumps(layers), "asvp.colour": "blue"}
    read = read_provenance(found)
    assert read and read.layers["body.0"] == Perturbation(2, 3.0) and not read.assumptions


LAYER = {"name": "a", "rank": 1, "gain": 2.0, "energy": 1.0, "axis": 1, "residual": 1.0}
WRONG: dict[str, tuple[str, Any, str]] = {
    "a rank that is a text": ("layers", [LAYER | {"rank": "1"}], r"layers\.a\.rank is '1', a whole"),
    "a rank of 10^30": ("layers", [LAYER | {"rank": 10**30}], "it must be an integer of at least 1, and at most"),
    "a gain of NaN": ("layers", [LAYER | {"gain": float("nan")}], "gain is nan, a finite number was expected"),
    "an infinite gain": ("layers", [LAYER | {"gain": float("inf")}], "gain is inf, a finite number was expected"),
    "a negative gain": ("layers", [LAYER | {"gain": -1}], r"The gain is -1\.0"),
    "a layer twice": ("layers", [LAYER, LAYER], "it names the layer 'a' twice"),
    "layers by name": ("layers", {"a": LAYER}, "layers is not a list of objects with names"),
    "layers without names": ("layers", [{"rank": 1}], "layers is not a list of objects with names"),
    "a name that is a list": ("layers", [LAYER | {"name": ["a"]}], "layers is not a list of objects with names"),
    "a name of a megabyte": ("layers", [LAYER | {"name": "x" * 2**20}], "a text of at most 4096 characters"),
    "an attribute of no kind": ("layers", [LAYER | {"colour": 1}], r"layers\.a\.colour is not known to this version"),
    "a range of texts": ("data_range", ["0", "1"], r"data_range\.low is '0', a number was expected"),
    "a range of three": ("data_range", [0, 1, 2], "data_range is not a pair"),
    "a range that falls": ("data_range", [1, 0], r"The data range is \(1\.0, 0\.0\)"),
    "a scale that is a text": ("scale", "2", "scale is '2', a number was expected"),
    "a scale of 1e9": ("scale", 1e9, r"scale 1000000000\.0"),
    "sizes in a list": ("size", [1, 1, False], r"size is \[1, 1, False\], an object was expected"),
    "a size that is a text": ("size", {"minimum": "8", "multiple": 1, "square": False}, r"size\.minimum is '8'"),
    "a size of 2^40": ("size", {"minimum": 2**40, "multiple": 1, "square": False}, "minimum 1099511627776"),
    "square that is a number": ("size", {"minimum": 8, "multiple": 1, "square": 1}, "square is 1, true or false was"),
    "gates in a list": ("gates", [], r"gates is \[\], an object was expected"),
    "a gate without a threshold": ("gates", {"fidelity": {"min_psnr": 1.0}}, "the gate 'fidelity' has no threshold"),
    "a threshold of null": ("gates", {"f": {"min_psnr": 1, "threshold": None}}, "the gate 'f' has no threshold"),
    "a PSNR that is a text": ("gates", {"f": {"min_psnr": "1", "threshold": 1}}, "min_psnr is '1', a number"),
    "assumptions that are texts": ("assumptions", ["a"], r"assumptions\.0 is 'a', an object was expected"),
    "lists in lists": ("layers", "[" * 200_000, "it is not JSON"),
    "no JSON": ("scale", "two", "it is not JSON"),
    "a layout of no kind": ("layout", "chwn", "layout chwn"),
    "a version of a megabyte": ("version", "1" * 2**20, "a text of at most 4096 characters"),
    "no source": ("source_sha256", None, "source_sha256 is missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_that_no_export_writes_is_named(case):
    key, value, told = WRONG[case]
    plain = key in ("layout", "version") or case in ("lists in lists", "no JSON")
    found = entries() | {f"asvp.{key}": value if plain else json.dumps(value)}
    if value is None:
        del found[f"asvp.{key}"]
    with pytest.raises(InputError, match=told) as refused:
        read_provenance(found)
    assert str(refused.value).startswith("The file's asvp metadata cannot be read (") and len(str(refused.value)) < 400


def named(rank: int, *, inlined: bool) -> onnx.ModelProto:
    """A file with a node of rank 1, whose metadata (and attribute, where it is not inlined) says another rank."""
    model = bodies.model([Perturbation(1, 2.0)], dims=("n", 4, "h", "w"))
    write_node(model.graph.node[0], NodeName("body.0"), Perturbation(1, 2.0))
    if inlined:
        inline(model)
    else:
        model.graph.node[0].attribute[0].i = rank
    layers = {"body.0": Perturbation(rank, 2.0)}
    made = Provenance("0.1.0", layers, "0" * 64, ValueRange(), 1, SizeRule(), portable=INLINE if inlined else "")
    write_provenance(model, made)
    return model


@pytest.mark.parametrize("rank", [5000, 2_000_000, 2**31 - 1])
def test_an_inlined_body_is_not_that_of_a_rank_that_it_is_too_short_for(rank):
    model = named(rank, inlined=True)
    assert misbehaving(model, {"body.0": Perturbation(rank, 2.0)}) == ["body.0"]
    assert misbehaving(model, {"body.0": Perturbation(1, 2.0)}) == []


@pytest.mark.parametrize("inlined", [False, True])
def test_a_file_that_names_a_rank_of_millions_is_described_at_its_word(inlined, tmp_path):
    onnx.save(named(2_000_000, inlined=inlined), tmp_path / "p.onnx")
    found: Any = describe(tmp_path / "p.onnx")
    assert [node["rank"] for node in found["nodes"]] == [2_000_000]
