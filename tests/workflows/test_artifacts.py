"""What lies beside a shipped file: rendered before it gets its name, written after it, never over what is read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import asvp_export
from asvp_export import cli
from tests.helpers import teachers
from tests.helpers.commands import call, complaint
from tests.helpers.teachers import recurrent, save_pictures

NETS = """
import shutil
import signal
from tests.helpers.teachers import recurrent

def vanishing():
    shutil.rmtree("gone", ignore_errors=True)  # after the options were checked
    return recurrent()
"""


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


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
    assert f"Warning: p.onnx was published whole, but the {what} was not written." in answer.err
    assert "Error" not in answer.err and "Traceback" not in answer.err
    assert (work / "p.onnx").exists() and (work / "p.manifest.json").exists()
    assert not (work / "gone").exists()


def test_a_report_that_cannot_be_written_leaves_a_failed_gate_failed(model, pictures, work):
    (work / "gone/below").mkdir(parents=True)
    loud = ["--arch=nets.py:vanishing", "--gain=30", "--residual=gain", "--junit=gone/below/j.xml"]
    answer = call(*arguments(model, pictures, *loud, "--output=p.onnx"))
    assert answer.code == 1 and "The verdict stands, but the JUnit file was not written." in answer.err
    assert not (work / "p.onnx").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_verdict_that_a_full_disk_does_not_take_leaves_the_file_and_the_exit_code(model, pictures, work):
    err = io.StringIO()
    with (
        contextlib.suppress(OSError),  # it complains once more when it is closed
        Path("/dev/full").open("w") as full,
        contextlib.redirect_stdout(full),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main(arguments(model, pictures, "--output=p.onnx", "--json"))
    assert ended.value.code == 0 and (work / "p.onnx").exists()
    assert "Warning: The verdict stands, but it could not be printed (No space left on device)." in err.getvalue()


def test_python_is_told_what_could_not_be_written(pictures, work):
    (work / "gone/below").mkdir(parents=True)
    protected = asvp_export.protect(asvp_export.load(recurrent()), "head", gain=1.01)
    result = asvp_export.export(
        protected,
        work / "p.onnx",
        images=pictures,
        junit=work / "gone/below/j.xml",
        progress=lambda line: shutil.rmtree("gone", ignore_errors=True),
    )
    assert result.passed and result.output == work / "p.onnx"
    assert [line.partition(". ")[0] for line in result.unwritten] == [
        f"{work / 'p.onnx'} was published whole, but the JUnit file was not written"
    ]
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


def graph(path: Path) -> None:
    """An ONNX file whose tensor lies in a file of its own, weights.bin."""
    weight = numpy_helper.from_array(np.ones((1, 3, 32, 32), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 32, 32]) for name in "xy")
    made = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "add", [x], [y], [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)


@pytest.fixture(scope="module")
def full_desk(tmp_path_factory, pictures) -> Path:
    """A folder with one of everything that a command reads."""
    folder = tmp_path_factory.mktemp("desk")
    graph(folder / "t.onnx")
    shutil.copy(folder / "t.onnx", folder / "p.failed.onnx")
    for name in ("images", "verify", "truth", "data/train/input"):
        shutil.copytree(pictures, folder / name)
    names = sorted(path.name for path in pictures.iterdir())
    for name in ("images", "verify", "truth", "data/train/input"):
        (folder / name / names[0]).rename(folder / name / "a.png")
    (folder / "nets.py").write_text(NETS)
    (folder / "inputs.npz").write_bytes(b"arrays")
    (folder / "a.plan.json").write_text('{"weights": {"file": "other.bin", "sha256": ""}}')
    (folder / "other.bin").write_bytes(b"weights")
    (folder / "hard.xml").hardlink_to(folder / "weights.bin")
    (folder / "soft.xml").symlink_to("images/a.png")
    (folder / "notes.xml").write_text("<notes/>")
    (folder / "m.0123456789abcdef.data").write_bytes(b"")
    shutil.copytree(folder, folder / "beside")
    graph(folder / "beside/t.onnx")
    return folder


EXPORT = ["t.onnx", "--layers=w", "--gain=1.01", "--images=images", "--verify-images=verify", "-op.onnx"]
PLANNED = ["nets.pt", "--arch=nets.py:f", "--plan=a.plan.json", "--images=images", "-op.onnx"]
CHECK = ["check", "t.onnx", "beside/t.onnx", "--arch=nets.py:f", "--inputs=inputs.npz", "--plan=a.plan.json"]
RUN = ["run", "t.onnx", "images/a.png", "--inputs=truth/a.png", "--force"]
AUDIT = ["audit", "t.onnx", "beside/t.onnx", "--data=data", "--student=nets.py:f", "--report=."]

READ = {
    "the file that failed over the model": (
        ["p.failed.onnx", *EXPORT[1:], "--keep-failed"],
        "file that failed p.failed.onnx is the model",
    ),
    "the output over external data": ([*EXPORT[:-1], "-oweights.bin"], "output weights.bin is the external data"),
    "the output over a picture": ([*EXPORT[:-1], "-oimages/a.png"], "output images/a.png is the input picture"),
    "JUnit over external data": ([*EXPORT, "--junit=weights.bin"], "is the external data of the model"),
    "JUnit over external data by a hard link": ([*EXPORT, "--junit=hard.xml"], "is the external data of the model"),
    "JUnit over a picture": ([*EXPORT, "--junit=images/a.png"], "is the input picture"),
    "JUnit over a picture by a link": ([*EXPORT, "--junit=soft.xml"], "is the input picture"),
    "JUnit over a picture to verify on": ([*EXPORT, "--junit=verify/a.png"], "is the verification picture"),
    "JUnit over ground truth": ([*EXPORT, "--ground-truth=truth", "--junit=truth/a.png"], "is the clean picture"),
    "JUnit over an example": ([*EXPORT, "--inputs=inputs.npz", "--junit=inputs.npz"], "is the example of the inputs"),
    "JUnit over the plan": ([*PLANNED, "--junit=a.plan.json"], "is the plan"),
    "JUnit over the plan's weights": ([*PLANNED, "--junit=other.bin"], "is the weights of the plan"),
    "JUnit over the architecture": ([*PLANNED, "--junit=nets.py"], "is the architecture"),
    "JUnit over the output, but for case": ([*EXPORT, "--junit=P.ONNX"], "is the output"),
    "JUnit over the file that failed": ([*EXPORT, "--keep-failed", "--junit=p.failed.onnx"], "is the file that failed"),
    "JUnit over the report": ([*EXPORT, "--junit=p.report.json"], "is the report"),
    "JUnit as a data file": ([*EXPORT, "--junit=p.0123456789abcdef.data"], "has the name of external data"),
    "check: JUnit over external data": ([*CHECK, "--junit=beside/weights.bin"], "is the external data"),
    "check: JUnit over the original's": ([*CHECK, "--junit=weights.bin"], "is the external data of the original"),
    "check: JUnit over the plan's weights": ([*CHECK, "--junit=other.bin"], "is the weights of the plan"),
    "check: JUnit over an example": ([*CHECK, "--junit=inputs.npz"], "is the example of the inputs"),
    "check: JUnit over a picture": ([*CHECK, "--images=images", "--junit=images/a.png"], "is the input picture"),
    "protect: the plan over a picture": (
        ["protect", *EXPORT[:-1], "-overify/a.png"],
        "plan verify/a.png is the verification picture",
    ),
    "protect: its weights over external data": (
        ["protect", *EXPORT[:-1], "-oweights.json"],
        "plan's weights weights.safetensors is the external data",
    ),
    "run: the picture over its inputs": ([*RUN, "-otruth/a.png"], "is the inputs"),
    "run: the picture over itself": ([*RUN, "-oimages/a.png"], "is the image"),
    "audit: the report over the data": ([*AUDIT[:-1], "--report=data"], "is the audit picture"),
    "audit: the report over the student": (AUDIT, "is the student"),
}


@pytest.mark.parametrize("case", READ)
def test_nothing_is_written_over_what_is_read(case, full_desk, tmp_path, monkeypatch):
    given, expected = READ[case]
    desk = shutil.copytree(full_desk, tmp_path / "desk", symlinks=True)
    (desk / "hard.xml").unlink()
    (desk / "hard.xml").hardlink_to(desk / "weights.bin")
    if case == "protect: its weights over external data":
        (desk / "weights.safetensors").hardlink_to(desk / "weights.bin")
    if case == "audit: the report over the data":
        (desk / "data/t.audit.html").hardlink_to(desk / "data/train/input/a.png")
    if case == "audit: the report over the student":
        (desk / "t.audit.json").symlink_to("nets.py")
    monkeypatch.chdir(desk)
    before = contents(desk)
    forces = [[], ["--force"]] if given[0] not in ("check", "audit", "run") else [[]]
    for force in forces:
        answer = call(*given, *force)
        assert re.search(f"{expected}|exists; give --force", complaint(answer)), answer
        assert contents(desk) == before and "loading" not in answer.err
    assert re.search(expected, answer.err)


def test_a_file_that_no_earlier_run_wrote_is_replaced_only_when_forced(full_desk, pictures, model, work):
    shutil.copy(full_desk / "notes.xml", work / "notes.xml")
    (work / "p.report.json").write_text("{}")
    assert "p.report.json exists, and no earlier run wrote it" in complaint(
        call(*arguments(model, pictures, "--output=p.onnx"))
    )
    (work / "p.report.json").unlink()
    again = arguments(model, pictures, "--output=p.onnx", "--junit=notes.xml", "--report=reports")
    assert "JUnit file notes.xml exists, and no earlier run wrote it" in complaint(call(*again))
    assert (work / "notes.xml").read_text() == "<notes/>" and not (work / "p.onnx").exists()
    assert call(*again, "--force").code == 0
    (work / "p.onnx").unlink()
    assert call(*again).code == 0, "what an earlier run wrote is replaced"


def test_a_report_may_go_into_a_folder_of_pictures(pictures, model, work):
    images = shutil.copytree(pictures, work / "images")
    answer = call(*arguments(model, images, "--output=p.onnx", "--report=images", "--junit=images/j.xml"))
    assert answer.code == 0, answer
    assert (images / "j.xml").exists() and (images / "report.html").exists()


def test_a_teacher_in_memory_keeps_the_data_that_it_still_reads(work):
    graph(work / "t.onnx")
    before = contents(work)
    protected = asvp_export.protect(asvp_export.load(work / "t.onnx"), "none")
    for name in ("weights.bin", "t.onnx"):
        with pytest.raises(asvp_export.InputError, match=r"is the (external data of the )?model itself"):
            asvp_export.export(protected, work / name, force=True)
    assert contents(work) == before


STOPPED = """
import os, signal
rename = os.replace
def replace(source, target):
    if str(target).endswith("p.onnx"):
        os.kill(os.getpid(), {number})
    rename(source, target)
os.replace = replace
"""


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_an_export_stopped_at_its_last_rename_leaves_files_that_belong_together(number, code, model, pictures, work):
    """A kill -9 the earlier ones, whose remains the next run removes; a kill, which waits, the new ones."""
    given = arguments(model, pictures, "--output=p.onnx", "--external-data")
    assert call(*given).code == 0
    before = contents(work)
    (work / "hook").mkdir()
    (work / "hook/sitecustomize.py").write_text(STOPPED.format(number=int(number)))
    told = os.environ | {"PYTHONPATH": os.pathsep.join([str(work / "hook"), str(teachers.ROOT)])}
    done = subprocess.run([sys.executable, "-m", "asvp_export", *given, "--gain=1.02", "--force"], env=told)
    shutil.rmtree(work / "hook")
    assert done.returncode == code
    assert asvp_export.verify_manifest(work / "p.onnx").passed
    changed = {name for name, digest in contents(work).items() if before.get(name) != digest}
    left = {name for name in changed if name.startswith(".asvp-staging-")}
    assert (changed - left, bool(left)) == (
        (set(), True) if number == signal.SIGKILL else ({"p.onnx", "p.report.json", "p.manifest.json"}, False)
    )
    assert call(*given, "--force").code == 0
    assert contents(work).keys() == before.keys()
