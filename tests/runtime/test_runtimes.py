"""Protected files in the runtimes of docs/results/compatibility.md, held against PyTorch on a real photograph.

onnxruntime-web has a file of its own, tests/examples/test_web.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import asvp_export
from asvp_export.images import list_images, photographs, read_image
from asvp_export.insertion.protected import Protected, insert, to_onnx
from asvp_export.onnx_graph.inline import fold, inline, inlined_bodies
from asvp_export.onnx_graph.passes import without_nodes
from asvp_export.operator import Perturbation, native
from asvp_export.parity.inlined import misbehaving
from asvp_export.parity.result import FIDELITY_DB
from asvp_export.runtime.session import run_model, session
from tests.helpers.teachers import arch, example, save_pictures, weights

MIXED = {"body.3": Perturbation(4, 1.5, 0.9), "after_body": Perturbation(1, 3.0)}  # plain to see in the output
GAIN = 30.0  # of the exposed map: the layers that read it get the clean one


@pytest.fixture(scope="module")
def lowlight() -> asvp_export.Teacher:
    return example("lowlight")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """Part of a photograph that no training saw, small for onnx's evaluator, 1 x 3 x 58 x 70."""
    pixels = read_image(list_images(photographs("verify"))[0])
    return np.ascontiguousarray(pixels[60:118, 90:160].transpose(2, 0, 1)[None])


@pytest.fixture(scope="module")
def mixed(lowlight) -> Protected:
    return insert(lowlight, MIXED)


@pytest.fixture(scope="module")
def files(mixed, tmp_path_factory) -> dict[str, Path]:
    """The mixed ranks with function bodies, and with the bodies inlined."""
    folder = tmp_path_factory.mktemp("files")
    model = to_onnx(mixed)
    onnx.save(model, folder / "function.onnx")
    inline(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "inline.onnx")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def once(lowlight) -> Protected:
    return insert(lowlight, {"after_body": Perturbation(1, GAIN, residual=1.0)})


@pytest.fixture(scope="module")
def single(once) -> onnx.ModelProto:
    return to_onnx(once)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """An inlined file as the command line publishes it, with its report beside it."""
    folder = tmp_path_factory.mktemp("shipped")
    pictures = save_pictures(folder / "pictures")
    command = [sys.executable, "-m", "asvp_export", weights("lowlight"), f"--arch={arch('lowlight')}"]
    command += ["--layers=after_body", f"--gain={GAIN}", f"--images={pictures}", f"--output={folder / 'p.onnx'}"]
    command += ["--portable=inline", "--quiet"]
    subprocess.run(command, check=True)
    return folder / "p.onnx"


def by_onnxruntime(path: Path, x: np.ndarray, provider: str = "cpu", library: bool = False) -> np.ndarray:
    return run_model(session(path, provider, library=library), x)[0]


def by_library(path: Path, x: np.ndarray) -> np.ndarray:
    return by_onnxruntime(path, x, library=True)


def by_openvino(path: Path, x: np.ndarray, precision: str = "f32") -> np.ndarray:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed (extra `dev`)")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return compiled([x])[0]


def by_reference_evaluator(path: Path, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(str(path)).run(None, {"input": x})[0])


def psnr(got: np.ndarray, protected: Protected, x: np.ndarray) -> float:
    """Against the protected module in PyTorch, its nodes by the reference; the peak is 1."""
    with native.reference_only():
        expected = protected(torch.from_numpy(x)).numpy()
    return 10 * np.log10(1 / np.mean((got.astype(np.float64) - expected) ** 2))


@pytest.mark.parametrize(
    "kind, run",
    [
        ("function", by_onnxruntime),
        ("function", by_library),
        ("inline", by_onnxruntime),
        ("inline", by_openvino),
        ("inline", by_reference_evaluator),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_runtime_restores_a_photograph_as_pytorch_does(kind, run, files, mixed, photograph):
    assert psnr(run(files[kind], photograph), mixed, photograph) >= FIDELITY_DB["fp32"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["function", "inline"])
def test_onnxruntime_on_cuda_restores_a_photograph_as_pytorch_does(kind, files, mixed, photograph):
    try:
        got = by_onnxruntime(files[kind], photograph, "cuda")
    except asvp_export.InputError as error:
        if torch.cuda.is_available():  # where there is a GPU, a provider that cannot be had is a failure
            raise
        pytest.skip(str(error))  # onnxruntime has no CUDA provider without a GPU
    assert psnr(got, mixed, photograph) >= FIDELITY_DB["fp32"]


def test_onnx_reference_evaluator_takes_the_function_body_where_there_is_one_rank(single, once, photograph, tmp_path):
    onnx.save(single, tmp_path / "p.onnx")
    assert psnr(by_reference_evaluator(tmp_path / "p.onnx", photograph), once, photograph) >= FIDELITY_DB["fp32"]


def test_openvino_does_not_resolve_functions_which_is_why_bodies_are_inlined(files, photograph):
    pytest.importorskip("openvino", reason="openvino is not installed (extra `dev`)")
    with pytest.raises(Exception, match="AdaptiveSingularValuePerturbation"):
        by_openvino(files["function"], photograph)


def test_an_inlined_file_is_published_with_its_gates_and_says_what_it_is(shipped):
    report = json.loads(shipped.with_suffix(".report.json").read_text())
    assert report["passed"] and report["fidelity"]["min_psnr"] >= FIDELITY_DB["fp32"]
    assert {one["way"] for one in report["fidelity"]["per_image"]} == {"function"}
    assert any("inlined" in note for note in report["notes"])
    assert 0.5 < report["latency"]["ratio"] < 100, "the body was taken out of the baseline"
    found = asvp_export.inspect(shipped)
    assert found["nodes"] == [{"name": "asvp/after_body", **Perturbation(1, GAIN, residual=1.0).described()}]
    assert found["provenance"]["portable"] == "inline" and not found["functions"]  # pyright: ignore
    model = onnx.load(shipped)
    assert {one.domain for one in model.opset_import} == {node.domain for node in model.graph.node} == {""}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("asvp/after_body/") for name in names) > 100


def test_an_inlined_file_passes_the_check_and_openvino_runs_it(shipped, lowlight, once, photograph):
    result = asvp_export.check(lowlight, shipped, images=shipped.parent / "pictures")
    assert result.passed and result.fidelity and result.execution_paths == ("function",)
    assert psnr(by_openvino(shipped, photograph), once, photograph) >= FIDELITY_DB["fp32"]


def bypass(model: onnx.ModelProto) -> None:
    """The bodies' nodes stay, and nobody takes what the first one makes: the second one reads the clean map."""
    first, second = inlined_bodies(model).values()
    assert second.input == first.output
    rewire(model, first.output, first.input)


def bypass_inverse(model: onnx.ModelProto) -> None:
    """The layer's readers get the exposed map."""
    _, second = inlined_bodies(model).values()
    rewire(model, second.output, second.input)


def rewire(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def take_out(model: onnx.ModelProto) -> None:
    fold(model)
    model.CopyFrom(without_nodes(model))


def change_gain(model: onnx.ModelProto, gain: float = GAIN) -> None:
    (stored,) = (
        a for n in model.graph.node for a in n.attribute if a.name == "value_float" and a.f == np.float32(gain)
    )
    stored.f = 1 + 0.99 * (gain - 1)


def change_inverse_gain(model: onnx.ModelProto) -> None:
    change_gain(model, 1 / GAIN)


@pytest.mark.parametrize("harm", [bypass, bypass_inverse, take_out, change_gain, change_inverse_gain])
def test_an_inlined_file_whose_body_was_tampered_with_does_not_pass(harm, shipped, lowlight, tmp_path):
    model = onnx.load(shipped)
    harm(model)
    onnx.save(model, tmp_path / "p.onnx")
    assert ort.InferenceSession(tmp_path / "p.onnx", providers=["CPUExecutionProvider"]), "it still runs"
    with pytest.raises(asvp_export.InputError, match="does not carry"):
        asvp_export.check(lowlight, tmp_path / "p.onnx", images=shipped.parent / "pictures")


def test_folding_an_inlined_file_gives_the_nodes_back(shipped, single):
    model = onnx.load(shipped)
    fold(model)
    for node in (*model.graph.node, *single.graph.node):
        node.ClearField("doc_string")  # "" or none
    assert list(model.graph.node) == list(single.graph.node)


def test_every_rank_and_axis_is_known_by_what_its_body_does(files):
    model = onnx.load(files["inline"])
    assert misbehaving(model, MIXED) == []
    others = {"body.3": Perturbation(3, 1.5, 0.9), "after_body": Perturbation(1, 3.0, 1.0, -1), "head": Perturbation()}
    assert misbehaving(model, others) == list(others)


def test_functions_of_others_are_inlined_too(files, photograph, tmp_path):
    """An ONNX file may have brought its own: a reader that resolves none cannot take those either."""
    model = onnx.load(files["function"])
    body = [onnx.helper.make_node("Add", ["x", "x"], ["y"])]
    model.functions.append(onnx.helper.make_function("mine", "Twice", ["x"], ["y"], body, model.opset_import[:1]))
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node("Twice", [output.name], ["twice"], domain="mine"))
    output.name = "twice"
    inline(model)
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    assert misbehaving(model, MIXED) == []
    onnx.save(model, tmp_path / "p.onnx")
    twice = by_onnxruntime(files["inline"], photograph) * 2
    np.testing.assert_allclose(by_onnxruntime(tmp_path / "p.onnx", photograph), twice, atol=1e-5)


def test_another_portable_form_is_refused(mixed, tmp_path):
    with pytest.raises(asvp_export.InputError, match="'tensorrt' was asked for; inline was expected"):
        asvp_export.export(mixed, tmp_path / "p.onnx", portable="tensorrt")
