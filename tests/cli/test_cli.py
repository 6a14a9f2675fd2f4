"""The command line itself: help, quiet, errors that were not foreseen, names of any letters."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asvp_export.environment import tool_version
from tests.helpers.commands import call
from tests.helpers.workshop import NETS, even


def test_an_error_that_was_not_foreseen_does_not_look_like_a_failed_gate(workshop, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("key")

    monkeypatch.setattr("asvp_export.workflows.publication.to_onnx", broken)
    answer = call(*even())
    assert answer.code == 3 and "Traceback" not in answer.err
    assert "KeyError: 'key'" in answer.err and "--debug" in answer.err
    answer = call(*even(), "--debug")
    assert answer.code == 3 and "Traceback" in answer.err


def test_debug_shows_the_traceback_and_keeps_the_exit_code(workshop):
    answer = call("inspect", "nothing.onnx", "--debug")
    assert answer.code == 2 and "Traceback" in answer.err and answer.err.splitlines()[-1].startswith("Error: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_result_that_cannot_be_printed_exits_3(workshop):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "asvp_export", "inspect", "even.onnx", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_quiet_is_quiet(workshop, tmp_path):
    assert call(*even(output=str(tmp_path / "p.onnx")), "--quiet") == (0, "", "")
    for command in (["layers", "even.pt", "--arch=nets.py:Even"], ["inspect", "even.onnx"]):
        assert call(*command, "--quiet") == (0, "", "")


def test_names_may_hold_spaces_and_any_letters(workshop, tmp_path, monkeypatch):
    folder = tmp_path / "två [bold] ordner 模型"
    folder.mkdir()
    (folder / "mein modell.pt").write_bytes(Path("even.pt").read_bytes())
    (folder / "nets.py").write_text(NETS)
    (folder / "bilder").symlink_to(workshop / "pictures")
    monkeypatch.chdir(folder)
    answer = call(*even(model="mein modell.pt", images="bilder", output="[red]ausgabe é.onnx"))
    assert answer.code == 0, answer.err
    assert "[red]ausgabe é.onnx" in answer.out and "[red]ausgabe é.report.json" in answer.out
    assert "mein modell.pt" in answer.err
    assert "[red]ausgabe é.onnx" in call("inspect", "[red]ausgabe é.onnx").out
    (folder / "a b.png").write_bytes((workshop / "pixel/one.png").read_bytes())
    assert call("run", "[red]ausgabe é.onnx", "a b.png", "-o", "ü.png").code == 0


HEAVY = "torch", "onnx", "onnxruntime", "numpy", "skimage", "PIL", "rich", "pydantic"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["export", "--help"], ["check", "--help"]])
def test_help_answers_at_once(arguments, tmp_path):
    code = (
        "import sys; from asvp_export.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "[]\n"
    assert "asvp-export" in done.stdout


def test_every_command_is_in_the_help():
    shown = call("--help").out
    assert all(command in shown for command in ("export", "layers", "check", "inspect", "run"))


def test_no_arguments_show_the_help():
    answer = call()
    assert answer.code == 2 and "Usage: asvp-export" in answer.err


def test_the_version_says_verbosely_what_a_bug_report_needs_and_names_no_machine():
    short, long = call("--version"), call("--version", "--verbose")
    assert short == (0, f"asvp-export, version {tool_version()}\n", "")
    assert long.code == 0 and long.out.startswith(short.out)
    for name in ("python", "torch", "onnx", "onnxruntime", "native library", "its CUDA kernels"):
        assert re.search(rf"^{name}: .+$", long.out, re.MULTILINE), name
    assert platform.node() not in long.out and str(Path.home()) not in long.out
    assert call("--verbose", "--version") == long


def test_the_package_runs_as_a_module(workshop):
    done = subprocess.run(
        [sys.executable, "-m", "asvp_export", "inspect", workshop / "even.onnx", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr
    assert json.loads(done.stdout)["file"] == "even.onnx"
