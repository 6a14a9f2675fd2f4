"""The CI of examples/ci, which holds together what is shipped: its action, its workflow, its hook."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import asvp_export
from tests.helpers.shipping import data_file, flip
from tests.helpers.teachers import EXAMPLES, ROOT, arch, save_pictures, weights

CI = EXAMPLES / "ci"


def action() -> dict[str, Any]:
    return yaml.safe_load((CI / "action.yml").read_text())


def run_step(step: dict[str, Any], folder: Path, path: str = "", **given: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the action as a runner does: its shell, its variables, the files for outputs and the summary."""
    known = {f"inputs.{name}": given.pop(name, one.get("default", "")) for name, one in action()["inputs"].items()}
    assert not given, "an input that the action does not have"
    known["github.action_path"] = str(CI)
    values = {key: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: known[m[1]], text) for key, text in step["env"].items()}
    assert "${{" not in step["run"] and step["shell"] == "bash"
    script = folder / "step.sh"
    script.write_text(step["run"])
    environment = {
        "PATH": path or f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        **values,
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", script]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def test_the_workflow_uses_inputs_and_outputs_that_the_action_has():
    found = action()
    (job,) = yaml.safe_load((CI / "workflow.yml").read_text())["jobs"].values()
    (use,) = [step for step in job["steps"] if step.get("uses", "").split("@")[0].endswith("/examples/ci")]
    required = {name for name, one in found["inputs"].items() if one.get("required")}
    assert required <= set(use["with"]) <= set(found["inputs"])
    outputs = re.findall(r"steps\.parity\.outputs\.([\w-]+)", (CI / "workflow.yml").read_text())
    assert use["id"] == "parity" and outputs and set(outputs) <= set(found["outputs"])
    for one in found["outputs"].values():
        for step, name in re.findall(r"steps\.(\w+)\.outputs\.(\w+)", one["value"]):
            (maker,) = [s for s in found["runs"]["steps"] if s.get("id") == step]
            assert f'echo "{name}=' in maker["run"]


def test_the_action_installs_what_it_is_told_where_the_tool_is_not_there(tmp_path):
    install = action()["runs"]["steps"][0]
    assert run_step(install, tmp_path).returncode == 0, "it is there: nothing is installed"
    recorder = tmp_path / "bin" / "python"
    recorder.parent.mkdir()
    recorder.write_text(f'#!{shutil.which("bash")}\nprintf "%s|" "$@"\necho\n')  # a download of PyTorch is no test
    recorder.chmod(0o755)
    done = run_step(install, tmp_path, path=str(recorder.parent) + ":/usr/bin:/bin", torch="torch --no-deps")
    assert done.stdout.splitlines() == ["-m|pip|install|torch|--no-deps|", f"-m|pip|install|{CI}/../..|"], done.stderr
    assert (CI / "../..").resolve() == ROOT and (ROOT / "setup.py").exists()


@pytest.mark.parametrize(
    "given, code, verdict, told",
    [
        (
            {"options": "--size=48x64\n--device=cpu\n"},
            0,
            "passed",
            ["| fidelity |", "| preservation |", "dB | passed |"],
        ),
        (
            {"options": "--size=48x64", "min-psnr": "150"},
            1,
            "failed",
            ["| 150.0 dB | **failed** |", "do not reach 150 dB"],
        ),
        ({"protected": "$(touch run).onnx"}, 2, "error", ["no $(touch run).manifest.json beside"]),
    ],
)
def test_the_steps_of_the_action_end_as_the_gate_does(given, code, verdict, told, folder, tmp_path_factory):
    pictures = save_pictures(tmp_path_factory.mktemp("few") / "pictures", 1)
    inputs = {
        "protected": "p.onnx",
        "original": str(weights("lowlight")),
        "arch": arch("lowlight"),
        "images": str(pictures),
    }
    done = run_step(action()["runs"]["steps"][1], folder, **(inputs | given))
    assert done.returncode == code, done.stdout + done.stderr
    assert (folder / "output").read_text() == f"verdict={verdict}\n"
    summary = (folder / "summary.md").read_text()
    assert all(text in summary for text in told), summary
    assert (folder / "parity" / "junit.xml").exists() == (folder / "parity" / "p.report.json").exists() == (code < 2)
    assert not (folder / "run").exists(), "a name was run"
    assert asvp_export.verify_manifest(folder / "p.onnx").passed, "the check left what was shipped alone"


def test_the_hook_lets_whole_files_pass_and_stops_changed_ones(folder):
    (hook,) = yaml.safe_load((CI / "pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for path in folder.iterdir():
        assert re.search(hook["files"], path.name)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=folder, check=True)

    def run() -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        return subprocess.run(shlex.split(hook["entry"]), cwd=folder, env=environment, capture_output=True, text=True)

    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    flip(data_file(folder))
    done = run()
    assert done.returncode == 1 and ".data was changed" in done.stderr
