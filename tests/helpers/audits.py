"""What the tests of the audit share: the layer and the rows, an export for it, a short audit."""

from __future__ import annotations

from pathlib import Path

import torch

import asvp_export
from asvp_export.distillation.auditing import run_audit
from asvp_export.options import AuditOptions
from tests.helpers.teachers import arch, save_pictures

TASK, LAYER, GAIN = "derain", "body.3.branch.1", 10.0
STUDENT = f"{arch(TASK)}_student"
ROWS = ["shipped/mse-1", "shipped+undo/normalised-10@node"]


def exported(model, path: Path) -> Path:
    pictures = save_pictures(path.parent / "pictures")
    asvp_export.export(model, path, images=pictures, min_psnr=-100.0)
    return path


def audited(model, clean, tmp_path, *, rows=ROWS, seeds=1, steps=2, jobs=1, file=None, progress=print, **options):
    arguments = {"task": TASK, "data": clean, "student": STUDENT, "cache": tmp_path / "cache"} | options
    options = AuditOptions(rows=rows, seeds=seeds, steps=steps, jobs=jobs, **arguments)
    return run_audit(model, file, options=options, progress=progress)


def near(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())
