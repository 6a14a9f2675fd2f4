"""What the defence costs students of the five example teachers; each finished student is kept, so a run can go on.

    python benchmarks/bench_audit.py full TASK ...    eight rows, three seeds, with the strongest rank-1 node that fits 48 dB
    python benchmarks/bench_audit.py scale TASK ...   the same rows, with a node of full rank: a scalar
    python benchmarks/bench_audit.py screen TASK      every row, one seed
    python benchmarks/bench_audit.py tables           docs/audit.md's tables from docs/audit.json

Weights are solved on the degraded calibrate and train photographs, gains held on the verify photographs; students train on
the train photographs, attackers choose by the verify photographs, and every figure is of the audit photographs.
"""

from __future__ import annotations

import fcntl
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _teachers import ROOT, teacher
from bench_strength import ONE, TASKS, degraded

import asvp_export
from asvp_export.audit.auditing import run_audit
from asvp_export.graph.protect import Protected
from asvp_export.plan.record import Plan, apply
from asvp_export.progress import for_terminal

RESULTS = ROOT / "docs" / "audit.json"
CACHE = ROOT / "build" / "audit"
STEPS = 400
SCALE = 30.0

# Where the most gain fits: behind the convolution after the body of the one, behind a ReLU of the others.
LAYERS = {task: f"body.{ONE[task]}.branch.1" for task in TASKS} | {"sr_x2": "after_body"}


def protected(task: str, what: str) -> Protected:
    """The plan is kept beside the students."""
    one, path = teacher(task), CACHE / f"{task}.{what}.plan.json"
    if path.exists():
        return apply(one, Plan.load(path))
    wishes: dict[str, Any] = {"gain": "auto", "rank": 1, "max_gain": 100.0}
    layer = LAYERS[task]
    if what == "scale":
        layer, wishes = "after_body", {"gain": SCALE, "rank": 32}
    with tempfile.TemporaryDirectory() as folder:
        folders = degraded(task, Path(folder))
        made = asvp_export.protect(
            one,
            [layer],
            compensate="solve",
            min_psnr=48.0,
            images=folders["fit"],
            verify_images=folders["verify"],
            **wishes,
        )
    assert made.plan
    CACHE.mkdir(parents=True, exist_ok=True)
    made.plan.save(path)
    return made


def run(what: str, task: str) -> None:
    model = protected(task, "scale" if what == "scale" else "strong")
    assert model.plan
    result = run_audit(
        model, task=task, student=f"{ROOT / 'examples' / 'nets.py'}:{task}_student", profile="screen" if what == "screen" else "full",
        steps=STEPS, cache=CACHE, progress=for_terminal(lambda line: print(line, flush=True)),
    )  # fmt: skip
    for row in result.rows:
        print(f"{row.arm!s:36} {row.psnr:.2f} {row.spread or 0:.2f} {row.loss or 0:6.2f} {row.effect}")
    print("\n".join(result.sentences()), flush=True)
    strengths = {layer.name: layer.strength for layer in model.plan.layers}
    found = {key: value for key, value in result.as_dict().items() if key != "verdict"} | {"strength": strengths}
    found["rows"] = [{key: value for key, value in row.items() if key != "curve"} for row in found["rows"]]
    RESULTS.touch()
    with RESULTS.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        known = json.loads(stream.read() or "{}") | {f"{what}/{task}": found}
        stream.seek(0)
        stream.truncate()
        stream.write(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def main() -> None:
    what, *tasks = sys.argv[1:]
    if what == "tables":
        from _audit_tables import write

        write(json.loads(RESULTS.read_text()))
        return
    for task in tasks or TASKS:
        run(what, task)


if __name__ == "__main__":
    main()
