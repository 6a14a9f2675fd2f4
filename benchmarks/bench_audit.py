"""What the defence costs students of the five example teachers; each finished student is kept, so a run can go on.

    python -m benchmarks.bench_audit default TASK ...      --layers auto:3: eight kinds of student, three seeds
    python -m benchmarks.bench_audit blocks TASK ...       every block protected, one seed
    python -m benchmarks.bench_audit compensated TASK ...  --residual auto --compensate solve, three seeds
    python -m benchmarks.bench_audit battery TASK          every attacker against the last of these, one seed
    python -m benchmarks.bench_audit layers TASK ...       three kinds of layers, for docs/results/strength.md, one seed
    python -m benchmarks.bench_audit tables                docs/results/audit.md's tables from docs/results/audit.json

Layers are ranked, and weights solved, on the degraded calibrate and train photographs, gains held on the verify
photographs; students train on the train photographs, attackers choose by the verify photographs, and every figure is of
the audit photographs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import asvp_export
from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.auditing import run_audit
from asvp_export.distillation.results import Row
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import Protected
from asvp_export.options import AuditOptions
from asvp_export.progress import for_terminal
from benchmarks._rows import add_row
from benchmarks._teachers import ROOT, TASKS, teacher
from benchmarks.bench_strength import degraded

RESULTS = ROOT / "docs" / "results" / "audit.json"
CACHE = ROOT / "build" / "audit"
STEPS = 200

HONEST = ("shipped/mse-1@before", "shipped+bypass/mse-1")
BASELINES = ("truth", "original/outputs", "shipped/outputs")
FULL = (
    *BASELINES,
    "shipped/mse-0.1",
    "shipped/mse-1",
    "shipped/normalised-1",
    "shipped/normalised-10",
    "shipped/attention-10",
    "shipped/affinity-1",
    *HONEST,
)
FEW = (*BASELINES, "shipped/mse-1", "shipped/normalised-1", "shipped/normalised-10", "shipped/attention-10")
ATTACKED = tuple(f"shipped+{attack}/{loss}" for loss in ("mse-1", "normalised-10") for attack in attacks())
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"layers": "auto:3"},
    "blocks": {"layers": "body.*"},
    "compensated": {"layers": "auto:3", "compensate": "solve"},
}
SEEDS = {"default": 3, "blocks": 1, "compensated": 3, "battery": 1}
ROWS = {
    "default": FULL,
    "blocks": FEW,
    "compensated": FULL,
    "battery": (*FULL, "shipped/normalised-10@before", "shipped/normalised-10@next", *ATTACKED),
}


# Behind ReLUs, after blocks, and with the convolution after the body as the last.
LAYERS = {
    "ReLUs": ("body.2.branch.1", "body.4.branch.1", "body.7.branch.1"),
    "blocks": ("body.1", "body.4", "body.7"),
    "two blocks, last convolution": ("body.1", "body.4", "after_body"),
}
ASKED = ("shipped/mse-1", "shipped/normalised-1", "shipped/attention-10")


def layers(task: str) -> None:
    for name, chosen in LAYERS.items():
        model = asvp_export.protect(teacher(task), chosen, gain=100.0)
        options = AuditOptions(task=task, student=student(task), rows=ASKED, seeds=1, steps=STEPS, cache=CACHE)
        result = run_audit(model, options=options)
        add_row(RESULTS, f"layers/{task}/{name}", {"layers": chosen, "rows": [shown(row) for row in result.rows]})


def protected(task: str, setting: str) -> Protected:
    """The plan is kept beside the students."""
    original, path = teacher(task), CACHE / f"{task}.{setting}.plan.json"
    if path.exists():
        return apply(original, Plan.load(path))
    with tempfile.TemporaryDirectory() as folder:
        folders = degraded(task, Path(folder))
        model = asvp_export.protect(
            original, **SETTINGS[setting], images=folders["fit"], verify_images=folders["verify"]
        )
    assert model.plan
    CACHE.mkdir(parents=True, exist_ok=True)
    model.plan.save(path)
    return model


def run(setting: str, task: str) -> None:
    model = protected(task, "compensated" if setting == "battery" else setting)
    assert model.plan
    options = AuditOptions(
        task=task, student=student(task), rows=ROWS[setting], seeds=SEEDS[setting], steps=STEPS, cache=CACHE
    )
    progress = for_terminal(lambda line: print(line, flush=True))
    result = run_audit(model, options=options, progress=progress)
    print("\n".join(result.sentences()), flush=True)
    strengths = {layer.name: layer.strength for layer in model.plan.layers}
    record = {key: value for key, value in result.as_dict().items() if key != "verdict"} | {"strength": strengths}
    record["rows"] = [shown(row) for row in result.rows]
    add_row(RESULTS, f"{setting}/{task}", record)


def student(task: str) -> str:
    return f"{ROOT / 'examples' / 'nets.py'}:{task}_student"


def shown(row: Row) -> dict[str, Any]:
    print(f"{row.arm!s:36} {row.psnr:.2f} {row.ssim:.3f} {row.spread or 0:.2f} {row.loss or 0:6.2f} {row.effect}")
    return {key: value for key, value in row.as_dict().items() if key not in ("curve", "title", "baseline")}


def main() -> None:
    setting, *tasks = sys.argv[1:]
    if setting == "tables":
        from benchmarks._audit_tables import write

        write(json.loads(RESULTS.read_text()))
        return
    for task in tasks or TASKS:
        if setting == "layers":
            layers(task)
        else:
            run(setting, task)


if __name__ == "__main__":
    main()
