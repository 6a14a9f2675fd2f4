"""The five example teachers, exported and verified on degraded photographs of scenes that training did not see."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _teachers import GAINS, LAYER, ROOT, teacher

import asvp_export


def main() -> None:
    trained = json.loads((ROOT / "examples" / "teachers" / "results.json").read_text())
    print(
        "| teacher | input, dB | restored, dB | gain | fidelity, worst | preservation, worst / mean | SSIM, worst | strength |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for task, gain in GAINS.items():
            inputs = Path(folder) / task
            script = ROOT / "examples" / "degrade.py"
            photographs = ROOT / "asvp_export" / "photographs" / "verify"
            subprocess.run([sys.executable, script, task, photographs, inputs], check=True, stdout=subprocess.DEVNULL)
            protected = asvp_export.protect(teacher(task), LAYER, gain=gain)
            found = asvp_export.export(protected, Path(folder) / f"{task}.onnx", images=inputs)
            gates = found.as_dict()
            fidelity, preservation = gates["fidelity"], gates["preservation"]
            mean = trained[task]["mean"]
            print(
                f"| {task} | {mean['input_psnr']:.2f} | {mean['output_psnr']:.2f} | {gain} | {fidelity['min_psnr']:.1f} dB "
                f"| {preservation['min_psnr']:.1f} / {preservation['mean_psnr']:.1f} dB | {preservation['min_ssim']:.5f} "
                f"| {found.effects[LAYER].strength:.3f} |",
                flush=True,
            )
            if not found.passed:
                sys.exit(f"{task} did not pass its gates")


if __name__ == "__main__":
    main()
