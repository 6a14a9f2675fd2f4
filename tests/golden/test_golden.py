"""Files that an earlier version exported: every later library, onnxruntime and version of the tool has to read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import asvp_export
from asvp_export.onnx_graph.passes import attributes_of, perturbation_nodes
from asvp_export.operator import DOMAIN
from tests.golden.make import FILES, tiny
from tests.helpers.teachers import save_pictures

HERE = Path(__file__).resolve().parent

# Relative, Frobenius. "function", "inline": d of the ONNX function, which the kernels are closer than. "float16":
# what the roundings of two maps may come to at a gain of 10, (2 h + 1) 2^-11 (docs/concepts/operator.md).
TOLERANCES = {"function": 1e-4, "inline": 1e-4, "float16": (2 * 10 + 1) * 2.0**-11}
WITH_NODES = ("function", "float16")


def held(name: str, model: onnx.ModelProto, *libraries: str) -> None:
    """Run the model on the kept inputs, and hold outputs and exposed maps against the kept ones."""
    kept = np.load(HERE / f"{name}.npz")
    names = sorted({key.rpartition(" ")[0] for key in kept.files} - {"input"})
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=one) for one in names if one not in known)
    options = ort.SessionOptions()
    for library in libraries:
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for i in range(2):
        for one, got in zip(names, session.run(names, {"input": kept[f"input {i}"]}), strict=True):
            wanted = kept[f"{one} {i}"].astype(np.float64)
            assert np.asarray(got).dtype == kept[f"{one} {i}"].dtype
            off = np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted)
            assert off <= TOLERANCES[name], (one, i, off)


@pytest.mark.parametrize("name", FILES)
def test_onnxruntime_alone_gives_the_kept_outputs_and_exposed_maps(name):
    held(name, onnx.load(HERE / f"{name}.onnx"))


@pytest.mark.parametrize("name", WITH_NODES)
@pytest.mark.parametrize("body", [True, False], ids=["with its bodies", "nodes alone"])
def test_the_library_gives_them_too(name, body, library):
    """Without the bodies nobody but the library knows the operator."""
    model = onnx.load(HERE / f"{name}.onnx")
    if not body:
        del model.functions[:]
    held(name, model, library)


def test_version_1_of_the_operator_stays_readable():
    """A version 2 comes beside version 1, not in its place.

    What would break these files: a library that registers another version of the op alone; a checker, an overload
    or an attribute of another name; other defaults.
    """
    for name in WITH_NODES:
        model = onnx.load(HERE / f"{name}.onnx")
        onnx.checker.check_model(model)
        assert {one.domain: one.version for one in model.opset_import}[DOMAIN] == 1
        nodes = perturbation_nodes(model)
        assert [attributes_of(node).gain > 1 for node in nodes].count(True) == 2
        assert [attributes_of(node).gain < 1 for node in nodes].count(True) == 2  # the inverses
        assert {attributes_of(node).axis for node in nodes} == {1, -1}


@pytest.mark.parametrize("name", FILES)
def test_inspect_and_the_manifest_know_the_file(name):
    found = asvp_export.inspect(HERE / f"{name}.onnx")
    assert found["inputs"] == {"input": ["batch", 3, "height", "width"]}
    verified = asvp_export.verify_manifest(HERE / f"{name}.onnx")
    assert verified.passed, verified.problems


@pytest.mark.parametrize("name", FILES)
def test_check_and_run_take_the_file(name, tmp_path):
    pictures = save_pictures(tmp_path / "pictures", count=1, height=33, width=40)
    options = {"min_psnr": 5.0} if name == "inline" else {}  # its readers get maps with a gain of 3
    result = asvp_export.check(HERE / "original.onnx", HERE / f"{name}.onnx", images=pictures, **options)
    assert result.passed, result
    picture = np.load(HERE / f"{name}.npz")["input 0"][0].transpose(1, 2, 0).astype(np.float32)
    wanted = np.load(HERE / f"{name}.npz")["output 0"][0].transpose(1, 2, 0)
    got = asvp_export.run(HERE / f"{name}.onnx", picture).pixels
    np.testing.assert_allclose(np.clip(got, 0, 1), np.clip(wanted, 0, 1), atol=2e-3)


def test_the_kept_plan_protects_its_model_as_the_file_says():
    plan = asvp_export.Plan.load(HERE / "function.plan.json")
    protected = asvp_export.apply(asvp_export.load(tiny()), plan)
    ours = [node.attributes() for node in protected.nodes.values()]
    file = onnx.load(HERE / "function.onnx")
    theirs = [attributes_of(node).attributes() for node in perturbation_nodes(file)]
    assert len(ours) == 2 and all(one in theirs for one in ours)
