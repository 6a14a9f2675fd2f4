"""What the defence costs students of the five example teachers; each finished student is kept, so a run can go on.

    python benchmarks/bench_audit.py full TASK ...    eight rows, three seeds, with the strongest rank-1 node that fits 48 dB
    python benchmarks/bench_audit.py scale TASK ...   the plain MSE, three seeds, with a node of full rank: a scalar
    python benchmarks/bench_audit.py limit TASK ...   gain 1000 with the original's outputs beside it: one node, and three
    python benchmarks/bench_audit.py tried TASK       other ranks, nodes, energies and gains, held to 48 dB where that can be
    python benchmarks/bench_audit.py screen TASK      every row, one seed
    python benchmarks/bench_audit.py tables           docs/audit.md's tables from docs/audit.json

Weights are solved on the degraded calibrate and train photographs, gains held on the verify photographs; students train on
the train photographs, attackers choose by the verify photographs, and every figure is of the audit photographs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _teachers import ROOT, TASKS, teacher
from bench_strength import ONE, THREE, degraded

import asvp_export
from asvp_export.audit.arms import Arm
from asvp_export.audit.auditing import run_audit
from asvp_export.audit.data import fitting, own
from asvp_export.audit.runner import run as run_students
from asvp_export.audit.student import student_for
from asvp_export.audit.training import Budget
from asvp_export.audit.verdict import Row, judge
from asvp_export.audit.victim import Seen, Victim
from asvp_export.graph.protect import Protected, insert
from asvp_export.operator import Perturbation
from asvp_export.plan.record import Plan, apply
from asvp_export.progress import for_terminal
from asvp_export.teacher.model import natural_images

RESULTS = ROOT / "docs" / "audit.json"
CACHE = ROOT / "build" / "audit"
STEPS = 400
SCALES = (100.0, 1000.0)
NORMALISED = ("shipped/outputs", "shipped/normalised-10")
ROWS = {"full": (), "screen": (), "scale": ("shipped/mse-1", "scaled/mse-1"), "tried": NORMALISED}

AUTO = {"gain": "auto", "rank": 1, "max_gain": 100.0}
TRIED: dict[str, dict[str, Any]] = {
    "rank 4": {"rank": 4},
    "rank 8, energy 0.9": {"rank": 8, "energy": 0.9},
    "three nodes": {"layers": "auto:3", "rank": "auto"},
    "gain 10, whatever it costs": {"gain": 10.0},
    "gain 0.1, whatever it costs": {"gain": 0.1},
}

# Where the most gain fits: behind the convolution after the body of the one, behind a ReLU of the others.
RELU = {task: f"body.{ONE[task]}.branch.1" for task in TASKS}
LAYERS = RELU | {"sr_x2": "after_body"}


def protected(task: str, layers: Any = None, **wishes: Any) -> Protected:
    """The plan is kept beside the students, under what was wished."""
    layers = layers or [LAYERS[task]]
    wished = {"layers": layers, "compensate": "solve", "min_psnr": 48.0, **AUTO, **wishes}
    digest = hashlib.sha256(json.dumps(wished, sort_keys=True).encode()).hexdigest()[:8]
    one, path = teacher(task), CACHE / f"{task}.{digest}.plan.json"
    if path.exists():
        return apply(one, Plan.load(path))
    with tempfile.TemporaryDirectory() as folder:
        folders = degraded(task, Path(folder))
        made = asvp_export.protect(one, **wished, images=folders["fit"], verify_images=folders["verify"])
    assert made.plan
    CACHE.mkdir(parents=True, exist_ok=True)
    made.plan.save(path)
    return made


class Untouched(Victim):
    """Perturbed features beside the original's outputs."""

    def shipped(self, images: torch.Tensor) -> Seen:
        """See `Victim`."""
        return Seen(self.original(images).outputs, super().shipped(images).features)

    @property
    def fingerprint(self) -> str:
        """See `Victim`."""
        return f"untouched {super().fingerprint}"


def limit(task: str, name: str, layers: list[str]) -> None:
    victim = Untouched(insert(teacher(task), dict.fromkeys(layers, Perturbation(1, 1000.0))))
    size = fitting(victim.teacher, 64)
    pupil = student_for(
        victim.teacher, list(victim.nodes), student(task), images=natural_images(1, victim.teacher.channels, *size)
    )
    arms = [Arm.parse(name) for name in NORMALISED]
    rows = judge(run_students(victim, own(task), pupil, arms, range(3), Budget(steps=STEPS), CACHE))
    keep(f"limit/{task}/{name}", {"layers": layers, "rows": [shown(row) for row in rows]})


def run(what: str, task: str, name: str, model: Protected) -> None:
    assert model.plan
    result = run_audit(
        model, task=task, student=student(task), profile="screen" if what == "screen" else "full", rows=ROWS[what],
        steps=STEPS, cache=CACHE, progress=for_terminal(lambda line: print(line, flush=True)),
    )  # fmt: skip
    print("\n".join(result.sentences()), flush=True)
    strengths = {layer.name: layer.strength for layer in model.plan.layers}
    found = {key: value for key, value in result.as_dict().items() if key != "verdict"} | {"strength": strengths}
    found["rows"] = [shown(row) for row in result.rows]
    keep(f"{what}/{name}", found)


def student(task: str) -> str:
    return f"{ROOT / 'examples' / 'nets.py'}:{task}_student"


def shown(row: Row) -> dict[str, Any]:
    print(f"{row.arm!s:36} {row.psnr:.2f} {row.spread or 0:.2f} {row.loss or 0:6.2f} {row.effect}")
    return {key: value for key, value in row.as_dict().items() if key != "curve"}


def keep(key: str, found: dict[str, Any]) -> None:
    RESULTS.touch()
    with RESULTS.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        known = json.loads(stream.read() or "{}") | {key: found}
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
        if what == "limit":
            limit(task, "one", [RELU[task]])
            limit(task, "three", [f"body.{i}.branch.1" for i in THREE[task]])
        elif what == "tried":
            for name, wishes in TRIED.items():
                run(what, task, f"{task}/{name}", protected(task, **wishes))
        elif what == "scale":
            for gain in SCALES:
                run(what, task, f"{task}/{gain:g}", protected(task, [RELU[task]], gain=gain, rank=32))
        else:
            run(what, task, task, protected(task))


if __name__ == "__main__":
    main()
