"""Protect, export, verify: what a file promises."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import asvp_export
from asvp_export.images import list_images, photographs, read_image
from asvp_export.insertion.protected import insert, to_onnx
from asvp_export.onnx_graph.metadata import read_provenance
from asvp_export.onnx_graph.passes import perturbation_nodes, without_nodes
from asvp_export.operator import Perturbation
from asvp_export.parity.verify import GateResult, ImageScore
from asvp_export.teacher.backends.tracing import OPSETS
from tests.helpers.teachers import EXAMPLES, ROOT, TASKS, arch, example, weights

LAYER = "after_body"
HEAD = "head"  # of the small teacher
GAIN = 30.0  # of the exposed map: the layers that read it get the clean one


def properties(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def scores_by_path(gate: GateResult) -> dict[str, list[ImageScore]]:
    """The scores of the file run by its body, and run by the library."""
    return {
        path: [score for score in gate.per_image if score.execution_path == path]
        for path in sorted({score.execution_path for score in gate.per_image})
    }


@pytest.mark.parametrize(
    "task", [task if task == "lowlight" else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]
)
def test_every_example_teacher_passes_both_gates_on_the_verify_photographs(task, tmp_path):
    """With and without the library: one export verifies the body in the file and the kernels."""
    protected = asvp_export.protect(example(task), LAYER, gain=GAIN)
    result = asvp_export.export(protected, tmp_path / "p.onnx", thorough=True)
    assert result.passed and result.output == tmp_path / "p.onnx"
    assert result.fidelity
    for gate, least in ((result.fidelity, 80), (result.preservation, 48)):
        assert list(scores_by_path(gate)) == ["function", "library"]
        for scores in scores_by_path(gate).values():
            assert min(one.psnr for one in scores) >= least
            sizes = {one.size for one in scores}
            heights_widths = [tuple(map(int, size.split("x"))) for size in sizes]
            assert len(sizes) >= 2
            assert any(h != w for h, w in heights_widths) and any(h % 2 and w % 2 for h, w in heights_widths)
            assert any(one.batch == 2 for one in scores)
            assert len({one.name for one in scores if one.batch == 1}) == len(list(photographs("verify").iterdir()))


def test_a_machine_without_the_library_verifies_the_body_alone(tmp_path, pictures, small, monkeypatch):
    monkeypatch.setenv("ASVP_DISABLE_NATIVE", "1")
    result = asvp_export.export(asvp_export.protect(small, "block", gain=GAIN), tmp_path / "p.onnx", images=pictures)
    assert result.passed and result.fidelity
    assert list(scores_by_path(result.fidelity)) == list(scores_by_path(result.preservation)) == ["function"]
    assert any("function body alone" in note for note in result.notes)


BARE = """
import sys
import numpy as np
import onnxruntime as ort
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
inputs = np.load(sys.argv[2])
np.savez(sys.argv[3], **{name: session.run(None, {"input": inputs[name]})[0] for name in inputs.files})
assert not [m for m in sys.modules if m.startswith(("asvp", "torch", "onnxscript"))], "something of ours was imported"
"""


def test_the_demo_file_runs_in_a_bare_onnxruntime_and_matches_on_the_verify_scenes(tmp_path, lowlight):
    """The README's promise, with the settings of `make demo` and without anything of ours."""
    degrade = [sys.executable, EXAMPLES / "degrade.py", "lowlight", photographs("verify"), tmp_path / "inputs"]
    subprocess.run(degrade, check=True, stdout=subprocess.DEVNULL)
    protected = asvp_export.protect(lowlight, LAYER, gain=1.02)
    assert asvp_export.export(protected, tmp_path / "p.onnx", images=tmp_path / "inputs").passed
    inputs = {path.stem: read_image(path).transpose(2, 0, 1)[None] for path in list_images(tmp_path / "inputs")}
    assert len(inputs) == len(list_images(photographs("verify")))
    inputs["batch"] = inputs["dogs_1"][:, :, :102, :130].repeat(3, 0)
    np.savez(tmp_path / "x.npz", **inputs)
    files = [str(tmp_path / name) for name in ("p.onnx", "x.npz", "y.npz")]
    subprocess.run([sys.executable, "-c", BARE, *files], check=True, cwd=tmp_path)
    outputs = np.load(tmp_path / "y.npz")
    for name, x in inputs.items():
        expected = lowlight.module(torch.from_numpy(x)).numpy()
        assert 10 * np.log10(1 / np.mean((outputs[name] - expected) ** 2)) >= 48, name


def test_sizes_are_free_and_named(tmp_path, pictures):
    teacher = example("sr_x2")
    asvp_export.export(asvp_export.protect(teacher, LAYER, gain=GAIN), tmp_path / "p.onnx", images=pictures)
    found = asvp_export.inspect(tmp_path / "p.onnx")
    assert found["inputs"] == {"input": ["batch", 3, "height", "width"]}
    assert found["outputs"] == {"output": ["batch", 3, "2*height", "2*width"]}
    session = ort.InferenceSession(tmp_path / "p.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": np.zeros((3, 3, 17, 40), np.float32)})[0].shape == (3, 3, 34, 80)


def test_static_freezes_the_one_size(tmp_path, pictures, small):
    protected = asvp_export.protect(small, HEAD, gain=GAIN)
    result = asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, sizes=[(48, 64)], static=True)
    assert result.passed and any("48x64" in note for note in result.notes)
    assert asvp_export.inspect(tmp_path / "p.onnx")["inputs"] == {"input": [1, 3, 48, 64]}
    with pytest.raises(asvp_export.InputError, match="one --size"):
        asvp_export.export(protected, tmp_path / "q.onnx", images=pictures, static=True)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_is_written_as_asked(opset, small, tmp_path, pictures):
    protected = asvp_export.protect(small, "block", gain=GAIN)
    result = asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, opset=opset)
    assert result.passed and result.fidelity and list(scores_by_path(result.fidelity)) == ["function", "library"]
    assert asvp_export.inspect(tmp_path / "p.onnx")["opset"] == {"ai.onnx": opset, "asvp": 1}


@pytest.mark.parametrize("opset", [0, 17, 27, 30])
def test_an_opset_that_is_not_written_is_refused(opset, small, tmp_path, pictures):
    with pytest.raises(asvp_export.InputError, match="18 to 26"):
        asvp_export.export(
            asvp_export.protect(small, "block", gain=1.1), tmp_path / "p.onnx", images=pictures, opset=opset
        )
    assert not list(tmp_path.iterdir())


def test_a_module_called_several_times_has_a_node_at_each_call(small):
    nodes = perturbation_nodes(to_onnx(asvp_export.protect(small, "block", rank=2, gain=1.3)))
    calls = ["asvp/block", "asvp/block#2", "asvp/block#3"]
    assert [node.name for node in nodes] == [name for call in calls for name in (call, f"{call}/inverse")]


class TwoEqualCalls(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.tail = (torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 8), (8, 3)))

    def forward(self, x):
        y = self.head(x)
        return self.tail(self.body(y) + self.body(y))


def test_equal_calls_that_the_exporter_merges_keep_one_node():
    nodes = perturbation_nodes(to_onnx(asvp_export.protect(asvp_export.load(TwoEqualCalls()), "head,body", gain=1.3)))
    once, twice = ["asvp/head", "asvp/body"], ["asvp/head", "asvp/body", "asvp/body#2"]
    found = [node.name for node in nodes]
    assert found in [[name for call in calls for name in (call, f"{call}/inverse")] for calls in (once, twice)]


def test_whole_numbers_and_numpy_scalars_are_as_good_as_floats(small, tmp_path, pictures):
    protected = asvp_export.protect(small, HEAD, rank=np.int64(1), gain=2, energy=1)
    assert protected.nodes[HEAD] == Perturbation(1, 2.0, 1.0, residual=1.0)
    asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, min_psnr=0)
    json.dumps(asvp_export.protect(small, HEAD, gain=np.float32(1.5)).nodes[HEAD].attributes())


def test_nodes_of_different_ranks_each_have_their_body(small, tmp_path, pictures):
    protected = insert(small, {"head": Perturbation(4, 1.01), "block": Perturbation(1, 1.02, 0.9)})
    assert asvp_export.export(protected, tmp_path / "p.onnx", images=pictures).passed
    found = asvp_export.inspect(tmp_path / "p.onnx")
    assert len(found["functions"]) == 2
    assert [(n["name"], n["rank"], n["gain"]) for n in found["nodes"]][:2] == [
        ("asvp/head", 4, 1.01),
        ("asvp/block", 1, 1.02),
    ]


def test_protected_module_runs_the_defence_and_leaves_the_teacher_alone(lowlight):
    x = lowlight.example()
    before = lowlight.module(x)
    protected = asvp_export.protect(lowlight, LAYER, gain=2.0, residual="gain")
    assert not torch.allclose(protected(x), before, atol=1e-4)
    torch.testing.assert_close(lowlight.module(x), before, rtol=0, atol=0)
    clean = output_of(lowlight.module, LAYER, x)
    exposed = output_of(protected.module, LAYER, x)
    torch.testing.assert_close(exposed, asvp_export.reference(clean, 1, 2.0))


def output_of(module: torch.nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    """What leaves the layer, its node passed."""
    seen = []
    handle = module.get_submodule(layer).register_forward_hook(lambda m, i, output: seen.append(output))
    module(x)
    handle.remove()
    return seen[0]


def test_taking_the_nodes_out_gives_the_original_back(lowlight):
    model = to_onnx(asvp_export.protect(lowlight, "body.*", gain=3.0))
    bare = ort.InferenceSession(without_nodes(model).SerializeToString(), providers=["CPUExecutionProvider"])
    x = lowlight.example(64, 96)
    y = bare.run(None, {bare.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(y, lowlight.module(x).numpy(), atol=1e-5)


def test_metadata_says_what_was_measured_and_names_no_machine(tmp_path, pictures, lowlight):
    output = tmp_path / "p.onnx"
    result = asvp_export.export(asvp_export.protect(lowlight, LAYER, gain=GAIN), output, images=pictures)
    provenance = read_provenance(properties(output))
    assert provenance is not None and provenance.source_sha256 == lowlight.sha256
    assert provenance.layers == {LAYER: Perturbation(1, GAIN, residual=1.0)}
    assert provenance.scope == "whole-image"
    measured = provenance.gates["preservation"]["min_psnr"]
    assert measured <= min(result.preservation.min_psnr, 100) < measured + 0.1  # beyond 100 dB there is rounding alone
    content = output.read_bytes()
    for trace in (
        str(Path.home()),
        str(ROOT),
        str(tmp_path),
        ".py",
        "site-packages",
        "stack_trace",
    ):
        assert trace.encode() not in content, trace
    model = onnx.load(output)
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the number of processors cannot be limited here")
def test_repeated_from_another_folder_and_with_fewer_threads_the_bytes_are_the_same(tmp_path, pictures):
    files = []
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "ORT_INTRA_OP_NUM_THREADS")}
    for name, processors in (("one", {min(os.sched_getaffinity(0))}), ("two", os.sched_getaffinity(0))):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, "-m", "asvp_export", str(weights("derain")), f"--arch={arch('derain')}", "--json"]
        command += ["--layers=body.1,after_body", f"--gain={GAIN}", f"--images={pictures}", "--output=p.onnx"]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            preexec_fn=lambda processors=processors: os.sched_setaffinity(0, processors),
        )
        files.append((folder / "p.onnx").read_bytes())
        assert json.loads(done.stdout)["output_sha256"] == hashlib.sha256(files[-1]).hexdigest()
    assert files[0] == files[1]


def test_the_protected_copy_reads_the_teachers_own_weights(small):
    protected = asvp_export.protect(small, HEAD, gain=GAIN)
    theirs = dict(small.module.named_parameters())
    assert theirs
    for name, weight in protected.module.named_parameters():
        assert weight is not theirs[name] and weight.data_ptr() == theirs[name].data_ptr()
    buffers = dict(small.module.named_buffers())
    assert all(b.data_ptr() != buffers[name].data_ptr() for name, b in protected.module.named_buffers())


def test_a_pt2_archive_goes_the_whole_road(tmp_path, pictures, lowlight):
    free = torch.export.Dim.AUTO
    program = torch.export.export(lowlight.module, (lowlight.example(),), dynamic_shapes=({0: free, 2: free, 3: free},))
    torch.export.save(program, tmp_path / "t.pt2")
    teacher = asvp_export.load(tmp_path / "t.pt2")
    result = asvp_export.export(asvp_export.protect(teacher, LAYER, gain=GAIN), tmp_path / "p.onnx", images=pictures)
    assert result.passed
    assert asvp_export.inspect(tmp_path / "p.onnx")["nodes"][0]["name"] == f"asvp/{LAYER}"


def test_a_static_archive_says_that_it_cannot_become_dynamic(tmp_path, pictures, lowlight):
    program = torch.export.export(lowlight.module, (lowlight.example(48, 64),))
    torch.export.save(program, tmp_path / "t.pt2")
    protected = asvp_export.protect(asvp_export.load(tmp_path / "t.pt2"), LAYER, gain=GAIN)
    with pytest.raises(asvp_export.InputError, match="cannot become dynamic"):
        asvp_export.export(protected, tmp_path / "p.onnx", images=pictures)
    assert asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, static=True).passed


def test_strength_and_change_are_those_of_the_definition(small, tmp_path, pictures):
    protected = asvp_export.protect(small, HEAD, gain=3.0)
    effect = asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, min_psnr=0).effects[HEAD]
    assert 0 < effect.strength <= effect.strength_cap < 1
    assert 0 < effect.relative_feature_change <= 2.0  # gain - 1
    share = (effect.relative_feature_change / 2.0) ** 2
    assert effect.strength_cap == pytest.approx((1 - share) ** 0.5, abs=0.05)  # means of a nonlinear relation


def test_the_environment_of_a_report_has_no_host_name(tmp_path, pictures, small):
    result = asvp_export.export(asvp_export.protect(small, "block", gain=GAIN), tmp_path / "p.onnx", images=pictures)
    text = json.dumps(result.as_dict())
    assert os.uname().nodename not in text and str(tmp_path) not in text
    assert time.strftime("%Y-%m-%d") not in text
