"""What lies beside a shipped file: rendered before the file gets its name, written after it, and never over what is read."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import asvp_export
from asvp_export import cli
from tests.helpers import teachers
from tests.helpers.commands import call
from tests.helpers.teachers import recurrent, save_pictures

NETS = """
import shutil
from tests.helpers.teachers import recurrent

def vanishing():
    shutil.rmtree("gone", ignore_errors=True)  # after the options were checked
    return recurrent()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.pt"
    torch.save(recurrent().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def arguments(model: Path, pictures: Path, *more: str) -> list[str]:
    arch = f"--arch={teachers.__file__}:recurrent"
    return [str(model), arch, "--layers=head", "--gain=1.01", f"--images={pictures}", *more]


@pytest.mark.parametrize("option", ["--junit=gone/below/j.xml", "--report=gone/below/r"])
def test_a_report_that_cannot_be_written_after_the_rename_leaves_the_verdict(option, model, pictures, work):
    (work / "gone/below").mkdir(parents=True)
    answer = call(*arguments(model, pictures, option, "--arch=nets.py:vanishing", "--output=p.onnx", "--quiet"))
    assert answer.code == 0, answer
    what = "JUnit file" if "junit" in option else "report"
    assert f"Warning: p.onnx was published whole, but the {what} is not there." in answer.err
    assert "Error" not in answer.err and "Traceback" not in answer.err
    assert (work / "p.onnx").exists() and (work / "p.manifest.json").exists()
    assert not (work / "gone").exists()


def test_a_report_that_cannot_be_written_leaves_a_failed_gate_failed(model, pictures, work):
    (work / "gone/below").mkdir(parents=True)
    loud = ["--arch=nets.py:vanishing", "--gain=30", "--residual=gain", "--junit=gone/below/j.xml"]
    answer = call(*arguments(model, pictures, *loud, "--output=p.onnx"))
    assert answer.code == 1 and "The verdict stands, but the JUnit file is not there." in answer.err
    assert not (work / "p.onnx").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_verdict_that_a_full_disk_does_not_take_leaves_the_file_and_the_exit_code(model, pictures, work):
    full, err = Path("/dev/full").open("w"), io.StringIO()
    with contextlib.redirect_stdout(full), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main(arguments(model, pictures, "--output=p.onnx", "--json"))
    with contextlib.suppress(OSError):
        full.close()
    assert ended.value.code == 0 and (work / "p.onnx").exists()
    assert "Warning: The verdict stands, but it could not be printed (No space left on device)." in err.getvalue()


def test_python_is_told_what_could_not_be_written(pictures, work):
    (work / "gone/below").mkdir(parents=True)
    protected = asvp_export.protect(asvp_export.load(recurrent()), "head", gain=1.01)
    result = asvp_export.export(
        protected, work / "p.onnx", images=pictures, junit=work / "gone/below/j.xml",
        progress=lambda line: shutil.rmtree("gone", ignore_errors=True),
    )  # fmt: skip
    assert result.passed and result.output == work / "p.onnx"
    assert [line.partition(". ")[0] for line in result.unwritten] == [
        f"{work / 'p.onnx'} was published whole, but the JUnit file is not there"]  # fmt: skip
    assert set(result.files) == {"report", "manifest"}
    assert asvp_export.verify_manifest(work / "p.onnx").passed


def test_a_verdict_that_cannot_be_shown_publishes_nothing(model, pictures, work):
    """The name of the file is none that the terminal can show."""
    command = [sys.executable, "-m", "asvp_export", *arguments(model, pictures, "--output=größe.onnx")]
    told = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, env=told)
    assert done.returncode == 3, done
    assert b"UnicodeEncodeError" in done.stderr
    assert [path.name for path in work.iterdir()] == ["nets.py"]
