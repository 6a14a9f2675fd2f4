"""Publishing a file: data beside it, older files, and what is left when something goes wrong."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import onnx
import pytest
import torch

import asvp_export
from asvp_export.insertion.protected import to_onnx
from asvp_export.onnx_graph import publish
from tests.helpers import teachers
from tests.helpers.commands import hear_signals
from tests.helpers.teachers import arch, recurrent, weights

LAYER = "after_body"
HEAD = "head"  # of the small teacher
GAIN = 30.0  # of the exposed map: the layers that read it get the clean one


def test_external_data_lies_beside_the_model_named_by_content(tmp_path, pictures, small):
    output = tmp_path / "p.onnx"
    protected = asvp_export.protect(small, HEAD, gain=GAIN)
    assert asvp_export.export(protected, output, images=pictures, external_data=True).passed
    (data,) = tmp_path.glob("p.*.data")
    assert data.stat().st_size >= 4 * 8 * 8 * 9, "the convolution's kernel lies there"
    onnx.checker.check_model(str(output), full_check=True)
    again = asvp_export.export(
        asvp_export.protect(small, HEAD, gain=GAIN - 0.001), output, images=pictures, external_data=True, force=True
    )
    assert again.passed and list(tmp_path.glob("p.*.data")) == [data], "the same weights, the same name"
    assert asvp_export.export(protected, output, images=pictures, force=True).passed
    assert not list(tmp_path.glob("*.data")), "data that no model needs is not left behind"


def test_external_data_is_automatic_where_protobuf_ends(tmp_path, pictures, small, monkeypatch):
    monkeypatch.setattr(publish, "EXTERNAL_LIMIT", 1_000)  # the real limit is 2 GiB
    protected = asvp_export.protect(small, HEAD, gain=GAIN)
    result = asvp_export.export(protected, tmp_path / "p.onnx", images=pictures)
    assert result.passed
    (data,) = tmp_path.glob("p.*.data")
    written = {tmp_path / "p.onnx", data, *result.files.values()}
    assert set(tmp_path.iterdir()) == written, "what the trace left is gone"
    whole, slim = to_onnx(protected), to_onnx(protected, data_folder=tmp_path)
    assert max(len(tensor.raw_data) for tensor in slim.graph.initializer) < publish.SMALL, (
        "memory holds no weights twice"
    )
    onnx.load_external_data_for_model(slim, str(tmp_path))
    for tensor in slim.graph.initializer:
        tensor.ClearField("data_location")
    assert slim == whole


def loud(teacher: asvp_export.Teacher) -> asvp_export.Protected:
    """With a gain that its readers get too, so that no gate lets it pass."""
    return asvp_export.protect(teacher, HEAD, gain=30.0, residual="gain")


def test_a_failed_gate_leaves_no_file(tmp_path, pictures, small):
    result = asvp_export.export(loud(small), tmp_path / "p.onnx", images=pictures)
    assert not result.passed and result.output is None
    assert result.fidelity and result.fidelity.passed, "the export itself was right"
    assert [p.name for p in tmp_path.iterdir()] == ["p.report.json"]


def test_a_failed_gate_names_a_gain_that_fits(tmp_path, pictures, small):
    plain = asvp_export.protect(small, HEAD, gain=5.0, residual="gain")
    failed = asvp_export.export(plain, tmp_path / "p.onnx", images=pictures)
    assert not failed.passed and failed.fitting_gain and 1 < failed.fitting_gain < 5
    fitting = asvp_export.protect(small, HEAD, gain=failed.fitting_gain, residual="gain")
    result = asvp_export.export(fitting, tmp_path / "p.onnx", images=pictures)
    assert result.passed and result.fitting_gain is None


def test_a_failed_gate_leaves_an_older_file_as_it_was(tmp_path, pictures, small):
    (tmp_path / "p.onnx").write_bytes(b"older")
    protected = loud(small)
    assert not asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, force=True).passed
    assert (tmp_path / "p.onnx").read_bytes() == b"older"


def test_keep_failed_keeps_it_under_another_name(tmp_path, pictures, small):
    protected = loud(small)
    assert not asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, keep_failed=True).passed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.failed.onnx", "p.report.json"]
    with pytest.raises(asvp_export.InputError, match=r"p\.failed\.onnx exists"):
        asvp_export.export(protected, tmp_path / "p.onnx", images=pictures, keep_failed=True)


def test_an_existing_output_is_not_replaced_without_force(tmp_path, pictures, small):
    (tmp_path / "p.onnx").write_bytes(b"older")
    with pytest.raises(asvp_export.InputError, match="--force"):
        asvp_export.export(asvp_export.protect(small, HEAD, gain=1.1), tmp_path / "p.onnx", images=pictures)
    assert (tmp_path / "p.onnx").read_bytes() == b"older"


def test_a_full_disk_leaves_nothing_and_exits_3(tmp_path, pictures):
    def limit() -> None:  # the kernel then refuses to write on, as a full disk does
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "asvp_export", str(weights("lowlight")), f"--arch={arch('lowlight')}"]
    command += [f"--layers={LAYER}", f"--gain={GAIN}", f"--images={pictures}", f"--output={tmp_path / 'p.onnx'}"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr and "could not be written" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupt_leaves_nothing(number, code, tmp_path):
    torch.save(recurrent().state_dict(), tmp_path / "small.pt")
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "asvp_export", str(tmp_path / "small.pt")]
    command += [f"--arch={teachers.__file__}:recurrent", f"--layers={HEAD}", f"--gain={GAIN}"]
    command += [f"--output={folder / 'p.onnx'}"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals)
    assert running.stderr
    for line in running.stderr:  # wait for the work, not for a time; it takes seconds from here
        if line.startswith("verifying"):
            break
    assert list(folder.iterdir()), "the staging folder is there while it works"
    running.send_signal(number)
    rest = running.stderr.read()
    assert running.wait() == code, rest
    assert "Traceback" not in rest
    assert not list(folder.iterdir())
