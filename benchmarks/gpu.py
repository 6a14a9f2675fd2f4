"""First contact with a GPU: all that needs one, in one go of under 8 minutes, into one JSON file.

Each step has a time limit of its own, and one that fails does not cost the rest. Nothing is downloaded.
`--table FILE` prints, on any machine, the tables of docs/reference/native.md and docs/results/compatibility.md from it.

    python -m benchmarks.gpu [--output build/gpu.json]
    python -m benchmarks.gpu --table build/gpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.helpers.native import cuda_missing

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "gpu"
TASK = "lowlight"
TESTS = "custom_ops/tests/test_native_cuda_gpu.py"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SHORT = (
    "odd_sizes or many_components or poison or addresses"  # under a sanitizer a call takes some hundred times as long
)
TAIL = 3000  # characters of a step's output that are kept


@dataclass(frozen=True)
class Step:
    """One program to run."""

    name: str
    command: list[str]
    seconds: int
    """After which it is ended."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside this process's own."""


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    name: str
    passed: bool
    seconds: float
    said: str
    """The end of what it printed."""

    result: Any = None
    """What it measured."""


def steps() -> list[Step]:
    """In order: what later ones need comes first."""
    python = sys.executable
    architecture = "{}{}-real".format(*torch.cuda.get_device_capability())
    arguments = f"-DASVP_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES={architecture}"
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "-x"]
    checked = [
        Step(
            tool,
            ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *pytest, TESTS, "-k", SHORT],
            40,
        )
        for tool in SANITIZERS
    ]
    return [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 150, {"CMAKE_ARGS": arguments}),
        Step("tests", [*pytest, "custom_ops/tests", "tests"], 100),
        Step("operator", [python, "-m", "benchmarks.bench_operator_cuda", "--json", str(WORK / "operator.json")], 40),
        *(_end_to_end(name, disabled) for name, disabled in (("library", "0"), ("body", "1"))),
        *checked,
    ]


def _end_to_end(name: str, disabled: str) -> Step:
    """One teacher exported and verified in onnxruntime on the GPU."""
    teacher = ROOT / "examples" / "teachers" / f"{TASK}.safetensors"
    command = [
        *(sys.executable, "-m", "asvp_export", str(teacher), f"--arch={ROOT / 'examples' / 'nets.py'}:{TASK}"),
        *("--layers=auto", "--provider=cuda", "--device=cuda", "--force", "--json"),
        *("-o", str(WORK / f"{name}.onnx")),
    ]
    return Step(f"onnxruntime, {name}", command, 45, {"ASVP_DISABLE_NATIVE": disabled})


def run(step: Step) -> Outcome:
    """Run a step to its end, or to the end of its time."""
    started = time.monotonic()
    if shutil.which(step.command[0]) is None:
        return Outcome(step.name, False, 0.0, f"{step.command[0]} is not there")
    environment = {**os.environ, **step.environment}
    try:
        process = subprocess.run(
            step.command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=step.seconds, check=False
        )
        output, passed = process.stdout[-TAIL:] + process.stderr[-TAIL:], process.returncode == 0
        result = _numbers(step.name, process.stdout)
    except subprocess.TimeoutExpired as error:
        output, passed, result = f"ended after {step.seconds} s: {str(error.output or '')[-TAIL:]}", False, None
    return Outcome(step.name, passed, round(time.monotonic() - started, 1), output, result)


def _numbers(name: str, printed: str) -> Any:
    """The numbers of a step that has some."""
    if name == "operator":
        file = WORK / "operator.json"
        return json.loads(file.read_text()) if file.is_file() else None
    if not name.startswith("onnxruntime"):
        return None
    try:
        report = json.loads(printed)
    except ValueError:
        return None
    return {
        "fidelity": report["fidelity"]["min_psnr"],
        "preservation": report["preservation"]["min_psnr"],
        "latency": report["latency"],
    }


def table(recorded: Mapping[str, Any]) -> str:
    """What was recorded, as Markdown: the steps, onnxruntime end to end, the operator."""
    lines = [f"{recorded['device']}, torch {recorded['torch']}", "", "| step | seconds | |", "|---|---|---|"]
    lines += [
        f"| {step['name']} | {step['seconds']:.0f} | {'passed' if step['passed'] else 'failed'} |"
        for step in recorded["steps"]
    ]
    lines += [
        "",
        "| onnxruntime, CUDA | fidelity dB | preservation dB | ms | of unprotected |",
        "|---|---|---|---|---|",
    ]
    results = {step["name"]: step["result"] for step in recorded["steps"] if step["result"]}
    for name in (name for name in results if name.startswith("onnxruntime")):
        values = results[name]
        latency = values["latency"]
        lines.append(
            f"| {name.partition(', ')[2]} | {values['fidelity']:.1f} | {values['preservation']:.1f} "
            f"| {latency['protected']:.2f} | {latency['ratio']:.3f} |"
        )
    if rows := results.get("operator"):
        heads = list(rows[0])
        lines += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        lines += ["| " + " | ".join(str(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    """Run everything, or print what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu.json")
    parser.add_argument("--table", type=Path, help="print the tables of a recorded file")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return 0
    if reason := cuda_missing():
        print(f"Nothing was run: {reason}.")
        return 1
    WORK.mkdir(parents=True, exist_ok=True)
    recorded: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "steps": []}
    for step in steps():
        print(f"{step.name} ...", flush=True)
        outcome = run(step)
        print(f"{step.name}: {'passed' if outcome.passed else 'failed'}, {outcome.seconds:.0f} s", flush=True)
        recorded["steps"].append(asdict(outcome))
        arguments.output.write_text(json.dumps(recorded, indent=1) + "\n")  # after each: what was measured is kept
    print(table(recorded))
    return 0 if all(step["passed"] for step in recorded["steps"]) else 1


if __name__ == "__main__":
    sys.exit(main())
