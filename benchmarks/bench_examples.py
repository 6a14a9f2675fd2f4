"""The five example teachers, exported and verified on degraded photographs of scenes that training did not see."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import asvp_export
from benchmarks._teachers import ROOT, TASKS, teacher


def main() -> None:
    trained = json.loads((ROOT / "examples" / "teachers" / "results.json").read_text())
    print(
        "| teacher | input, dB | restored, dB | layers: strength | exposed gain | fidelity, worst "
        "| preservation, worst / mean | latency |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            inputs = Path(folder) / task
            script = ROOT / "examples" / "degrade.py"
            photographs = ROOT / "asvp_export" / "photographs" / "verify"
            subprocess.run([sys.executable, script, task, photographs, inputs], check=True, stdout=subprocess.DEVNULL)
            protected = asvp_export.protect(teacher(task), "auto:3", images=inputs)
            result = asvp_export.export(protected, Path(folder) / f"{task}.onnx", images=inputs)
            gates, (original, ours) = result.as_dict(), result.latency_ms
            fidelity, preservation = gates["fidelity"], gates["preservation"]
            mean = trained[task]["mean"]
            layers = ", ".join(f"`{layer}`: {effect.strength:.2f}" for layer, effect in result.effects.items())
            gains = {node.gain for node in protected.nodes.values()}
            print(
                f"| {task} | {mean['input_psnr']:.2f} | {mean['output_psnr']:.2f} | {layers} | {max(gains):g} "
                f"| {fidelity['min_psnr']:.0f} dB "
                f"| {preservation['min_psnr']:.0f} / {preservation['mean_psnr']:.0f} dB "
                f"| x {ours / original:.2f} |",
                flush=True,
            )
            if not result.passed:
                sys.exit(f"{task} did not pass its gates")


if __name__ == "__main__":
    main()
