"""PSNR and SSIM of a teacher's output on scenes that training never saw, beside those of its degraded input.

    python examples/evaluate.py [TASK ...]

recomputes examples/teachers/results.json from the committed weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from degrade import bicubic, degrade, generator, pictures, read
from nets import TASKS
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

HERE = Path(__file__).resolve().parent
TEACHERS = HERE / "teachers"
RESULTS = TEACHERS / "results.json"
PHOTOGRAPHS = HERE.parent / "asvp_export" / "photographs"
UNSEEN = ("verify", "audit")


def load(task: str) -> nn.Module:
    """The committed teacher of a task, in eval mode."""
    net = TASKS[task]()
    net.load_state_dict(load_file(TEACHERS / f"{task}.safetensors"))
    return net.eval()


@torch.no_grad()
def restore(net: nn.Module, degraded: np.ndarray) -> np.ndarray:
    """Run a teacher on one whole picture, H,W,3 in 0..1 to H,W,3 (sr_x2: 2H,2W,3), rounded to 8 bit."""
    output = net(torch.from_numpy(degraded).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    return np.round(np.clip(output, 0.0, 1.0) * 255.0) / 255.0


def enlarged(degraded: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """What the teacher is compared with: its input, for super-resolution enlarged bicubically."""
    return degraded if degraded.shape == clean.shape else np.clip(bicubic(degraded, 2.0), 0.0, 1.0)


def scores(image: np.ndarray, clean: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM, both with peak 1."""
    psnr = peak_signal_noise_ratio(clean, image, data_range=1.0)
    return psnr, structural_similarity(clean, image, data_range=1.0, channel_axis=-1)


def evaluate(task: str) -> dict[str, object]:
    """Score a task's teacher on every verify and audit picture and store the result in results.json."""
    net = load(task)
    images = {}
    for split in UNSEEN:
        for path in pictures(PHOTOGRAPHS / split):
            clean = read(path)
            degraded = degrade(task, clean, generator(task, path.stem))
            before, after = scores(enlarged(degraded, clean), clean), scores(restore(net, degraded), clean)
            images[f"{split}/{path.stem}"] = {
                "input_psnr": before[0],
                "input_ssim": before[1],
                "output_psnr": after[0],
                "output_ssim": after[1],
            }
    mean = {key: float(np.mean([row[key] for row in images.values()])) for key in next(iter(images.values()))}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result = results.setdefault(task, {})
    result["parameters"] = sum(p.numel() for p in net.parameters())
    result["mean"] = {key: round(value, 3) for key, value in mean.items()}
    result["images"] = {name: {k: round(float(v), 3) for k, v in row.items()} for name, row in images.items()}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return result


def main() -> None:
    """Evaluate the named tasks, all by default, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    for task in parser.parse_args().tasks or TASKS:
        mean = evaluate(task)["mean"]
        print(
            f"{task:11s} PSNR {mean['input_psnr']:.2f} -> {mean['output_psnr']:.2f} dB, "
            f"SSIM {mean['input_ssim']:.3f} -> {mean['output_ssim']:.3f}"
        )


if __name__ == "__main__":
    main()
