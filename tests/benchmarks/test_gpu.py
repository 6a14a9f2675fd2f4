"""What runs on a machine with a GPU is held together here, where there is none: a step that fails costs no other."""

from __future__ import annotations

import json
import sys

from benchmarks import gpu


def step(name: str, code: str, seconds: int = 60) -> gpu.Step:
    return gpu.Step(name, [sys.executable, "-c", code], seconds, {"SEEN": "yes"})


def test_each_step_ends_in_its_own_time_and_way():
    said = gpu.run(step("build", "import os; print(os.environ['SEEN'])"))
    assert said.passed and said.said == "yes\n" and said.result is None
    assert not gpu.run(step("tests", "raise SystemExit(3)")).passed
    late = gpu.run(step("memcheck", "print('begun', flush=True); import time; time.sleep(600)", seconds=3))
    assert not late.passed and late.said.startswith("ended after 3 s") and "begun" in late.said
    lost = gpu.run(gpu.Step("racecheck", ["no-such-sanitizer"], 1))
    assert not lost.passed and lost.said == "no-such-sanitizer is not there"


def test_what_was_measured_becomes_tables():
    report = {
        "fidelity": {"min_psnr": 101.25},
        "preservation": {"min_psnr": 98.5},
        "latency": {"original": 2.0, "protected": 2.25, "ratio": 1.125},
    }
    end_to_end = gpu.run(step("onnxruntime, library", f"print({json.dumps(json.dumps(report))})"))
    failed = gpu.run(step("onnxruntime, body", "print('no JSON')"))
    rows = [{"C x H x W": "64 x 64 x 64", "ours us": 10.5}]
    operator = gpu.Outcome("operator", True, 2.0, "", rows)
    recorded = {"device": "a card", "torch": "2", "steps": [vars(one) for one in (end_to_end, failed, operator)]}
    shown = gpu.table(json.loads(json.dumps(recorded)))
    assert "| library | 101.2 | 98.5 | 2.25 | 1.125 |" in shown and "| 64 x 64 x 64 | 10.5 |" in shown
    assert "| onnxruntime, body |" in shown and "| body |" not in shown
