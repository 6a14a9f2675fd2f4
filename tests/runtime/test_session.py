"""asvp_export.InferenceSession: the library where it helps, the body in the file where it would hurt."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import asvp_export
from asvp_export.operator import DOMAIN, OP_TYPE, VERSION, Perturbation, native, reference
from asvp_export.operator.onnx_function import perturbation_function
from asvp_export.runtime.session import unserved

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NODE = Perturbation(2, 3.0)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 24, 20, 21), dtype=np.float32)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> str:
    """A file with a body that plainly does something else than the kernel: who ran shows in the result."""
    dims = ("n", "c", "h", "w")
    body = perturbation_function(NODE, 18)
    del body.node[:]
    body.node.append(helper.make_node("Neg", ["X"], ["Y"]))
    graph = helper.make_graph(
        [helper.make_node(OP_TYPE, ["X"], ["Y"], domain=DOMAIN, overload=NODE.overload, **NODE.attributes())],
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, dims)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
    path = tmp_path_factory.mktemp("shipped") / "p.onnx"
    onnx.save(model, path)
    return str(path)


def ran(session: ort.InferenceSession, x: np.ndarray) -> str:
    (y,) = session.run(None, {"X": x})
    if np.array_equal(y, -x):
        return "body"
    import torch

    np.testing.assert_allclose(y, reference(torch.from_numpy(x), 2, 3.0).numpy(), rtol=1e-4, atol=1e-4)
    return "kernel"


@pytest.mark.parametrize("providers", [None, [CPU], [(CPU, {})]])
def test_the_kernel_runs_on_the_cpu(providers, shipped, x):
    session = asvp_export.InferenceSession(shipped, providers=providers)
    assert isinstance(session, ort.InferenceSession)
    assert ran(session, x) == "kernel"


def test_the_bytes_of_a_model_and_options_of_ones_own_are_taken(shipped, x):
    from pathlib import Path

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for _ in range(2):  # the library is registered with them once
        assert ran(asvp_export.InferenceSession(Path(shipped).read_bytes(), options, [CPU]), x) == "kernel"


def test_options_that_know_the_library_already_are_taken(shipped, x):
    options = ort.SessionOptions()
    options.register_custom_ops_library(asvp_export.library_path())
    assert ran(ort.InferenceSession(shipped, options, providers=[CPU]), x) == "kernel"
    assert ran(asvp_export.InferenceSession(shipped, options, providers=[CPU]), x) == "kernel"


def test_stock_onnxruntime_runs_the_body(shipped, x):
    assert ran(ort.InferenceSession(shipped, providers=[CPU]), x) == "body"


def test_the_library_can_be_turned_off(shipped, x, monkeypatch):
    monkeypatch.setenv("ASVP_DISABLE_NATIVE", "1")
    assert ran(asvp_export.InferenceSession(shipped, providers=[CPU]), x) == "body"


@pytest.mark.skipif(native.cuda_unavailable() is None, reason="the library has CUDA kernels that run here")
def test_a_cuda_session_without_cuda_kernels_leaves_the_library_out():
    assert "CUDA" in (unserved([CUDA, CPU]) or "")


def test_a_provider_that_the_library_does_not_serve_leaves_it_out():
    assert "DmlExecutionProvider" in (unserved(["DmlExecutionProvider", CPU]) or "")
    assert unserved([CPU]) is None and unserved(["AzureExecutionProvider", CPU]) is None


def test_providers_that_do_not_start_do_not_count(shipped, x, capfd):
    """What a CPU session of onnxruntime-gpu is often opened with."""
    started = ort.InferenceSession(shipped, providers=ort.get_available_providers()).get_providers()
    capfd.readouterr()
    session = asvp_export.InferenceSession(shipped, providers=ort.get_available_providers())
    assert ran(session, x) == ("body" if unserved(started) else "kernel")


ABSENT = """
import sys
from pathlib import Path
import asvp_export
from asvp_export.operator import native
native._FILE = Path(sys.argv[1])
try:
    asvp_export.library_path()
except asvp_export.MachineError as error:
    print(error)
session = asvp_export.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
import numpy as np, torch
x = np.ones((1, 4, 5, 5), np.float32)
assert (session.run(None, {"X": x})[0] == -x).all()
print(torch.ops.asvp.perturb(torch.from_numpy(x), 1, 2.0, 1.0, 1).mean().item())
"""


@pytest.mark.parametrize("kind", ["missing", "not a library"])
def test_without_a_library_everything_goes_on_and_one_line_says_why(kind, shipped, tmp_path):
    file = tmp_path / "libasvp.so"
    if kind == "not a library":
        file.write_bytes(b"no ELF")
    done = subprocess.run([sys.executable, "-c", ABSENT, file, shipped], capture_output=True, text=True, check=True)
    said, value = done.stdout.splitlines()
    assert "no native library" in said or "cannot be loaded" in said
    assert float(value) == pytest.approx(2.0)
