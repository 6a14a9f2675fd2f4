"""What fits a tolerance: the example teachers, plain, solved and refined; each row is kept, so a run can go on.

    python -m benchmarks.bench_strength bars TASK ...        rank 1, gain 10, at named layers
    python -m benchmarks.bench_strength residuals TASK ...   --layers auto:3 --residual auto --compensate solve at 48 dB
    python -m benchmarks.bench_strength crops TASK ...       how many crops calibration needs
    python -m benchmarks.bench_strength tables               tables of docs/results/strength.md, from strength.json

Fitted on the degraded calibrate and train photographs, the gains held on the verify photographs, and every figure is of
the audit photographs, of which neither saw a scene. In PyTorch, without an export.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import asvp_export
from asvp_export.images import list_images, photographs
from asvp_export.insertion.protected import Protected, insert
from asvp_export.operator import Perturbation
from asvp_export.parity.cases import Case, build_cases
from asvp_export.parity.metrics import peak_of, psnr
from asvp_export.parity.removal import removal_tests, smallest
from asvp_export.parity.truth import read_truth
from asvp_export.plan import calibration
from asvp_export.plan.runner_torch import TorchRunner
from asvp_export.plan.search import Goal, Search
from asvp_export.teacher.model import Teacher
from benchmarks._rows import add_row
from benchmarks._teachers import ROOT, TASKS, teacher

RESULTS = ROOT / "docs" / "results" / "strength.json"
# After ReLUs, whose maps have a leading component that changes little from image to image; found by ranking all layers.
ONE = {"sr_x2": 7, "lowlight": 7, "underwater": 3, "dehaze": 1, "derain": 7}
THREE = {"sr_x2": (5, 6, 7), "lowlight": (2, 3, 7), "underwater": (3, 4, 5), "dehaze": (0, 1, 2), "derain": (0, 2, 7)}


def degraded(task: str, folder: Path) -> dict[str, Path]:
    """Folders of inputs: "fit", "verify" and "audit"."""
    folders = {}
    for split, parts in (("fit", ("calibrate", "train")), ("verify", ("verify",)), ("audit", ("audit",))):
        folders[split] = folder / split
        for part in parts:
            command = [sys.executable, ROOT / "examples" / "degrade.py", task, photographs(part), folders[split]]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folders


def cases_of(original: Teacher, folder: Path) -> list[Case]:
    return build_cases(
        list_images(folder), size=original.size, data_range=original.data_range, signature=original.signature
    )


def decibels(protected: Protected, cases: Sequence[Case]) -> list[float]:
    """PSNR of each case against the original."""
    original, peak = protected.teacher.module, protected.teacher.data_range.peak
    with torch.inference_mode():
        return [
            psnr(expected := original(x).numpy(), protected.module(x).numpy(), peak_of(expected, peak))
            for x in (torch.from_numpy(case.input) for case in cases)
        ]


def judged(protected: Protected, inputs: Path, task: str) -> dict[str, Any]:
    """Preservation on images that nothing was fitted to, and the removal tests against ground truth."""
    original = protected.teacher
    cases = cases_of(original, inputs)
    truth = read_truth(photographs("audit"), list_images(inputs), original)
    tests = removal_tests(protected, cases, smallest(cases, original.device), truth)
    return {
        "plain_psnr": round(min(decibels(insert(original, protected.nodes), cases)), 2),
        "psnr": round(tests[0].min_psnr, 2),
        "mean_psnr": round(tests[0].mean_psnr, 2),
        "own_loss": round(tests[0].loss or 0.0, 3),
        # "strips": the key of docs/results/strength.json; the term is removal test
        "strips": {test.name: [round(test.min_psnr, 2), round(test.loss or 0.0, 2)] for test in tests[1:]},
    }


def run_once(key: str, make: Any) -> None:
    """Run a row unless it is there; several processes may fill the file together."""
    RESULTS.touch()
    if key in json.loads(RESULTS.read_text() or "{}"):
        return
    start = time.perf_counter()
    row = make() | {"seconds": round(time.perf_counter() - start)}
    add_row(RESULTS, key, row)
    print(key, json.dumps(row), flush=True)


def bars(task: str, folders: dict[str, Path]) -> None:
    """Rank 1, gain 10: behind the convolution after the body, behind one ReLU, and behind three."""
    sets = {
        "after_body": ["after_body"],
        "one": [f"body.{ONE[task]}.branch.1"],
        "three": [f"body.{i}.branch.1" for i in THREE[task]],
    }
    for name, layers in sets.items():
        # one convolution is all that is behind the body: nothing to refine
        for mode in ("solve", "refine") if name != "after_body" else ("solve",):

            def make(layers: list[str] = layers, mode: str = mode) -> dict[str, Any]:
                protected = asvp_export.protect(
                    teacher(task),
                    layers,
                    rank=1,
                    gain=10.0,
                    residual="gain",
                    compensate=mode,
                    images=folders["fit"],
                    verify_images=folders["verify"],
                )
                assert protected.plan
                return {"layers": layers, "strength": strengths(protected)} | judged(protected, folders["audit"], task)

            run_once(f"bars/{task}/{name}/{mode}", make)
        run_once(f"bars/{task}/{name}/mix", lambda layers=layers: mixed(task, layers, folders))


def mixed(task: str, layers: list[str], folders: dict[str, Path]) -> dict[str, Any]:
    """The lesser compensation: a channel mix in front of the readers, the best 1x1 map back to the clean map."""
    original = teacher(task)
    protected = insert(original, {layer: Perturbation(1, 10.0) for layer in layers})
    images = calibration.draw(original, list_images(folders["fit"]))
    runner = TorchRunner(original, layers, images.crops)
    gram = dict.fromkeys(layers, 0.0)
    moments = dict(gram)
    for i in range(len(images.crops)):
        for layer, (clean, *_) in runner.maps(i).items():
            exposed = torch.ops.asvp.perturb(clean, 1, 10.0, 1.0, 1)
            rows, target = (x[0].flatten(1).double() for x in (exposed, clean))
            gram[layer] = gram[layer] + rows @ rows.T / rows.shape[1]
            moments[layer] = moments[layer] + target @ rows.T / rows.shape[1]
    for layer in layers:
        unit = gram[layer].diagonal().mean() * 1e-9 * torch.eye(len(gram[layer]), dtype=torch.float64)
        mix = torch.linalg.solve(gram[layer] + unit, moments[layer].T).T.float()
        site = protected.module.get_submodule(layer)
        site.register_forward_hook(lambda m, i, x, mix=mix: torch.einsum("dc,nchw->ndhw", mix, x))
    scores = decibels(protected, cases_of(original, folders["audit"]))
    return {"layers": layers, "psnr": round(min(scores), 2), "mean_psnr": round(float(np.mean(scores)), 2)}


def strengths(protected: Protected) -> dict[str, float]:
    assert protected.plan
    return {layer.name: layer.strength for layer in protected.plan.layers}


def residuals(task: str, folders: dict[str, Path]) -> None:
    """The strongest setting, with the plan that bench_audit.py keeps: what its readers get, and what deleting costs."""

    def make() -> dict[str, Any]:
        from benchmarks.bench_audit import protected as planned

        protected = planned(task, "compensated")
        assert protected.plan
        nodes = {
            layer.name: [layer.node.rank, layer.node.gain, layer.node.residual_gain, layer.strength]
            for layer in protected.plan.layers
        }
        return {"nodes": nodes, "verified": protected.plan.verified_psnr} | judged(protected, folders["audit"], task)

    run_once(f"residuals/{task}", make)


def crops(task: str, folders: dict[str, Path]) -> None:
    """The worst unseen photograph after solving on more and more crops."""
    original = teacher(task)
    layer = f"body.{ONE[task]}.branch.1"
    images = calibration.draw(original, list_images(folders["fit"]))
    cases = cases_of(original, folders["audit"])
    for count in (8, 16, 32, 64, 128):

        def make(count: int = count) -> dict[str, Any]:
            calibration_images = replace(images, crops=images.crops[:count])
            unseen = [tuple(torch.from_numpy(x) for x in case.inputs) for case in cases]
            inputs = [*calibration_images.crops, *calibration_images.held_out, *unseen]
            runner = TorchRunner(original, [layer], inputs)
            solved_on, held = range(count), range(count, count + len(calibration_images.held_out))
            search = Search(
                runner, {layer: Perturbation()}, solved_on, held, Goal(peak=1.0, target=49.0, max_gain=10.0)
            )
            trial = search.trial({layer: Perturbation(1, 10.0)})
            last = range(len(inputs) - len(unseen), len(inputs))
            row = {
                name: search.worst(inputs, trial.nodes, trial.weights)
                for name, inputs in {"crops": solved_on, "unseen": last}.items()
            }
            runner.release()
            return row

        run_once(f"crops/{task}/{count:03d}", make)


def main() -> None:
    table, *tasks = sys.argv[1:]
    if table == "tables":
        from benchmarks._strength_tables import write

        write(json.loads(RESULTS.read_text()))
        return
    for task in tasks or TASKS:
        with tempfile.TemporaryDirectory() as folder:
            {"bars": bars, "residuals": residuals, "crops": crops}[table](task, degraded(task, Path(folder)))


if __name__ == "__main__":
    main()
